"""Named sources of text. Three need no network: the interpreter's own library, made-up stories and speeches.

A corpus is a re-iterable stream of documents. Each document has a key that never changes, so that
the split into train and val depends on the document alone, not on the order or the number of them.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.data.config import DataConfig
from common.data.documents import Corpus, Document
from common.data.nanogpt import is_nanogpt, nanogpt_documents
from common.data.sources import GENERATED
from common.data.text_files import TextFiles, check_text, digest_of_stamps
from common.errors import DataError, did_you_mean
from common.utils.paths import folder_of, get_datasets_dir

_HUB_SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": None}


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus that `config` names. Raises DataError with the way to get it when it is not there."""
    if config.streaming:
        return _streamed(config)
    if config.path is not None:
        return _open_path(config.path, config.text_column)
    if config.dataset == "python_stdlib":
        return _python_stdlib()
    if config.dataset in ("stories", "speeches"):
        return _made_up(config.dataset, config.num_stories, config.seed)
    directory = folder_of(get_datasets_dir(), config.dataset)
    if config.hub is not None:
        from common.data.hf_utils import check_downloaded_from, download_dataset

        if directory.is_dir():
            check_downloaded_from(directory, config.hub)
        else:
            download_dataset(config.hub, output_dir=directory)
    if not directory.is_dir():
        raise DataError(
            f"there is no dataset '{config.dataset}' in {get_datasets_dir()}", _hint(config.dataset)
        )
    if _is_saved_dataset(directory):
        return _saved_dataset(directory, config.text_column)
    return _open_path(directory, config.text_column)


def _hint(name: str) -> str:
    directory = get_datasets_dir()
    found = directory.iterdir() if directory.is_dir() else ()
    folders = [p.name for p in found if p.is_dir() and not p.name.startswith(".")]
    hint = did_you_mean(name, [*GENERATED, *sorted(folders)])
    download = "download one with: python tools/download_hf_dataset.py --name OWNER/NAME"
    return f"{hint} Or {download}"


def choose_split(document: Document, val_fraction: float, seed: int) -> str:
    """`train` or `val`, from the document's key and the seed alone."""
    if document.split is not None:
        return document.split
    digest = hashlib.sha256(f"{seed}:{document.key}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < val_fraction * 2**64 else "train"


def _python_stdlib() -> Corpus:
    """The Python files of the running interpreter's library, without tests and installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}
    files = [p for p in sorted(root.rglob("*.py")) if not left_out & set(p.relative_to(root).parts)]
    if not files:
        raise DataError(f"the interpreter's library at {root} holds no Python files")
    stamps = digest_of_stamps((path.relative_to(root).as_posix(), path) for path in files)
    fingerprint = {"python": platform.python_version(), "path": str(root), "files": stamps}
    return Corpus("python_stdlib", fingerprint, lambda: _read_files(files, root))


def _read_files(files: list[Path], root: Path) -> Iterator[Document]:
    for path in files:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
        yield Document(path.relative_to(root).as_posix(), text)


def _made_up(name: str, count: int, seed: int) -> Corpus:
    from common.data.speeches import generate_speeches
    from common.data.stories import generate_stories

    generate = generate_stories if name == "stories" else generate_speeches

    def documents() -> Iterator[Document]:
        for index, (text, surprisal) in enumerate(generate(count, seed)):
            yield Document(str(index), text, surprisal=surprisal)

    return Corpus(name, {"grammar": 1, name: count, "seed": seed}, documents)


def _open_path(path: Path, text_column: str) -> Corpus:
    if path.is_dir() and is_nanogpt(path):
        read = [path / name for name in ("train.bin", "val.bin", "meta.pkl")]
        stamps = digest_of_stamps((file.name, file) for file in read if file.exists())
        fingerprint = {"nanogpt": str(path.resolve()), "files": stamps}
        return Corpus(path.name, fingerprint, lambda: nanogpt_documents(path))
    files = TextFiles(path, text_column)
    name = path.name if path.is_dir() else path.name.split(".")[0]
    return Corpus(name or "root", files.fingerprint(), files.documents, files.num_bytes)


def _is_saved_dataset(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("dataset_dict.json", "dataset_info.json"))


def _saved_dataset(directory: Path, text_column: str) -> Corpus:
    """A dataset written by `save_to_disk`; its own splits are kept where it has them."""
    from datasets import Dataset, DatasetDict, load_from_disk

    loaded = load_from_disk(directory)
    splits = loaded if isinstance(loaded, DatasetDict) else {None: loaded}
    has_validation = any(_HUB_SPLITS.get(str(name)) == "val" for name in splits)
    used: list[tuple[str | None, Dataset]] = []
    for name, rows in splits.items():
        if text_column not in rows.column_names:
            raise DataError(
                f"{directory.name} has no column '{text_column}'",
                f"set data.text_column; {did_you_mean(text_column, rows.column_names)}",
            )
        split = _HUB_SPLITS.get(str(name)) if name is not None else None
        if name is None or split is not None:
            used.append((split if has_validation else None, rows))
    if not used:
        names = ", ".join(str(name) for name in splits)
        raise DataError(f"{directory.name} has no split 'train' (it has: {names})")

    def documents() -> Iterator[Document]:
        for number, (split, rows) in enumerate(used):
            for index, value in enumerate(_values(rows, text_column)):
                where = f"{directory.name}, row {index}"
                if (text := check_text(value, text_column, where)) is not None:
                    yield Document(f"{number}:{index}", text, split)

    files = [Path(file["filename"]) for _, rows in used for file in rows.cache_files]
    fingerprint = {
        "path": str(directory.resolve()),
        "rows": [[split, rows._fingerprint] for split, rows in used],
        "files": digest_of_stamps((file.name, file) for file in files),
        "column": text_column,
    }
    return Corpus(directory.name, fingerprint, documents)


def _streamed(config: DataConfig) -> Corpus:
    """Rows as the hub sends them, of one commit: nothing of the dataset is kept but its tokens."""
    from common.data.hub_stream import stream_dataset

    assert config.hub is not None
    name, commit, splits = stream_dataset(config.hub)
    has_validation = any(_HUB_SPLITS.get(split) == "val" for split in splits)

    def documents() -> Iterator[Document]:
        for split, rows in splits.items():
            if (place := _HUB_SPLITS.get(split, "")) is None:
                continue
            for index, row in enumerate(rows):
                if config.text_column not in row:
                    raise DataError(
                        f"{config.hub} has no '{config.text_column}'",
                        f"set data.text_column; {did_you_mean(config.text_column, list(row))}",
                    )
                value, where = row[config.text_column], f"{config.hub}, row {index}"
                if (text := check_text(value, config.text_column, where)) is not None:
                    yield Document(
                        f"{split}:{index}", text, (place or None) if has_validation else None
                    )

    return Corpus(
        name, {"hub": config.hub, "commit": commit, "column": config.text_column}, documents
    )


def _values(rows: Any, column: str) -> Iterator[object]:
    for batch in rows.select_columns([column]).iter(batch_size=1000):
        yield from batch[column]
