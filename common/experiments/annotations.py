"""Tags, note and archive mark, which can change at any time, unlike the experiment itself.

`_annotations.jsonl`, beside the experiments, is a log in the format of log.py. Each record holds
all annotations of one experiment, by id (by name in earlier versions); the last one counts, and
replaces the tags that the run was started with. {"kind": "forget"} marks a deleted experiment,
which `--sync` does not restore, and {"kind": "rename", "new": ...} precedes a renaming.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from common.experiments.log import Record, read_lines
from common.experiments.store import ANNOTATIONS
from common.utils.paths import get_experiments_dir
from common.utils.plain import clean_text


class Annotation(NamedTuple):
    tags: list[str]
    note: str
    archived: bool


def annotations_path() -> Path:
    """The log of annotations."""
    return get_experiments_dir() / ANNOTATIONS


def read_annotations() -> tuple[dict[str, Annotation], list[str]]:
    """Return ({id or name of an experiment: its last record}, errors by line)."""
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
    """Apply a record. Raises ValueError, TypeError or KeyError if it is malformed."""
    if record is None:
        raise ValueError("it is damaged")
    keys = record["name"], record.get("id", record["name"])
    if not all(isinstance(key, str) for key in keys):
        raise TypeError(f"no name and id: {keys}")
    name, identifier = map(clean_text, keys)
    if record["kind"] == "rename":  # annotations by name now belong to the experiment
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
        raise ValueError("a tag or note in it is not text; it is shown escaped")
