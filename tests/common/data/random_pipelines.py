"""Descriptions of tokenizers (tokenizer.json), drawn from all that `tokenizers` can build, and texts for them."""

from __future__ import annotations

import json
from functools import cache
from random import Random
from typing import Any

import tokenizers as hf

from common.data.tokenizers.byte_level import byte_letters
from common.data.tokenizers.patterns import KNOWN, for_oniguruma

Json = dict[str, Any]
END = "<|endoftext|>"
CORPUS = [
    "the quick brown fox's jumped over 1234 lazy dogs, naïve café; don't! x=y+1\n\tdef f(x):\n",
    "  the the  then there's  ## a_b --- <think> the\r\n\r\n 12 123 日本語 日本 🙂 Straße ﬁne\n\n",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PARTS = [
    *(
        " ",
        "  ",
        "    ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "\u00a0",
        "\u3000",
        "\u2028",
        "\x85",
        "\0",
        "\x1c",
    ),
    *(
        "the",
        "The",
        "then",
        "there's",
        "N'T",
        "'ll",
        "12",
        "12345",
        "!",
        "--",
        "##",
        "##a",
        "_",
        "x=y",
    ),
    *(
        "é",
        "e\u0301",
        "ﬁ",
        "ﬁne",
        "\uff21",
        "ß",
        "İ",
        "\u017f",
        "ǅ",
        "日本",
        "語",
        "🙂",
        "👩\u200d👩",
        "\u200b",
        "\ufeff",
    ),
    *(
        END,
        "<|",
        "<think>",
        "</s>",
        "<unk>",
        "[UNK]",
        "[MASK]",
        "<0x41>",
        "<0xE2>",
        "▁",
        "▁the",
        "Ġ",
        "Ċ",
        "\ufffd",
    ),
    *("a", "b", "a b", "zq", "ж", "۴", "½", "\U0001df00", "\U000105c0", "\U0010ffff"),
]
ADDED = [
    "    ",
    "<think>",
    "the",
    "é",
    "Ġ",
    "\n\n",
    "[MASK]",
    "a b",
    "日本",
    "<0x41>",
    "x",
    "fox's",
]
PATTERNS = [*sorted(map(for_oniguruma, KNOWN)), r"\s+", r"\w+|[^\w\s]+", r"\d", r"[^\s]+", "e"]


def random_text(draw: Random) -> str:
    parts = draw.choices(PARTS, k=draw.randrange(14))
    if draw.random() < 0.3:
        parts.append("".join(chr(draw.choice([*range(0xD800), 0x1F600])) for _ in range(4)))
    return "".join(parts)


def random_pipeline(draw: Random) -> Json:
    """The content of a tokenizer.json; half are byte-level BPE, and some of them nearly GPT-2's."""
    if draw.random() < 0.2:
        return _nearly_gpt2(draw)
    if draw.random() < 0.4:
        return _byte_level(draw)
    model = draw.choice([_bpe, _bpe, _unigram, _wordpiece, _wordlevel])(draw)
    return _with(
        draw,
        model,
        normalizer=_sequence(draw, _normalizer, "normalizers"),
        pre_tokenizer=_splitters(draw),
    )


def _nearly_gpt2(draw: Random) -> Json:
    """Up to two parts are other than GPT-2's."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = True
    end = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    plain = {
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
    }
    other = _byte_level(draw)
    kept = draw.sample([*plain], len(plain) - draw.choice([0, 1, 2]))
    if draw.random() < 0.6:  # nor is another token added
        size = len(vocabulary_of("bytes")["vocab"])
        special = end | {"id": size, "content": END, "special": True}
        other |= {"model": vocabulary_of("bytes"), "added_tokens": [special]}
    return other | {key: plain[key] for key in kept}


def _byte_level(draw: Random) -> Json:
    model = vocabulary_of("bytes") | {"ignore_merges": draw.random() < 0.3}
    if draw.random() < 0.3:
        model |= {"dropout": 0.3}
    if draw.random() < 0.2:
        _damage(draw, model)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": draw.random() < 0.2,
        "trim_offsets": True,
    }
    if draw.random() < 0.5:
        splitter: Json = byte_level | {"use_regex": draw.random() < 0.9}
    else:
        cut = _split(draw) | {
            "behavior": draw.choice(["Isolated"] * 4 + ["Removed", "MergedWithPrevious"])
        }
        splitter = {"type": "Sequence", "pretokenizers": [cut, byte_level | {"use_regex": False}]}
    content = _with(
        draw, model, normalizer=draw.choice([None] * 4 + [{"type": "NFC"}]), pre_tokenizer=splitter
    )
    return content | {"decoder": byte_level | {"use_regex": True}}


def _damage(draw: Random, model: Json) -> None:
    """A vocabulary that no training gives: merges in another order, or a letter less."""
    if draw.random() < 0.5:
        model["merges"] = draw.sample(model["merges"], len(model["merges"]))
    else:
        missing = draw.choice("aeĠ0")
        model["merges"] = [m for m in model["merges"] if missing not in "".join(m)]
        kept = [t for t in model["vocab"] if missing not in t]
        model["vocab"] = {token: index for index, token in enumerate(kept)}


def _with(draw: Random, model: Json, **parts: Any) -> Json:
    tokens = [t for t, _ in model["vocab"]] if model["type"] == "Unigram" else [*model["vocab"]]
    added: list[Json] = []
    names = {END: True} | {
        n: draw.random() < 0.2 for n in draw.sample(ADDED, draw.choice([0, 0, 0, 1, 3]))
    }
    for name, special in names.items():
        index = tokens.index(name) if name in tokens else len(tokens)
        tokens += [name] if index == len(tokens) else []
        flags = {f: draw.random() < 0.25 for f in ("single_word", "lstrip", "rstrip", "normalized")}
        added.append({"id": index, "content": name, "special": special, **flags})
    return {
        "version": "1.0",
        "truncation": draw.choice([None] * 3 + [_TRUNCATION]),
        "padding": draw.choice([None] * 3 + [_PADDING]),
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "post_processor": _post_processor(draw),
        "decoder": _sequence(draw, _decoder, "decoders"),
        "model": model,
        **parts,
    }


_TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
_PADDING = {
    "strategy": {"Fixed": 13},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "x",
}


def _sequence(draw: Random, one: Any, key: str) -> Json | None:
    number = draw.choice([0, 1, 1, 2, 3])
    inner = [one(draw) for _ in range(number)]
    return None if not inner else inner[0] if number == 1 else {"type": "Sequence", key: inner}


def _normalizer(draw: Random) -> Json:
    flag = draw.random() < 0.5
    return draw.choice(
        [
            *(
                {"type": kind}
                for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt")
            ),
            {"type": "Strip", "strip_left": flag, "strip_right": True},
            {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": flag,
                "strip_accents": draw.choice([None, True]),
                "lowercase": flag,
            },
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
            {"type": "Prepend", "prepend": "▁"},
            {"type": "ByteLevel"},
        ]
    )


def _split(draw: Random) -> Json:
    behaviors = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
    pattern = (
        {"Regex": draw.choice(PATTERNS)}
        if draw.random() < 0.8
        else {"String": draw.choice([" ", "e"])}
    )
    return {
        "type": "Split",
        "pattern": pattern,
        "behavior": draw.choice(behaviors),
        "invert": draw.random() < 0.2,
    }


def _splitters(draw: Random) -> Json | None:
    return _sequence(draw, _splitter, "pretokenizers")


def _splitter(draw: Random) -> Json:
    flag = draw.random() < 0.5
    return draw.choice(
        [
            _split(draw),
            {
                "type": "ByteLevel",
                "add_prefix_space": flag,
                "trim_offsets": True,
                "use_regex": draw.random() < 0.5,
            },
            {
                "type": "Metaspace",
                "replacement": draw.choice("▁▁▁_"),
                "prepend_scheme": draw.choice(["always", "never", "first"]),
                "split": flag,
            },
            *(
                {"type": kind}
                for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts")
            ),
            {"type": "Punctuation", "behavior": draw.choice(["Isolated", "Removed", "Contiguous"])},
            {"type": "Digits", "individual_digits": flag},
            {"type": "CharDelimiterSplit", "delimiter": "e"},
            {"type": "FixedLength", "length": 5},
        ]
    )


def _decoder(draw: Random) -> Json:
    return draw.choice(
        [
            {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            },
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            {"type": "WordPiece", "prefix": "##", "cleanup": True},
            {"type": "BPEDecoder", "suffix": "</w>"},
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            {"type": "CTC", "pad_token": "x", "word_delimiter_token": "|", "cleanup": True},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
    )


def _post_processor(draw: Random) -> Json | None:
    template = [
        {"SpecialToken": {"id": END, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    return draw.choice(
        [
            None,
            {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": False,
                "use_regex": True,
            },
            {"type": "BertProcessing", "sep": [END, 0], "cls": [END, 0]},
            {
                "type": "RobertaProcessing",
                "sep": [END, 0],
                "cls": [END, 0],
                "trim_offsets": True,
                "add_prefix_space": True,
            },
            {
                "type": "TemplateProcessing",
                "single": template,
                "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
            },
        ]
    )


def _bpe(draw: Random) -> Json:
    model = vocabulary_of(draw.choice(["bytes", "marked", "plain"]))
    model |= {flag: draw.random() < 0.3 for flag in ("fuse_unk", "byte_fallback", "ignore_merges")}
    if model["byte_fallback"] and draw.random() < 0.8:
        model["vocab"] |= {token: len(model["vocab"]) + i for i, token in enumerate(BYTES)}
    if draw.random() < 0.4:
        model["unk_token"] = "<unk>"
        model["vocab"]["<unk>"] = len(model["vocab"])
    if draw.random() < 0.2:
        model["dropout"] = 0.2
    return model


def _unigram(draw: Random) -> Json:
    words = [*vocabulary_of(draw.choice(["marked", "plain", "bytes"]))["vocab"]]
    vocab = [["<unk>", 0.0], ["</s>", 0.0], *([w, -1.0 - i / 7] for i, w in enumerate(words))]
    fallback = draw.random() < 0.5
    vocab += [[token, 0.0] for token in BYTES] if fallback else []
    return {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": fallback}


def _wordpiece(draw: Random) -> Json:
    words = [*vocabulary_of("plain")["vocab"]]
    prefix = draw.choice(["##", "##", "@@"])
    vocab = ["[UNK]", *words, *(prefix + w for w in words if prefix + w not in words)]
    return {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": prefix,
        "max_input_chars_per_word": draw.choice([5, 100]),
        "vocab": {token: index for index, token in enumerate(vocab)},
    }


def _wordlevel(draw: Random) -> Json:
    vocab = ["[UNK]", "the", "The", "!", "then", "日本", "##", "12", "</s>", " ", "▁the"]
    return {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {t: i for i, t in enumerate(vocab)}}


@cache
def _trained(kind: str) -> str:
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = {
        "bytes": hf.pre_tokenizers.ByteLevel(add_prefix_space=False),
        "marked": hf.pre_tokenizers.Metaspace(),
        "plain": hf.pre_tokenizers.WhitespaceSplit(),
    }[kind]
    alphabet = [*byte_letters()] if kind == "bytes" else [" ", "▁", "\n"]
    trainer = hf.trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=sorted(alphabet), min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def vocabulary_of(kind: str) -> Json:
    """A copy of the model that was trained on CORPUS: its letters are bytes, or spaces are `▁`."""
    model: Json = json.loads(_trained(kind))["model"]
    return model
