"""Text sources: files, datasets of the hub, and three built-in ones.

Those are the Python standard library, generated stories and generated speeches.
"""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.data.config import DataConfig
from common.data.documents import Corpus, Document
from common.data.nanogpt import is_nanogpt, nanogpt_documents
from common.data.sources import dataset_names
from common.data.text_files import TextFiles, check_column, check_text, digest_of_stamps, value_of
from common.errors import DataError, did_you_mean
from common.utils.paths import folder_of, get_datasets_dir

_HUB_SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val"}


def open_corpus(config: DataConfig) -> Corpus:
    """Open the corpus named by `config`; download it if `config.hub` is set.

    Raises:
        DataError: it does not exist, or has no text.
        DownloadError: the hub does not have it, or cannot be reached.
    """
    if config.streaming:
        assert config.hub is not None
        return _streamed(config.hub, config.text_column)
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
            f"no dataset '{config.dataset}' in {get_datasets_dir()}",
            f"{did_you_mean(config.dataset, dataset_names())} Or download one with: "
            "python tools/download_hf_dataset.py --name OWNER/NAME",
        )
    if any((directory / name).exists() for name in ("dataset_dict.json", "dataset_info.json")):
        return _saved_dataset(directory, config.text_column)
    return _open_path(directory, config.text_column)


def _python_stdlib() -> Corpus:
    """The Python files of the interpreter's standard library, without tests and installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}
    files = [p for p in sorted(root.rglob("*.py")) if not left_out & set(p.relative_to(root).parts)]
    if not files:
        raise DataError(f"no Python files in the standard library at {root}")
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


def _saved_dataset(directory: Path, text_column: str) -> Corpus:
    """A dataset written by `save_to_disk`, with its own splits if it has them."""
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(directory)
    tables = loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
    tables = {name: rows for name, rows in tables.items() if name in _HUB_SPLITS}
    if not tables:
        raise DataError(f"{directory.name} has no split 'train' (it has: {', '.join(loaded)})")
    has_validation = any(_HUB_SPLITS[name] == "val" for name in tables)
    used = [(_HUB_SPLITS[n] if has_validation else None, rows) for n, rows in tables.items()]
    for _, rows in used:
        check_column(text_column, rows.column_names, directory.name)

    def documents() -> Iterator[Document]:
        for number, (split, rows) in enumerate(used):
            columns = rows.select_columns([text_column])
            table = (row for batch in columns.iter(batch_size=1000) for row in batch[text_column])
            yield from _documents(table, text_column, directory.name, str(number), split)

    files = [Path(file["filename"]) for _, rows in used for file in rows.cache_files]
    fingerprint = {
        "path": str(directory.resolve()),
        "rows": [[split, rows._fingerprint] for split, rows in used],
        "files": digest_of_stamps((file.name, file) for file in files),
        "column": text_column,
    }
    return Corpus(directory.name, fingerprint, documents)


def _streamed(hub: str, text_column: str) -> Corpus:
    """Stream the rows of one commit from the hub; only the tokens are stored."""
    from common.data.hub_stream import stream_dataset

    name, commit, tables = stream_dataset(hub)
    has_validation = any(_HUB_SPLITS.get(split) == "val" for split in tables)

    def documents() -> Iterator[Document]:
        for key, rows in tables.items():
            if key == "test":
                continue
            split = _HUB_SPLITS.get(key) if has_validation else None
            values = (value_of(row, text_column, hub) for row in rows)
            yield from _documents(values, text_column, hub, key, split)

    return Corpus(name, {"hub": hub, "commit": commit, "column": text_column}, documents)


def _documents(
    values: Iterable[object], text_column: str, dataset: str, key: str, split: str | None
) -> Iterator[Document]:
    """The rows of one split that have text."""
    for index, value in enumerate(values):
        text = check_text(value, text_column, f"{dataset}, row {index}")
        if text is not None:
            yield Document(f"{key}:{index}", text, split)
