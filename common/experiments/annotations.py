"""Tags, a note and the archive mark, which can change at any time; the experiment itself never does.

`_annotations.jsonl`, beside the experiments, is a log as those of runs are (see log.py). Each record
holds all that is to be said of one experiment, which its id names (in records of earlier versions its
name); the last one counts, and takes the place of the tags that the run was started with.
{"kind": "forget"} is said of a deleted experiment, which `--sync` does not bring back, and
{"kind": "rename", "new": ...} before an experiment gets another name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from common.errors import ExperimentError
from common.experiments.log import Record, append_records, read_lines
from common.utils.file_locks import file_lock
from common.utils.paths import get_experiments_dir
from common.utils.plain import NO_TEXT, clean_text, is_text


class Annotation(NamedTuple):
    tags: list[str]
    note: str
    archived: bool


def annotations_path() -> Path:
    # No experiment can have this name: those begin with a letter or a digit.
    return get_experiments_dir() / "_annotations.jsonl"


def read_annotations() -> tuple[dict[str, Annotation], list[str]]:
    """({id or name of an experiment: what was last said of it}, what is wrong with which line)"""
    found: dict[str, Annotation] = {}
    problems = []
    if annotations_path().exists():
        for record, line in read_lines(annotations_path()):
            try:
                _take(found, record)
            except (KeyError, TypeError, ValueError) as error:
                problems.append(f"line {line}: {error}")
    return found, problems


def _take(found: dict[str, Annotation], record: Record | None) -> None:
    """Raises ValueError, TypeError or KeyError for a record that is not as we write them."""
    if record is None:
        raise ValueError("it is damaged")
    keys = record["name"], record.get("id", record["name"])
    if not all(isinstance(key, str) for key in keys):
        raise TypeError(f"no name and id: {keys}")
    name, identifier = map(clean_text, keys)
    if record["kind"] == "rename":  # what was said by the name is said of the experiment
        if said := found.pop(name, None):
            found.setdefault(identifier, said)
        return
    if record["kind"] == "forget":
        found.pop(name, None)
        found.pop(identifier, None)
        return
    tags, note, archived = (record[key] for key in Annotation._fields)
    if not all(isinstance(text, str) for text in (note, *tags)):
        raise TypeError(f"no note and tags: {note!r}, {tags!r}")
    texts = [note, *tags]
    note, *tags = map(clean_text, texts)
    found[identifier] = Annotation(tags, note, bool(archived))
    if texts != [note, *tags]:
        raise ValueError("a tag or note in it is not text; it is shown spelt out")


def annotate_experiment(
    name: str,
    *,
    add_tags: Collection[str] = (),
    remove_tags: Collection[str] = (),
    note: str | None = None,
    archived: bool | None = None,
) -> Annotation:
    """Change the tags, the note ("" removes it) or the archive mark of an experiment, live or finished.

    An archived experiment is left out of lists and rankings, and kept. Returns what holds now.
    Raises ExperimentError for an unknown experiment, an empty tag, a tag or note that is not text, and
    the removal of a tag that it does not have.
    """

    from common.experiments.catalogue import Catalogue

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


def archive_experiments(names: Collection[str], *, archived: bool = True) -> None:
    """Set or clear the archive mark. Raises ExperimentError for an unknown name, before any."""
    from common.experiments.catalogue import Catalogue

    for name in names:
        Catalogue().manifest(name)
    for name in names:
        annotate_experiment(name, archived=archived)


def check_text(text: str, what: str) -> None:
    """Raises ExperimentError for what is not text."""
    if not is_text(text):
        raise ExperimentError(f"{what} must be text: {text!r} is not UTF-8, or holds NUL", NO_TEXT)


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
            raise ExperimentError("a tag cannot be empty", "give it a word")
        check_text(tag, "a tag")
        if tag not in tags:
            tags.append(tag)
    return tags


def forget_experiments(names: Mapping[str, str]) -> None:
    """Of {id: name}, which were deleted: a later experiment of such a name begins without what was said
    of this one, and this one does not come back with the next synchronisation."""
    records = [{"kind": "forget", "name": name, "id": key} for key, name in names.items()]
    append_records(annotations_path(), records)


def deleted_ids() -> set[str]:
    """The ids of the experiments that were deleted here."""
    if not annotations_path().exists():
        return set()
    records = [record for record, _ in read_lines(annotations_path()) if record is not None]
    return {str(r.get("id")) for r in records if r["kind"] == "forget"}
