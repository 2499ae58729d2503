"""The forms of tokenizer.json that families of the hub have, with small vocabularies."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from common.data.tokenizers.patterns import O200K
from tests.common.data.random_pipelines import BYTES, CORPUS, vocabulary_of

Json = dict[str, Any]
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(regex: bool = True, prefix: bool = False) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": prefix,
        "trim_offsets": True,
        "use_regex": regex,
    }


def _split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def _replace(what: str, content: str) -> Json:
    return {"type": "Replace", "pattern": {"String": what}, "content": content}


def _in_turn(key: str, *parts: Json) -> Json:
    return {"type": "Sequence", key: [*parts]}


def _content(model: Json, end: str, added: list[str | Json], **parts: Any) -> Json:
    """`end` and every text of `added` is a special token; a dictionary changes its flags."""
    vocab = [t for t, _ in model["vocab"]] if model["type"] == "Unigram" else [*model["vocab"]]
    tokens: list[Json] = []
    for each in [end, *added]:
        given = {"content": each} if isinstance(each, str) else each
        if given["content"] not in vocab:
            vocab.append(given["content"])
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        tokens.append({"id": vocab.index(given["content"]), **flags, "special": True} | given)
    shape = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    tokens.sort(key=lambda token: token["id"])
    return {"version": "1.0", **shape, "added_tokens": tokens, "model": model} | parts


def _plain(*names: str, **flags: bool) -> list[str | Json]:
    return [{"content": name, "special": False, **flags} for name in names]


def _template(start: str, index: int) -> Json:
    sequence = [
        {"SpecialToken": {"id": start, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    special = {start: {"id": start, "ids": [index], "tokens": [start]}}
    return {
        "type": "TemplateProcessing",
        "single": sequence,
        "pair": sequence,
        "special_tokens": special,
    }


def _bytes_model(**flags: Any) -> Json:
    return vocabulary_of("bytes") | flags


def _byte_level_form(
    end: str,
    added: list[str | Json],
    splitter: Json,
    *,
    normalizer: Json | None = None,
    **flags: Any,
) -> Json:
    return _content(
        _bytes_model(**flags),
        end,
        added,
        normalizer=normalizer,
        pre_tokenizer=splitter,
        decoder=_byte_level(),
    )


def _cut_form(end: str, added: list[str | Json], *cuts: Json, **more: Any) -> Json:
    return _byte_level_form(
        end, added, _in_turn("pretokenizers", *cuts, _byte_level(regex=False)), **more
    )


def _marked_model() -> Json:
    """SentencePiece's BPE as Llama 2 has it: `▁` for spaces, a token for each byte."""
    words = vocabulary_of("marked")
    first = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *BYTES])}
    vocab = first | {token: len(first) + i for i, token in enumerate(words["vocab"])}
    return words | {"vocab": vocab, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}


