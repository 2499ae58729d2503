"""Recovery: finish runs whose process was killed while finishing.

Readers do not do this; commands that modify the store call `open_catalogue`.
"""

from __future__ import annotations

from pathlib import Path

from filelock import Timeout

from common.experiments.catalogue import Catalogue
from common.experiments.log import read_log
from common.experiments.store import free_parquet_path, lock_of, log_path, parquet_path
from common.utils.manifest import identity, unique_name


def open_catalogue() -> Catalogue:
    """Finish the work of killed processes, and open the catalogue with a refreshed cache."""
    catalogue = Catalogue(refresh=True)
    if any([_complete_finish(name) for name in catalogue.begun_finishes()]):
        catalogue = Catalogue(refresh=True)
    return catalogue


def _complete_finish(name: str) -> bool:
    """Finish a run whose process was killed while finishing; return False if another process does,
    or if it fails (full disk, read-only store), which is safe since the log has the same
    content."""
    lock = lock_of(name)
    try:
        with lock.acquire(blocking=False):
            if log_path(name).exists() and not _is_stored(name):
                finish_log(name)
            Path(lock.lock_file).unlink(missing_ok=True)
    except (Timeout, OSError, ValueError):  # ValueError: the file of that name is damaged
        return False
    return True


def finish_log(name: str) -> Path:
    """Convert the log of `name` to its Parquet file; a crash in between loses nothing."""
    from common.experiments.parquet import write_parquet

    content = read_log(log_path(name))
    path = free_parquet_path(name, identity(content.manifest))
    write_parquet(content.manifest, content.iter_rows(), content.metrics, path)
    log_path(name).unlink(missing_ok=True)  # check_store may have been faster
    return path


def _is_stored(name: str) -> bool:
    """Whether the run in the log of `name` is already stored in a file."""
    from common.experiments.parquet import read_manifest

    identifier = identity(read_log(log_path(name)).manifest)
    paths = (parquet_path(name), parquet_path(unique_name(name, identifier)))
    return any(path.exists() and identity(read_manifest(path)) == identifier for path in paths)
