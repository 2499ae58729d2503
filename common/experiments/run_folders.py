"""The run folder (checkpoints, samples) of an experiment, identified by id rather than name.

If several experiments share a name, the id in `runs/<name>/manifest.json` gives the owner.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.experiments.catalogue import Catalogue
from common.utils.manifest import identity, unique_name
from common.utils.paths import get_runs_dir


def folder_of(name: str) -> Path:
    """Path of the run folder of experiment `name`, existing or not."""
    catalogue = Catalogue()
    if not (places := catalogue.places("name = ?", name)):
        return get_runs_dir() / name
    (place,) = places
    folder = run_folder(catalogue, place.stored, place.id)
    is_taken = folder is None and (get_runs_dir() / place.stored).exists()
    aside = unique_name(place.stored, place.id) if is_taken else place.stored
    return folder or get_runs_dir() / aside


def run_folder(catalogue: Catalogue, name: str, identifier: str) -> Path | None:
    """The run folder of an experiment; if two share a name, only one owns it."""
    folder = get_runs_dir() / name
    if not (folder.is_dir() or folder.is_symlink()):
        return None
    found = folder_id(folder)
    others = catalogue.places("stored = ? AND id <> ?", name, identifier)
    return folder if found == identifier or (found is None and not others) else None


def folder_id(folder: Path) -> str | None:
    """The id of the experiment that owns the folder; None if not recorded."""
    try:
        manifest: Any = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return identity(manifest) if isinstance(manifest, dict) else None
