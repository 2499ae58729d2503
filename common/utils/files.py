"""Atomic writing: a crash leaves the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import ResearchError


def fsync_dir(directory: Path) -> None:
    """Fsync `directory`, so that renames in it survive a power loss (a no-op where folders cannot be opened)."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Fsync a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def named_in_errors(path: Path | str) -> Iterator[None]:
    """Add `path` to an OSError of the block that names no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds, fsync it and rename it to `path`.

    On any error (such as a full disk) the temporary file is removed and `path` is unchanged; an
    OSError names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named_in_errors(path):
            yield temporary
            fsync_file(temporary)
            temporary.replace(path)
            fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; when the block succeeds, `publish_folder` it as `path`.

    On any error the new folder is removed and `path` is unchanged; an OSError names `path`.
    """
    building = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)  # of a killed process with the same pid
    try:
        with named_in_errors(path):
            building.mkdir(parents=True)
            yield building
            publish_folder(building, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def publish_folder(building: Path, path: Path, replaced: Path | None = None) -> None:
    """Fsync every file of the folder `building`, then rename it to `path`.

    Raises OSError if `path` is a non-empty folder, unless it is moved to `replaced`, an unused
    name. A kill between the two renames leaves only `replaced`.
    """
    for file in building.rglob("*"):
        if file.is_dir():
            fsync_dir(file)
        elif not file.is_symlink():
            fsync_file(file)
    fsync_dir(building)
    if replaced is not None and path.exists():
        path.rename(replaced)
    building.rename(path)
    fsync_dir(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8 atomically, see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as JSON, see `atomic_path`."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if (
        text.encode(errors="ignore").decode() != text
    ):  # bytes that are not UTF-8, in a diff or a path
        text = json.dumps(value, indent=2)
    write_text_atomic(path, text + "\n")


def read_json(path: Path, error: type[ResearchError], hint: str = "") -> Any:
    """Parse the JSON file `path`; raise `error` with the path and the reason."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:  # the last: deeply nested brackets
        raise error(f"cannot read {path}: {cause}", hint) from cause


def stamp_of(status: os.stat_result) -> list[int]:
    """Stamp that changes with the content of a file: size, mtime, ctime (ns). ctime also changes
    when a copy restores the other two, as `cp -p` and `tar` do.
    """
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    import hashlib  # loads OpenSSL: 10 ms

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
