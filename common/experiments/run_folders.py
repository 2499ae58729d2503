"""The folder of a run (checkpoints, samples), which is that of an experiment and not of a name.

`runs/<name>/manifest.json` says by its id whose folder it is, where several experiments have the name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.experiments.catalogue import Catalogue
from common.utils.manifest import identity, unique_name
from common.utils.paths import get_runs_dir


def folder_of(name: str) -> Path:
    """Where the folder of the experiment that is called `name` is, or would be."""
    catalogue = Catalogue()
    if not (places := catalogue.places("name = ?", name)):
        return get_runs_dir() / name
    (place,) = places
    folder = run_folder(catalogue, place.stored, place.id)
    is_taken = folder is None and (get_runs_dir() / place.stored).exists()
    aside = unique_name(place.stored, place.id) if is_taken else place.stored
    return folder or get_runs_dir() / aside


def run_folder(catalogue: Catalogue, name: str, identifier: str) -> Path | None:
    """The folder with the checkpoints of an experiment: of two of one name it is that of one."""
    folder = get_runs_dir() / name
    if not (folder.is_dir() or folder.is_symlink()):
        return None
    found = folder_id(folder)
    others = catalogue.places("stored = ? AND id <> ?", name, identifier)
    return folder if found == identifier or (found is None and not others) else None


def folder_id(folder: Path) -> str | None:
    """The id of the experiment whose folder it is; None where it does not say so."""
    try:
        manifest: Any = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return identity(manifest) if isinstance(manifest, dict) else None
