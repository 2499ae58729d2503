"""Tags and a note that can be changed at any time, beside the experiment that never changes.

`<name>.notes.json`: {"tags": ["baseline"], "note": "the one in the talk"}. What it says takes the
place of the tags that the run was started with.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from filelock import FileLock

from common.errors import ExperimentError
from common.utils.experiment_storage import store
from common.utils.experiment_storage.catalogue import Catalogue
from common.utils.files import write_json_atomic
from common.utils.paths import get_experiments_dir


def annotate_experiment(
    name: str,
    *,
    add_tags: Collection[str] = (),
    remove_tags: Collection[str] = (),
    note: str | None = None,
) -> dict[str, Any]:
    """Change the tags and the note ("" removes it) of an experiment, live or finished.

    Returns {"tags": [...], "note": ...} as they are now. Raises ExperimentError for an unknown
    experiment, an empty tag, and the removal of a tag that it does not have.
    """
    with FileLock(get_experiments_dir() / f".{name}.notes.lock"):
        manifest = Catalogue().manifest(name)
        tags = list(manifest["tags"])
        for tag in remove_tags:
            if tag not in tags:
                has = ", ".join(tags) or "none"
                raise ExperimentError(f"'{name}' has no tag '{tag}'", f"its tags: {has}")
            tags.remove(tag)
        for tag in add_tags:
            if not tag.strip():
                raise ExperimentError("a tag cannot be empty", "give it a word")
            if tag not in tags:
                tags.append(tag)
        text = note
        if text is None:
            text = before if isinstance(before := manifest.get("note"), str) else ""
        annotations = {"tags": tags, "note": text}
        write_json_atomic(store.annotations_path(name), annotations)
    return annotations