_MARKS_BACK = [_replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
_FIRST_SPACE_AWAY = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _metaspace(scheme: str = "always", split: bool = True) -> Json:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def _unigram_model(*first: str) -> Json:
    words = [*vocabulary_of("marked")["vocab"]]
    vocab = [*([token, 0.0] for token in first), *([w, -2.0 - i / 7] for i, w in enumerate(words))]
    return {
        "type": "Unigram",
        "unk_id": first.index("<unk>"),
        "vocab": vocab,
        "byte_fallback": False,
    }


def _wordpiece_model(*first: str) -> Json:
    words = [*vocabulary_of("plain")["vocab"]]
    vocab = [*first, *words, *("##" + word for word in words if "##" + word not in words)]
    return {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {token: index for index, token in enumerate(vocab)},
    }


def _precompiled() -> Json:
    """The normalisation that SentencePiece models have, `nmt_nfkc`, as T5's file has it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=80,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    table = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    return {"type": "Precompiled", "precompiled_charsmap": table}


def gpt2() -> Json:
    form = _byte_level_form(
        "<|endoftext|>", [], _byte_level(), continuing_subword_prefix="", end_of_word_suffix=""
    )
    form["added_tokens"][0]["normalized"] = True
    return form | {"post_processor": _byte_level(prefix=True)}


def gpt_neox() -> Json:
    spaces = _plain("  ", "   ", "    ", "        ", normalized=True)
    return _byte_level_form(
        "<|endoftext|>", ["<|padding|>", *spaces], _byte_level(), normalizer={"type": "NFC"}
    )


def llama3() -> Json:
    form = _cut_form(
        "<|end_of_text|>", ["<|begin_of_text|>", "<|eot_id|>"], _split(LLAMA3), ignore_merges=True
    )
    start = next(t["id"] for t in form["added_tokens"] if t["content"] == "<|begin_of_text|>")
    return form | {
        "post_processor": _in_turn(
            "processors", _byte_level(), _template("<|begin_of_text|>", start)
        )
    }


def qwen3() -> Json:
    added = ["<|im_start|>", "<|im_end|>", *_plain("<think>", "</think>", "<tool_call>")]
    return _cut_form("<|endoftext|>", added, _split(QWEN), normalizer={"type": "NFC"})


def llama2() -> Json:
    marks = _in_turn("normalizers", {"type": "Prepend", "prepend": "▁"}, _replace(" ", "▁"))
    back = _in_turn("decoders", *_MARKS_BACK, _FIRST_SPACE_AWAY)
    return _content(
        _marked_model(),
        "</s>",
        ["<s>", "<unk>"],
        normalizer=marks,
        decoder=back,
        post_processor=_template("<s>", 1),
    )


def phi3() -> Json:
    return _with_added(llama2(), _plain("<|system|>", "<|user|>", "<|end|>", rstrip=True))


def _with_added(form: Json, added: list[str | Json]) -> Json:
    known = [token for token in form["added_tokens"] if token["content"] not in ("</s>",)]
    again = _content(form["model"], "</s>", [*known, *added])
    return form | {"added_tokens": again["added_tokens"]}


def mistral() -> Json:
    back = _in_turn("decoders", *_MARKS_BACK, _FIRST_SPACE_AWAY)
    return _content(
        _marked_model(),
        "</s>",
        ["<s>", "<unk>", "[INST]"],
        pre_tokenizer=_metaspace("first", split=False),
        decoder=back,
    )


def mistral_tekken() -> Json:
    return _cut_form("</s>", ["<s>", "[INST]"], _split(TEKKEN), ignore_merges=True)


def gemma() -> Json:
    cut = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    added = ["<bos>", "<unk>", *_plain("\n\n", "\n\n\n", "▁▁", "<table>")]
    return _content(
        _marked_model(),
        "<eos>",
        added,
        normalizer=_replace(" ", "▁"),
        pre_tokenizer=cut,
        decoder=_in_turn("decoders", *_MARKS_BACK),
    )


def t5() -> Json:
    return _content(
        _unigram_model("<pad>", "</s>", "<unk>"),
        "</s>",
        ["<pad>", "<unk>", {"content": "<extra_id_0>", "rstrip": True}],
        normalizer=_precompiled(),
        pre_tokenizer=_in_turn("pretokenizers", {"type": "WhitespaceSplit"}, _metaspace()),
        decoder=_metaspace(),
    )


def xlm_roberta() -> Json:
    return t5() | {"normalizer": _in_turn("normalizers", _precompiled(), _runs_of_spaces())}


def _runs_of_spaces() -> Json:
    return {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}


def albert() -> Json:
    quotes = _replace("``", '"')
    folded = (
        {"type": "NFKD"},
        {"type": "StripAccents"},
        {"type": "Lowercase"},
        _precompiled(),
        _runs_of_spaces(),
    )
    return t5() | {
        "normalizer": _in_turn("normalizers", quotes, *folded),
        "pre_tokenizer": _metaspace(),
    }


def bert() -> Json:
    folded = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    }
    return _content(
        _wordpiece_model("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "[SEP]",
        ["[PAD]", "[UNK]", "[CLS]", "[MASK]"],
        normalizer=folded,
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor={"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def roberta() -> Json:
    added: list[str | Json] = ["<s>", "<pad>", {"content": "<mask>", "lstrip": True}]
    form = _byte_level_form("</s>", added, _byte_level(), end_of_word_suffix="")
    return form | {
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", 2],
            "cls": ["<s>", 0],
            "trim_offsets": True,
            "add_prefix_space": False,
        }
    }


def bloom() -> Json:
    pattern = r" ?[^(\s|[.,!?…。\uff0c、।\u06d4،])]+"
    return _cut_form("</s>", ["<unk>", "<s>", "<pad>"], _split(pattern))


def falcon() -> Json:
    cuts = _in_turn(
        "pretokenizers",
        {"type": "Punctuation", "behavior": "Contiguous"},
        _byte_level(),
        {"type": "Digits", "individual_digits": False},
        _split(r"[0-9][0-9][0-9]"),
    )
    return _byte_level_form("<|endoftext|>", [">>TITLE<<", ">>ABSTRACT<<"], cuts)


def starcoder() -> Json:
    cuts = _in_turn("pretokenizers", {"type": "Digits", "individual_digits": True}, _byte_level())
    return _byte_level_form("<|endoftext|>", ["<fim_prefix>", "<fim_suffix>"], cuts)


def deepseek() -> Json:
    cuts = (_split(r"\p{N}{1,3}"), _split("[一-龥぀-ゟ\u30a0-\u30ff]+"), _split(DEEPSEEK))
    added = ["<|begin▁of▁sentence|>", *_plain("<|User|>", "<think>", normalized=True)]
    return _cut_form("<|end▁of▁sentence|>", added, *cuts, normalizer=_in_turn("normalizers"))


def gpt_oss() -> Json:
    return _cut_form(
        "<|endoftext|>",
        ["<|startoftext|>", "<|return|>", "<|call|>"],
        _split(O200K),
        ignore_merges=True,
    )


def whisper() -> Json:
    """Truncation and padding were left in the file; the times are not special there."""
    form = _byte_level_form(
        "<|endoftext|>", ["<|startoftranscript|>", *_plain("<|0.00|>", "<|0.02|>")], _byte_level()
    )
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 13},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    return form | {"truncation": truncation, "padding": padding}


def clip() -> Json:
    letters = vocabulary_of("plain")["vocab"]
    vocab = {
        token: index
        for index, token in enumerate(dict.fromkeys([*letters, *(t + "</w>" for t in letters)]))
    }
    model = vocabulary_of("bytes") | {
        "vocab": vocab,
        "merges": [],
        "end_of_word_suffix": "</w>",
        "unk_token": "<|endoftext|>",
    }
    vocab["<|endoftext|>"] = len(vocab)
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    cuts = _in_turn("pretokenizers", _split(pattern, "Removed", invert=True), _byte_level())
    folded = _in_turn(
        "normalizers",
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Lowercase"},
    )
    return _content(
        model,
        "<|endoftext|>",
        ["<|startoftext|>"],
        normalizer=folded,
        pre_tokenizer=cuts,
        decoder=_byte_level(),
    )


def word_level() -> Json:
    model = {
        "type": "WordLevel",
        "unk_token": "[UNK]",
        "vocab": {"[UNK]": 0, "[SEP]": 1, "the": 2, "fox": 3},
    }
    return _content(model, "[SEP]", ["[UNK]"], pre_tokenizer={"type": "Whitespace"})


# (form, what its tokens count beside the bytes of a text without double spaces: None where text is lost)
FORMS: dict[str, tuple[Callable[[], Json], int | None]] = {
    "gpt2": (gpt2, 0),
    "gpt_neox": (gpt_neox, 0),
    "roberta": (roberta, 0),
    "whisper": (whisper, 0),
    "llama3": (llama3, 0),
    "qwen3": (qwen3, 0),
    "mistral_tekken": (mistral_tekken, 0),
    "gpt_oss": (gpt_oss, 0),
    "deepseek": (deepseek, 0),
    "bloom": (bloom, 0),
    "falcon": (falcon, 0),
    "starcoder": (starcoder, 0),
    "gemma": (gemma, 0),
    "llama2": (llama2, 1),
    "mistral": (mistral, 1),
    "phi3": (phi3, 1),
    "t5": (t5, None),
    "xlm_roberta": (xlm_roberta, None),
    "albert": (albert, None),
    "bert": (bert, None),
    "clip": (clip, None),
    "word_level": (word_level, None),
}
