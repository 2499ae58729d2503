"""Analyse a tokenizer.json: the bytes of its tokens, and what a round trip loses.

    text --normalizers--> text --pre_tokenizers--> words --model--> ids --decoders--> text

Everything is read from the description; only steps listed here count as lossless.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import Any

from common.data.tokenizers.byte_level import byte_letters
from common.errors import DataError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Pre-tokenizers that only split; Split and Punctuation can also remove matches.
_CUTS = {
    "ByteLevel",
    "Metaspace",
    "Split",
    "Punctuation",
    "Digits",
    "UnicodeScripts",
    "FixedLength",
}


_MOST_GROWTH = 1000  # characters per input character


class Pipeline:
    """Reads the canonical description (`Tokenizer.to_str`) of a Hugging Face tokenizer.

    Raises DataError for chained replacements that would turn a short text into gigabytes.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.model: Mapping[str, Any] = content["model"]
        self.added: list[Mapping[str, Any]] = content["added_tokens"]
        self.normalizers = steps(content["normalizer"])
        self.splitters = steps(content["pre_tokenizer"])
        self.decoders = steps(content["decoder"])
        for row in (self.normalizers, self.decoders):
            if prod(len(step.get("content", "")) or 1 for step in row) > _MOST_GROWTH:
                raise DataError("its replacements make a text thousands of times as long")
        self.byte_level = any(
            step["type"] == "ByteLevel" for step in [*self.normalizers, *self.splitters]
        )
        self._prefix = self.model.get("continuing_subword_prefix") or ""
        self._suffix = self.model.get("end_of_word_suffix") or ""
        self._spaces = [
            mark for step in [*self.normalizers, *self.splitters] if (mark := _space(step))
        ]

    @property
    def unknown(self) -> str | None:
        """The unknown token."""
        if self.model["type"] == "Unigram":
            index = self.model.get("unk_id")
            return None if index is None else str(self.model["vocab"][index][0])
        return self.model.get("unk_token")

    def is_byte(self, token: str) -> bool:
        """Whether the token is a single byte (byte fallback)."""
        return bool(self.model.get("byte_fallback") and _BYTE.fullmatch(token))

    def bytes_of(self, token: str) -> int:
        """Number of UTF-8 bytes of a model token."""
        if self.byte_level:
            return len(token)  # one character per byte
        if token == self.unknown:
            return 0
        if self.is_byte(token):
            return 1
        if self._prefix and token.startswith(self._prefix) and token != self._prefix:
            token = token.removeprefix(self._prefix)
        token = token.removesuffix(self._suffix) if self._suffix else token
        for mark in self._spaces:
            token = token.replace(mark, " ")
        return len(token.encode())

    def losses(self) -> list[str]:
        """What a round trip changes, or bytes that tokens do not count; empty: nothing."""
        changing = [s["type"] for s in self.normalizers if not _space(s)]
        found = (
            [f"its normalization ({', '.join(changing)}) may change the text"] if changing else []
        )
        found += [f"the character {mark!r} comes back as a space" for mark in self._spaces]
        if any(_adds_space(step) for step in self.splitters):
            found.append("a space that it puts before a text counts as a byte")
        if dropping := [step["type"] for step in self.splitters if _drops(step)]:
            found.append(f"its splitting ({', '.join(dropping)}) drops spaces or other characters")
        if self.model["type"] != "BPE" or not (self.byte_level and self._knows_bytes()):
            found.append("spaces, and characters missing from its vocabulary, may change")
        if self._prefix or self._suffix:
            found.append(f"the mark {self._prefix or self._suffix!r} of parts of words may be lost")
        decoders = [step["type"] for step in self.decoders]
        if self._double() or decoders not in (["ByteLevel"], ["ByteLevel", "Fuse"]):
            found.append("its decoder may not restore the text")
        return found + self._losses_of_added()

    def _knows_bytes(self) -> bool:
        return {*byte_letters()} <= {*self.model["vocab"]}

    def _double(self) -> bool:
        """Whether bytes are mapped to characters twice, or after spaces were marked."""
        kinds = [step["type"] for step in [*self.normalizers, *self.splitters]]
        return kinds.count("ByteLevel") > 1 or (self.byte_level and bool(self._spaces))

    def _losses_of_added(self) -> list[str]:
        found = []
        letters = {*byte_letters()}
        for token in self.added:
            text = token["content"]
            if token["special"] and self._makes(text):
                found.append(f"{text!r} in a text is parsed as the special token")
            if token["special"]:
                continue
            if token["lstrip"] or token["rstrip"]:
                found.append(f"spaces beside {text!r} are lost")
            if not text.isascii() and letters >= {*text}:
                found.append(f"{text!r} comes back as other bytes")
        return found

    def _makes(self, special: str) -> bool:
        """Whether the model itself can produce this token from ordinary text."""
        vocab = self.model["vocab"]
        if self.model["type"] != "BPE":
            return special in (
                vocab if isinstance(vocab, Mapping) else [token for token, _ in vocab]
            )
        return special in vocab and (
            bool(self.model.get("ignore_merges")) or len(special) == 1 or special in self._merged
        )

    @cached_property
    def _merged(self) -> set[str]:
        return {"".join(merge) for merge in self.model["merges"]}


def steps(part: Any) -> list[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder in order, with Sequences flattened."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = next(value for value in part.values() if isinstance(value, list))
    return [step for each in inner for step in steps(each)]


def _space(step: Mapping[str, Any]) -> str:
    """The replacement of a space by a step that changes nothing else; else empty."""
    if step["type"] == "Metaspace":
        return str(step["replacement"])
    replaces = step["type"] == "Replace" and step["pattern"] == {"String": " "}
    return str(step["content"]) if replaces and len(step["content"]) == 1 else ""


def _adds_space(step: Mapping[str, Any]) -> bool:
    return bool(step.get("add_prefix_space")) or step.get("prepend_scheme", "never") != "never"


def _drops(step: Mapping[str, Any]) -> bool:
    return step["type"] not in _CUTS or step.get("behavior") == "Removed"
