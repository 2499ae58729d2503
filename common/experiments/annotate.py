"""Change tags, note and archive mark of an experiment."""

from __future__ import annotations

from collections.abc import Collection

from common.errors import ExperimentError
from common.experiments.annotations import Annotation, annotations_path
from common.experiments.catalogue import Catalogue
from common.experiments.log import append_records
from common.utils.file_locks import file_lock
from common.utils.paths import get_experiments_dir
from common.utils.plain import NO_TEXT, is_text


def annotate_experiment(
    name: str,
    *,
    add_tags: Collection[str] = (),
    remove_tags: Collection[str] = (),
    note: str | None = None,
    archived: bool | None = None,
) -> Annotation:
    """Change the tags, the note ("" removes it) or the archive mark of an experiment, live or finished.

    An archived experiment is hidden from lists and rankings. Returns the new annotations.
    Raises ExperimentError for an unknown experiment, an empty tag, a tag or note that is not text,
    and the removal of a missing tag.
    """
    if note is not None:
        check_text(note, "a note")
    get_experiments_dir().mkdir(parents=True, exist_ok=True)
    with file_lock(get_experiments_dir() / "._annotations.lock"):
        catalogue = Catalogue()
        before, identifier = catalogue.annotation(name), catalogue.place(name).id
        after = Annotation(
            _changed_tags(name, before.tags, add_tags, remove_tags),
            before.note if note is None else note,
            before.archived if archived is None else archived,
        )
        record = {"kind": "annotate", "name": name, "id": identifier, **after._asdict()}
        append_records(annotations_path(), [record])
    return after


def check_text(text: str, what: str) -> None:
    """Raise ExperimentError if `text` is not text."""
    if not is_text(text):
        raise ExperimentError(
            f"{what} must be text: {text!r} is not UTF-8, or contains NUL", NO_TEXT
        )


def _changed_tags(
    name: str, before: list[str], add: Collection[str], remove: Collection[str]
) -> list[str]:
    tags = list(before)
    for tag in remove:
        if tag not in tags:
            has = ", ".join(tags) or "none"
            raise ExperimentError(f"'{name}' has no tag '{tag}'", f"its tags: {has}")
        tags.remove(tag)
    for tag in add:
        if not tag.strip():
            raise ExperimentError("a tag cannot be empty", "pass a word")
        check_text(tag, "a tag")
        if tag not in tags:
            tags.append(tag)
    return tags
