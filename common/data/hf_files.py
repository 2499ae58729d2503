"""Files of a hub repository: check disk space and verify downloads."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.data.hf_errors import AGAIN, Kind
from common.errors import DownloadError
from common.utils.files import sha256_of
from common.utils.paths import display_path


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it.

    Args:
        size: in bytes.
        sha256: hash of content stored outside git (LFS, Xet); else None.
        git_id: id of the git blob, which is the content if `sha256` is None.
    """

    path: str
    size: int
    sha256: str | None
    git_id: str

    def is_whole(self, path: Path) -> bool:
        """Whether the file at `path` has the same content as on the hub; reads all of it."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            return sha256_of(path) == self.sha256
        return _git_id(path) == self.git_id


def _git_id(path: Path) -> str:
    from hashlib import sha1

    content = path.read_bytes()  # files outside LFS are small
    return sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def list_files(kind: Kind, name: str, commit: str, endpoint: str) -> list[HubFile]:
    """All files of a repository at `commit`."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = HfApi(endpoint=endpoint).list_repo_tree(
        name, recursive=True, revision=commit, repo_type=kind
    )
    return [
        HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in entries
        if isinstance(entry, RepoFile)
    ]


def check_space(needed: Mapping[Path, int]) -> None:
    """Raise DownloadError unless the disk of each folder, which need not exist, has that many bytes free.

    Sizes of folders on one disk are summed.
    """
    wanted: defaultdict[int, int] = defaultdict(int)
    places: dict[int, Path] = {}
    for folder, size in needed.items():
        place = next(path for path in (folder, *folder.parents) if path.exists())
        wanted[place.stat().st_dev] += size
        places.setdefault(place.stat().st_dev, place)
    for device, size in wanted.items():
        free = shutil.disk_usage(places[device]).free
        if size > free:
            raise DownloadError(
                f"not enough disk space at {display_path(places[device])}: "
                f"needed {in_units(size)}, free {in_units(free)}",
                "free some space, or set RESEARCH_ASSETS_DIR and HF_HOME to another disk",
            )


def in_units(size: int) -> str:
    """1234567890 -> '1.2 GB'"""
    amount = float(size)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.1f} GB"


def check_arrived(kind: Kind, name: str, arrived: Iterable[tuple[HubFile, Path]]) -> None:
    """Raise DownloadError unless every file exists with the content of the hub.

    A damaged file is removed, and also the target if it is a link.
    """
    damaged = []
    for file, path in arrived:
        if not path.is_file():
            raise DownloadError(f"file '{file.path}' of {kind} '{name}' is missing", AGAIN)
        if not file.is_whole(path):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            damaged.append(file.path)
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise DownloadError(
            f"file '{damaged[0]}'{more} of {kind} '{name}' has a wrong checksum and was removed",
            AGAIN,
        )
