"""Tags, a note and the archive mark, which can change at any time; the experiment itself never does.

`_annotations.jsonl`, beside the experiments, is a log as those of runs are (see log.py). Each record
holds all that is to be said of one experiment; the last one counts, and takes the place of the tags
that the run was started with. {"kind": "forget"} is said of a deleted experiment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from common.errors import ExperimentError
from common.utils.experiment_storage.log import append_records, read_records
from common.utils.paths import get_experiments_dir


class Annotation(NamedTuple):
    tags: list[str]
    note: str
    archived: bool


def annotations_path() -> Path:
    # No experiment can have this name: those begin with a letter or a digit.
    return get_experiments_dir() / "_annotations.jsonl"


def read_annotations() -> tuple[dict[str, Annotation], int]:
    """({experiment: what was last said of it}, number of damaged records, which are left out)"""
    found: dict[str, Annotation] = {}
    damaged = 0
    if annotations_path().exists():
        for record, _ in read_records(annotations_path()):
            if record is None:
                damaged += 1
            elif record["kind"] == "forget":
                found.pop(record["name"], None)
            else:
                found[record["name"]] = Annotation(*(record[key] for key in Annotation._fields))
    return found, damaged


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
    Raises ExperimentError for an unknown experiment, an empty tag, and the removal of a tag that it
    does not have.
    """
    from filelock import FileLock  # 70 ms that a list can do without

    from common.utils.experiment_storage.catalogue import Catalogue

    get_experiments_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(get_experiments_dir() / "._annotations.lock"):
        before = Catalogue().annotation(name)
        after = Annotation(
            _changed_tags(name, before.tags, add_tags, remove_tags),
            before.note if note is None else note,
            before.archived if archived is None else archived,
        )
        record = {"kind": "annotate", "name": name, **after._asdict()}
        append_records(annotations_path(), [record])
    return after


def archive_experiments(names: Collection[str], *, archived: bool = True) -> None:
    """Set or clear the archive mark. Raises ExperimentError for an unknown name, before any."""
    from common.utils.experiment_storage.catalogue import Catalogue

    for name in names:
        Catalogue().manifest(name)
    for name in names:
        annotate_experiment(name, archived=archived)


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
        if tag not in tags:
            tags.append(tag)
    return tags


def forget_annotations(names: Iterable[str]) -> None:
    """A later experiment of one of these names begins without what was said of this one."""
    said, _ = read_annotations()
    if records := [{"kind": "forget", "name": name} for name in names if name in said]:
        append_records(annotations_path(), records)
