"""SentencePiece (Kudo and Richardson 2018): unigram language model (Kudo 2018) or BPE, by Google's package."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from common.data.tokenizers.base import (
    END_OF_TEXT,
    TokenIds,
    TrainableTokenizer,
    cut_at_word_borders,
    engine_errors,
    last_word_border,
)
from common.errors import DataError
from common.utils.files import write_text_atomic
from common.utils.packages import require

SPACE = "\u2581"  # how a vocabulary writes a space
_SPANS = re.compile(rf"[^{SPACE}]{SPACE}|.\n", re.DOTALL)  # pieces that cross a border
_LONGEST_SENTENCE = 1 << 20  # bytes; the package silently drops longer ones
_MOST_SENTENCES = 1_000_000  # sampled, so that memory is bounded


class SentencePieceTokenizer(TrainableTokenizer):
    """Characters missing from the vocabulary are encoded as bytes, so nothing is unknown."""

    kind = "sentencepiece"
    algorithm: Literal["unigram", "bpe"] = "unigram"

    def __init__(self, model: bytes) -> None:
        processor = require("sentencepiece", "tokenizers").SentencePieceProcessor
        self._model = model
        try:
            self._processor: Any = processor(model_proto=model)
        except RuntimeError as error:
            raise DataError(f"not a SentencePiece model: {error}") from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
        trainer = require("sentencepiece", "tokenizers").SentencePieceTrainer
        model = io.BytesIO()
        try:
            trainer.train(
                sentence_iterator=_sentences(texts),
                model_writer=model,
                model_type=cls.algorithm,
                vocab_size=vocab_size,
                hard_vocab_limit=False,  # a short text has fewer pieces
                character_coverage=1.0 if cls.algorithm == "bpe" else 0.9995,
                byte_fallback=True,
                user_defined_symbols=["\n"],  # separates the training sentences
                required_chars=SPACE,  # if the text has none: else a space is three bytes
                # No normalisation and nothing added, so that decoding restores the text.
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                unk_id=0,
                bos_id=-1,
                eos_id=1,
                pad_id=-1,
                eos_piece=END_OF_TEXT,
                max_sentence_length=_LONGEST_SENTENCE,
                input_sentence_size=_MOST_SENTENCES,
                shuffle_input_sentence=False,
                num_threads=1,  # with several, the sums of the unigram model are not deterministic
                minloglevel=2,
            )
        except RuntimeError as error:
            raise DataError(
                f"SentencePiece cannot learn from this text: {error}",
                "provide more text, or set another data.vocab_size",
            ) from error
        return cls(model.getvalue())

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        clean = [text.encode(errors="replace").decode() for text in texts]  # no half surrogates
        with engine_errors("encoding"):
            if not self._cuts:
                encoded = self._processor.encode(clean, num_threads=1)
                return [np.array(ids, dtype=np.int64) for ids in encoded]
            return [self._encode_words(text) for text in clean]

    def _encode_words(self, text: str) -> TokenIds:
        """Encode word by word: the package sums float32 scores, which lose precision in long texts."""
        words = cut_at_word_borders(text)
        distinct = [*dict.fromkeys(words)]
        encoded = self._processor.encode(distinct, num_threads=1)
        ids = dict(zip(distinct, (np.array(i, dtype=np.int64) for i in encoded), strict=True))
        return np.concatenate([ids[word] for word in words])

    def decode(self, ids: Sequence[int]) -> str:
        special = set(self.special_tokens.values())
        text: str = self._processor.decode([int(i) for i in ids if i not in special])
        return text

    def save(self, path: Path) -> None:
        content = {"type": self.kind, "model": base64.b64encode(self._model).decode()}
        write_text_atomic(path, json.dumps(content))

    @property
    def vocab_size(self) -> int:
        return int(self._processor.get_piece_size())

    @property
    def special_tokens(self) -> dict[str, int]:
        pieces = self._processor
        return {
            pieces.id_to_piece(i): i for i in range(self.vocab_size) if pieces.is_control(i)
        } or {pieces.id_to_piece(pieces.unk_id()): pieces.unk_id()}

    @property
    def end_of_text(self) -> int:
        return self.special_tokens.get(END_OF_TEXT, int(self._processor.eos_id()))

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        return self._token_bytes.copy()

    @cached_property
    def _token_bytes(self) -> npt.NDArray[np.int64]:
        pieces, sizes = self._processor, []
        for i in range(self.vocab_size):
            text = pieces.id_to_piece(i).replace(SPACE, " ")
            size = 1 if pieces.is_byte(i) else len(text.encode())
            sizes.append(0 if pieces.is_control(i) or pieces.is_unknown(i) else size)
        return np.array(sizes, dtype=np.int64)

    @property
    def loses(self) -> str:
        found = ["the character U+2581 comes back as a space, half a surrogate pair as '?'"]
        if not self._is_plain:
            found = ["its normalization changes characters, spaces or the beginning of a text"]
        if not self._falls_back:
            found.append("characters missing from its vocabulary are lost")
        elif SPACE not in self._pieces:
            found.append("its vocabulary has no space: each counts as three bytes")
        return "; ".join(found)

    @cached_property
    def _proto(self) -> Any:
        messages = require("sentencepiece.sentencepiece_model_pb2", "tokenizers")
        return messages.ModelProto.FromString(self._model)

    @cached_property
    def _pieces(self) -> set[str]:
        return {self._processor.id_to_piece(i) for i in range(self.vocab_size)}

    @property
    def _falls_back(self) -> bool:
        return bool(self._proto.trainer_spec.byte_fallback)

    @property
    def _is_plain(self) -> bool:
        """Whether the model leaves text unchanged."""
        rules = self._proto.normalizer_spec
        return not (
            rules.precompiled_charsmap
            or rules.normalization_rule_tsv
            or rules.add_dummy_prefix
            or rules.remove_extra_whitespaces
            or not rules.escape_whitespaces
        )

    @cached_property
    def _cuts(self) -> bool:
        """Whether no piece, nor a run of unknown characters, crosses a word border."""
        unigram_or_bpe = self._proto.trainer_spec.model_type in (1, 2)
        apart = self._falls_back or {SPACE, "\n"} <= self._pieces
        spans = any(_SPANS.search(piece) for piece in self._pieces)
        return self._is_plain and unigram_or_bpe and apart and not spans

    def last_border(self, text: str) -> int:
        return last_word_border(text) if self._cuts else 0

    def is_unknown(self, ids: TokenIds) -> npt.NDArray[np.bool_]:
        pieces = self._processor
        unknown = [pieces.is_byte(i) or pieces.is_unknown(i) for i in range(self.vocab_size)]
        return np.array(unknown, dtype=np.bool_)[ids]


class SentencePieceBPETokenizer(SentencePieceTokenizer):
    kind = "sentencepiece_bpe"
    algorithm = "bpe"


def _sentences(texts: Iterable[str]) -> Iterable[str]:
    """Split into lines, since the package accepts no line end inside a sentence."""
    for text in texts:
        for line in text.encode(errors="replace").decode().split("\n"):
            if line:
                yield line
