"""Find and load tokenizers from a file, a folder or a name."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import tokenizers as hf

from common.data.tokenizers.base import Tokenizer, check_ids, engine_errors
from common.data.tokenizers.bpe import BPETokenizer
from common.data.tokenizers.char import CharTokenizer
from common.data.tokenizers.pretrained import PretrainedTokenizer
from common.data.tokenizers.sentence_piece import SentencePieceTokenizer
from common.data.tokenizers.tiktoken_encoding import TiktokenTokenizer
from common.errors import DataError, did_you_mean
from common.utils.files import read_json
from common.utils.paths import get_models_dir, get_tokenizers_dir

_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")
_LARGEST_BYTES = 200_000_000  # the largest known vocabularies have 35 MB


def find_tokenizer(where: str) -> Tokenizer:
    """See `find_tokenizer_file`."""
    return load_tokenizer(find_tokenizer_file(where))


def find_tokenizer_file(where: str) -> Path:
    """Find the tokenizer file of `where`: a file, a folder, a name in assets, or OWNER/NAME of the hub.

    Searches assets/tokenizers and assets/models; a missing hub tokenizer is downloaded. Raises
    DataError and DownloadError.
    """
    of_hub = where.count("/") == 1 and not where.startswith((".", "/", "~"))
    model = get_models_dir() / where.replace("/", "--")
    for path in (Path(where).expanduser(), get_tokenizers_dir() / where, model):
        if path.is_file():
            return path
        if path.is_dir() and (path != model or not of_hub or _holds_tokenizer(path)):
            return _file_in(path)
    if of_hub:
        from common.data.hf_utils import download_model

        return _file_in(download_model(where, allow_patterns=[*_FILES, "tokenizer_config.json"]))
    folders = [*get_tokenizers_dir().glob("[!.]*"), *get_models_dir().glob("[!.]*")]
    trained = [p.name.replace("--", "/") for p in folders if p.is_dir()]
    raise DataError(
        f"no tokenizer '{where}'",
        (did_you_mean(where, trained) + "; or " if trained else "")
        + "pass a folder, a tokenizer.json, or OWNER/NAME of the hub",
    )


def _holds_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES)


def _file_in(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder} has no tokenizer", f"expected one of {', '.join(_FILES)}")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer written by `save`, or in Hugging Face or SentencePiece format.

    Raises DataError for a missing, damaged or unknown file. Executes nothing.
    """
    path = Path(path)
    if path.exists() and path.stat().st_size > _LARGEST_BYTES:
        raise DataError(f"{path} is too large for a tokenizer: {path.stat().st_size:,} bytes")
    if path.suffix == ".model":
        with engine_errors(f"reading {path}"):
            return SentencePieceTokenizer(path.read_bytes())
    content: Any = read_json(path, DataError, "prepare the dataset again")
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a tokenizer")
    try:
        with engine_errors("reading it"):
            return _build(content, path)
    except DataError as error:
        raise DataError(f"{path} is not a valid tokenizer: {error.message}", error.hint) from error


def _build(content: dict[str, Any], path: Path) -> Tokenizer:
    kind, model = content.get("type"), content.get("model")
    if kind == "char":
        return CharTokenizer(_text(content["characters"]))
    if kind in ("sentencepiece", "sentencepiece_bpe"):
        return SentencePieceTokenizer(base64.b64decode(content["model"], validate=True))
    if kind == "tiktoken":
        return TiktokenTokenizer.from_content(content)
    if kind == "pretrained":
        return PretrainedTokenizer(_from_content(content["tokenizer"]), str(content["end_of_text"]))
    if not isinstance(model, dict):
        raise DataError("unknown type of tokenizer")
    tokenizer = _from_content(content)
    settings = _settings(path.with_name("tokenizer_config.json"))
    _check_prefix_space(settings, content)
    if BPETokenizer.describes(content):
        return BPETokenizer(tokenizer)
    return PretrainedTokenizer(tokenizer, _end_of_text(settings))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise DataError("its characters are not a string")
    return value


def _from_content(content: dict[str, Any]) -> hf.Tokenizer:
    """Raise DataError for ids that would exhaust memory, and if tokenizers assigns other ids to added tokens."""
    tokenizer = hf.Tokenizer.from_str(json.dumps(content))
    check_ids(tokenizer.get_vocab(with_added_tokens=True).values())
    for token in content.get("added_tokens") or []:
        found = tokenizer.token_to_id(token["content"])
        if found != token["id"]:
            raise DataError(
                f"its added token {token['content']!r} has the id {token['id']}, not {found}"
            )
    return tokenizer


def _settings(path: Path) -> dict[str, Any]:
    """Read tokenizer_config.json, if present. Two of its keys affect encoding here."""
    settings: Any = read_json(path, DataError) if path.is_file() else {}
    if not isinstance(settings, dict):
        raise DataError("its tokenizer_config.json is not an object")
    return settings


def _end_of_text(settings: dict[str, Any]) -> str | None:
    """The token that ends a text."""
    found = settings.get("eos_token")
    found = found.get("content") if isinstance(found, dict) else found
    return found if isinstance(found, str) else None


# Classes of transformers that prepend a space by tokenizer_config.json, not by tokenizer.json.
_SPACING_CLASSES = re.compile(r"(GPT2|Qwen2|Roberta)Tokenizer(Fast)?")


def _check_prefix_space(settings: dict[str, Any], content: dict[str, Any]) -> None:
    """Raise DataError if transformers would encode a text differently from tokenizer.json."""
    if not _SPACING_CLASSES.fullmatch(str(settings.get("tokenizer_class"))):
        return
    steps = content.get("pre_tokenizer") or {}
    for step in steps.get("pretokenizers") or [steps]:
        asked, has = settings.get("add_prefix_space", False), step.get("add_prefix_space", False)
        if step.get("type") == "ByteLevel" and bool(asked) != bool(has):
            raise DataError(
                f"its tokenizer_config.json has add_prefix_space={asked!r}, it has {has!r}",
                "set both to the value that the model was trained with",
            )
