"""Text -> token files, once.

    DataConfig --open_corpus--> documents --split_documents--> train or val --encode_documents--> token files
                                    |                                              |
                                    +------------- learn_vocabulary ------> tokenizer

Token files are in assets/datasets/<dataset>/tokens/<tokenizer>-<digest of the recipe>/. The recipe
is everything that determines their content: the source with its path, options and the stamps of its
files, the tokenizer, the split. The folder is built under a temporary name, renamed when complete,
and never changed: open files remain valid, and a read-only folder suffices.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.data.config import DataConfig
from common.data.corpora import open_corpus
from common.data.documents import Corpus, reading_progress
from common.data.encoding import Totals, dtype_of, encode_documents
from common.data.splits import SPLITS, split_documents
from common.data.token_files import TokenDataset, TokenMixture, open_tokens
from common.data.tokenizers import (
    TRAINABLE,
    TiktokenTokenizer,
    Tokenizer,
    find_tokenizer,
    find_tokenizer_file,
    load_tokenizer,
)
from common.data.vocabulary import learn_vocabulary
from common.errors import DataError, ResearchError
from common.utils.file_locks import file_lock
from common.utils.files import publish_folder, read_json, sha256_of, write_json_atomic
from common.utils.logging import get_logger
from common.utils.manifest import now
from common.utils.paths import get_datasets_dir, get_tokenizers_dir

_RECIPE_VERSION = 2  # raise it when the same recipe gives other bytes than before
_PROGRESS_VERSION = 2  # raise it when this code cannot resume an older interrupted preparation
_VERSIONS = {name: version(name) for name in ("numpy", "tokenizers")}


def prepare(config: DataConfig) -> TokenDataset:
    """Return the token files of `config`; create them if they do not exist.

    Raises:
        DataError: the source is missing, empty, damaged or too short to be split.
    """
    return _prepare_mixture(config) if config.mixture else _prepare_source(config)


def _prepare_source(config: DataConfig) -> TokenDataset:
    corpus = open_corpus(config)
    recipe = _recipe(corpus, config)
    folder = get_datasets_dir() / corpus.name / "tokens" / f"{_label(config)}-{_digest(recipe)}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(folder.parent / f".{folder.name}.lock"):  # only one process prepares
            if not folder.exists():
                _build(corpus, config, recipe, folder)
    return open_tokens(folder)


def _prepare_mixture(config: DataConfig) -> TokenMixture:
    """Prepare each source of `config.mixture`. A trained vocabulary is learned from all of them."""
    configs = {name: _source_config(config, name) for name in config.mixture}
    if config.tokenizer in TRAINABLE:
        name = _common_vocabulary(config, [open_corpus(each) for each in configs.values()])
        update = {"tokenizer": "pretrained", "pretrained_tokenizer": name}
        configs = {name: each.model_copy(update=update) for name, each in configs.items()}
    sources = {name: _prepare_source(each) for name, each in configs.items()}
    first = next(iter(sources.values()))
    splits = {
        split: {
            key: sum(data.meta["splits"][split][key] for data in sources.values())
            for key in ("tokens", "bytes", "documents")
        }
        for split in SPLITS
    }
    meta = {**first.meta, "dataset": " + ".join(sources), "splits": splits}
    return TokenMixture(first.directory, first.tokenizer, meta, {}, sources, dict(config.mixture))


def _source_config(config: DataConfig, name: str) -> DataConfig:
    path = Path(name).expanduser()
    source = {"path": path.resolve()} if path.exists() else {"dataset": name, "path": None}
    return config.model_copy(update={**source, "mixture": {}})


def _common_vocabulary(config: DataConfig, corpora: list[Corpus]) -> str:
    """Return the name in assets/tokenizers of the vocabulary of all `corpora`; learn it if it does not exist."""
    facts = [config.tokenizer, config.vocab_size, [corpus.fingerprint for corpus in corpora]]
    name = f"mixture_{config.tokenizer}_{_digest(facts)}"
    path = get_tokenizers_dir() / name / "tokenizer.json"
    if not path.exists():
        learn_vocabulary(config.tokenizer, config.vocab_size, corpora).save(path)
    return name


def _recipe(corpus: Corpus, config: DataConfig) -> dict[str, Any]:
    return {
        "version": _RECIPE_VERSION,
        "source": corpus.fingerprint,
        "tokenizer": _tokenizer_recipe(config),
        "val_fraction": config.val_fraction,
        "split_by": config.split_by,
        "seed": config.seed,
    }


def _tokenizer_recipe(config: DataConfig) -> dict[str, Any]:
    """What determines the tokenizer, besides the text."""
    kind = config.tokenizer
    if kind == "char":
        return {"kind": kind}
    if kind in TRAINABLE:
        return {"kind": kind, "vocab_size": config.vocab_size}
    if kind == "tiktoken":
        return {"kind": kind, "name": config.encoding}
    name = str(config.pretrained_tokenizer)
    file = find_tokenizer_file(name)
    files = (file, file.with_name("tokenizer_config.json"))
    return {"kind": kind, "name": name, "sha256": [sha256_of(f) for f in files if f.is_file()]}


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _label(config: DataConfig) -> str:
    detail = {
        "char": "",
        "tiktoken": config.encoding,
        "pretrained": (config.pretrained_tokenizer or "").strip("/").replace("/", "--"),
    }.get(config.tokenizer, str(config.vocab_size))
    return "_".join(part for part in (config.tokenizer, detail) if part)


def _build(corpus: Corpus, config: DataConfig, recipe: dict[str, Any], folder: Path) -> None:
    """Create `folder`, or resume an interrupted preparation."""
    started = time.monotonic()
    building = folder.with_name(f".{folder.name}.building")
    _resume_or_clear(building, corpus, recipe)
    try:
        tokenizer = _make_tokenizer(corpus, config, building / "tokenizer.json")
        splits = _encode(corpus, config, tokenizer, building)
        _check_unchanged(config, recipe)
    except ResearchError:
        shutil.rmtree(building, ignore_errors=True)
        raise
    meta = {
        "dataset": corpus.name,
        "recipe": recipe,
        "tokenizer": config.tokenizer,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype_of(tokenizer),
        "splits": splits,
        "tokenizer_sha256": sha256_of(building / "tokenizer.json"),
        "versions": _VERSIONS,
        "created": now(),
    }
    write_json_atomic(building / "meta.json", meta)
    for name in ("recipe.json", "progress.json"):
        (building / name).unlink(missing_ok=True)
    publish_folder(building, folder)
    num_bytes, num_tokens = (sum(s[key] for s in splits.values()) for key in ("bytes", "tokens"))
    get_logger("data").info(
        f"prepared {corpus.name}: {num_bytes / 1e6:,.1f} MB of text, {num_tokens:,} tokens, "
        f"in {time.monotonic() - started:.1f} s"
    )


def _resume_or_clear(building: Path, corpus: Corpus, recipe: dict[str, Any]) -> None:
    """Keep an interrupted preparation only if it has the same recipe and software."""
    facts = recipe | {"versions": _VERSIONS, "progress": _PROGRESS_VERSION}
    path = building / "recipe.json"
    if path.exists() and read_json(path, DataError) == json.loads(json.dumps(facts)):
        get_logger("data").info(f"resuming the preparation of {corpus.name}")
        return
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    write_json_atomic(path, facts)


def _make_tokenizer(corpus: Corpus, config: DataConfig, path: Path) -> Tokenizer:
    """Find or train the tokenizer of `config`, and save it to `path`."""
    if path.exists():  # left by a killed process
        return load_tokenizer(path)
    if config.tokenizer == "tiktoken":
        tokenizer: Tokenizer = TiktokenTokenizer.named(config.encoding)
    elif config.tokenizer == "pretrained":
        tokenizer = find_tokenizer(str(config.pretrained_tokenizer))
    else:
        tokenizer = learn_vocabulary(config.tokenizer, config.vocab_size, [corpus])
    if tokenizer.vocab_size < 2:
        raise DataError(f"{corpus.name} has no text", "choose another data.path or dataset")
    if tokenizer.loses:
        get_logger("data").warning(f"decoding does not restore every text: {tokenizer.loses}")
    tokenizer.save(path)
    return tokenizer


def _encode(
    corpus: Corpus, config: DataConfig, tokenizer: Tokenizer, directory: Path
) -> dict[str, Any]:
    """Write train.bin and val.bin; return their entries in meta.json."""
    num_bytes = corpus.num_bytes() if corpus.num_bytes else None
    with reading_progress(f"preparing {corpus.name}: encoding", num_bytes) as watch:
        documents = split_documents(
            corpus,
            watch(corpus.documents()),
            split_by=config.split_by,
            val_fraction=config.val_fraction,
            seed=config.seed,
        )
        totals = encode_documents(documents, tokenizer, directory, os.cpu_count() or 1)
    for split, total in totals.items():
        if total.num_tokens < 2:
            raise DataError(
                f"the {split} split of {corpus.name} is empty",
                "provide more text, or set another data.val_fraction",
            )
    return {split: _facts(totals[split], directory / f"{split}.bin") for split in SPLITS}


def _facts(total: Totals, path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "tokens": total.num_tokens,
        "bytes": total.num_bytes,
        "documents": total.num_documents,
        "sha256": sha256_of(path),
    }
    if total.num_bytes and not math.isnan(total.surprisal):
        facts["floor_bits_per_byte"] = total.surprisal / math.log(2) / total.num_bytes
    return facts


def _check_unchanged(config: DataConfig, recipe: dict[str, Any]) -> None:
    """Raise DataError if a file changed while it was read."""
    if config.streaming:
        return  # rows of one commit of the hub
    if _recipe(open_corpus(config), config) != recipe:
        raise DataError(
            "the text or its tokenizer changed during preparation",
            "run the same command again once nothing writes to it",
        )
