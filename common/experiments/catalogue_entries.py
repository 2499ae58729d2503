"""Fill the tables of the catalogue from the files of the store.

A file with a changed size or time is read again (of a log, only what was appended). Unreadable
files are recorded with their error, so that they are reported and all others remain readable.

Experiments are identified by id, not by name. Among several of one name (after merging stores) the
one started first keeps the name, and the others become `<name>@<first 8 digits of the id>`. An
experiment in two files (after a crash between writing one and removing the other) counts once: the
table `copies` records it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from common.experiments.annotations import read_annotations
from common.experiments.conditions import config_hash
from common.experiments.log import LogContent
from common.experiments.metrics import MetricSummary, preferred_split, summarise_rows
from common.experiments.store import ANNOTATIONS, Stamp, is_pack, scan_store
from common.utils.manifest import check_manifest, clean_facts, identity, unique_name
from common.utils.paths import get_experiments_dir

SCHEMA_VERSION = 8
SCHEMA = f"""
DROP TABLE IF EXISTS files;
DROP TABLE IF EXISTS experiments;
DROP TABLE IF EXISTS manifests;
DROP TABLE IF EXISTS changes;
DROP TABLE IF EXISTS texts;
DROP TABLE IF EXISTS metrics;
DROP TABLE IF EXISTS copies;
CREATE TABLE files (file TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, error TEXT,
    replaces TEXT, head BLOB, consumed INTEGER, hides_nan INTEGER);
CREATE TABLE experiments (name TEXT PRIMARY KEY, file TEXT, status TEXT, project TEXT, started TEXT,
    started_us INTEGER, since_us INTEGER, duration REAL, parameters INTEGER, step INTEGER,
    best_loss REAL, split TEXT, tags TEXT, note TEXT, archived INTEGER, config_hash TEXT,
    id TEXT, stored TEXT);  -- `stored`: its name in the file
CREATE TABLE copies (file TEXT, id TEXT, original TEXT);
CREATE INDEX experiments_by_id ON experiments (id);
CREATE INDEX experiments_by_stored_name ON experiments (stored);
CREATE TABLE manifests (name TEXT PRIMARY KEY, manifest TEXT);
CREATE TABLE changes (number INTEGER);
INSERT INTO changes VALUES (0);
CREATE TABLE texts (key TEXT PRIMARY KEY, text TEXT);
CREATE INDEX live_experiments ON experiments (name) WHERE status = 'running';
CREATE INDEX experiments_of_file ON experiments (file);
CREATE INDEX archived_experiments ON experiments (name) WHERE archived;
CREATE TABLE metrics (name TEXT, split TEXT, metric TEXT, num_values INTEGER, first REAL, last REAL,
    minimum REAL, maximum REAL, minimum_step INTEGER, maximum_step INTEGER, last_step INTEGER,
    non_finite INTEGER, PRIMARY KEY (metric, split, name)) WITHOUT ROWID;
CREATE INDEX metrics_of_experiment ON metrics (name);
PRAGMA user_version = {SCHEMA_VERSION};
"""


def known_files(database: sqlite3.Connection) -> dict[str, Stamp]:
    """{file: its stamp when read}"""
    rows = database.execute("SELECT file, size, mtime_ns FROM files")
    return {file: (size, mtime_ns) for file, size, mtime_ns in rows}


def read_changes(database: sqlite3.Connection) -> None:
    """Read new and changed files, remove deleted ones. Raises FileNotFoundError if one is deleted meanwhile."""
    known, present = known_files(database), scan_store()
    changed = {file: stamp for file, stamp in present.items() if known.get(file) != stamp}
    gone = known.keys() - present.keys()
    if changed or gone:
        database.execute("UPDATE changes SET number = number + 1")
        database.execute("DELETE FROM texts")
    for file in gone:
        _forget(database, file)
    # Packs first, the newest before those that it replaces.
    for file in sorted(filter(is_pack, changed), reverse=True):
        _read_file(database, file, changed[file])
    for file in changed:
        if not is_pack(file) and file != ANNOTATIONS:
            _read_file(database, file, changed[file])
    for file in _copies_of_nothing(database):
        _read_file(database, file, present[file])
    if changed or gone:
        _name_all(database)
        error = _annotate(database)
        if ANNOTATIONS in changed:
            _remember(database, ANNOTATIONS, changed[ANNOTATIONS], error)


def _forget(database: sqlite3.Connection, file: str) -> None:
    database.execute("DELETE FROM files WHERE file = ?", (file,))
    database.execute("DELETE FROM copies WHERE file = ?", (file,))
    for name in database.execute("SELECT name FROM experiments WHERE file = ?", (file,)).fetchall():
        _remove(database, *name)


def _remove(database: sqlite3.Connection, name: str) -> None:
    for table in ("metrics", "manifests", "experiments"):
        database.execute(f"DELETE FROM {table} WHERE name = ?", (name,))


def _copies_of_nothing(database: sqlite3.Connection) -> list[str]:
    """Files with a copy of an experiment that has moved."""
    rows = database.execute(
        """SELECT DISTINCT file FROM copies WHERE NOT EXISTS (SELECT 1 FROM experiments
        WHERE experiments.file = copies.original AND experiments.id = copies.id)"""
    )
    return [file for (file,) in rows.fetchall()]


def _name_all(database: sqlite3.Connection) -> None:
    """Name every experiment as in its file, with the id appended for duplicates."""
    rows = database.execute("""SELECT name, stored, id FROM experiments WHERE stored IN
        (SELECT stored FROM experiments GROUP BY stored HAVING count(*) > 1 OR max(name <> stored))
        ORDER BY stored, started_us, id, file""").fetchall()
    taken: set[str] = set()
    wanted = []
    for name, stored, identifier in rows:
        wish = stored if stored not in taken else unique_name(stored, identifier)
        while wish in taken:  # one run resumed in two places
            wish += "+"
        taken.add(wish)
        if wish != name:
            wanted.append((name, wish))
    # Through unused names, because two may swap theirs.
    steps = [(name, f"{wish}\t") for name, wish in wanted]
    for before, after in [*steps, *((f"{wish}\t", wish) for _, wish in wanted)]:
        for table in ("metrics", "manifests", "experiments"):
            database.execute(f"UPDATE {table} SET name = ? WHERE name = ?", (after, before))


def _remember(
    database: sqlite3.Connection,
    file: str,
    stamp: Stamp,
    error: str | None = None,
    replaces: list[str] | None = None,
    head: bytes | None = None,
    consumed: int | None = None,
    hides_nan: bool = False,
) -> None:
    row = (file, *stamp, error, json.dumps(replaces or []), head, consumed, hides_nan)
    database.execute(f"INSERT OR REPLACE INTO files VALUES ({', '.join('?' * 8)})", row)


def _read_file(database: sqlite3.Connection, file: str, stamp: Stamp) -> None:
    """Enter the content of `file`."""
    path = get_experiments_dir() / file
    try:
        if is_pack(file):
            return _read_pack(database, file, stamp)
        if file.endswith(".parquet"):
            return _read_parquet(database, file, stamp)
        _read_live(database, file, stamp)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            raise  # deleted meanwhile
        _forget(database, file)
        _remember(database, file, stamp, str(error).splitlines()[0])


def _read_pack(database: sqlite3.Connection, file: str, stamp: Stamp) -> None:
    from common.experiments.packs import read_pack, replaced_packs
    from common.experiments.parquet import has_metric_statistics, summarise_table

    path = get_experiments_dir() / file
    for (replaces,) in database.execute("SELECT replaces FROM files").fetchall():
        if path.name in json.loads(replaces):
            return _remember(database, file, stamp)  # left behind by a crash
    replaces = replaced_packs(path)
    for replaced in replaces:
        _forget(database, f"packs/{replaced}")
    _forget(database, file)
    diverged = False
    for manifest, table in read_pack(path):
        name = str(check_manifest(manifest)["name"])
        summaries = summarise_table(name, table)
        diverged |= any(summary.non_finite for summary in summaries)
        _enter(database, file, manifest, summaries)
    hides_nan = diverged and has_metric_statistics(path)
    _remember(database, file, stamp, replaces=replaces, hides_nan=hides_nan)


def _read_parquet(database: sqlite3.Connection, file: str, stamp: Stamp) -> None:
    from common.experiments.parquet import (
        has_metric_statistics,
        read_parquet,
        summarise_table,
    )

    path = get_experiments_dir() / file
    manifest, table = read_parquet(path)
    _check_name(manifest, path)
    _forget(database, file)
    summaries = summarise_table(path.stem, table)
    _enter(database, file, manifest, summaries)
    # Read the footer again, for the few runs that diverged.
    hides_nan = any(s.non_finite for s in summaries) and has_metric_statistics(path)
    _remember(database, file, stamp, hides_nan=hides_nan)


def _check_name(manifest: dict[str, Any], path: Path) -> None:
    name = check_manifest(manifest)["name"]
    if path.stem.rstrip("+") not in (name, unique_name(name, identity(manifest))):
        raise ValueError(f"it is a copy of '{manifest['name']}' under another name")


def _read_live(database: sqlite3.Connection, file: str, stamp: Stamp) -> None:
    """Read a log, if possible from the end of the last read."""
    path = get_experiments_dir() / file
    with path.open("rb") as log:
        head = log.read(8)  # the checksum of the first record identifies the log
    manifest, known, consumed = _read_before(database, file, head)
    content = LogContent(path, consumed)
    if consumed and (content.resumes or content.damaged_lines):  # rows already read may not count
        manifest, known = {}, []
        content = LogContent(path)
    manifest |= content.manifest
    if not manifest and not content.num_rows and not content.damaged_lines:
        return _forget(database, file)  # a name claimed just now
    if "name" not in manifest:
        raise ValueError("its first record is damaged")
    _check_name(manifest, path)
    _forget(database, file)
    _enter(database, file, manifest, summarise_rows(path.stem, content.iter_rows(), known))
    _remember(database, file, stamp, head=head, consumed=content.end)


def _read_before(
    database: sqlite3.Connection, file: str, head: bytes
) -> tuple[dict[str, Any], list[MetricSummary], int]:
    row = database.execute(
        """SELECT manifest, consumed, name, size
        FROM files JOIN experiments USING (file) JOIN manifests USING (name) WHERE file = ? AND head = ?""",
        (file, head),
    ).fetchone()
    if row is None or row[3] > (get_experiments_dir() / file).stat().st_size:
        return {}, [], 0
    return json.loads(row[0]), list(_summaries(database, row[2])), int(row[1])


def _summaries(database: sqlite3.Connection, name: str) -> Iterator[MetricSummary]:
    for row in database.execute("SELECT * FROM metrics WHERE name = ?", (name,)):
        summary = MetricSummary(*row)
        nan = float("nan")  # stored as NULL; first and last are never missing
        first, last = (nan if v is None else v for v in (summary.first, summary.last))
        yield summary._replace(first=first, last=last)


def _enter(
    database: sqlite3.Connection,
    file: str,
    manifest: dict[str, Any],
    summaries: list[MetricSummary],
) -> None:
    """Enter one experiment, unless a better copy is already entered."""
    manifest = clean_facts(manifest)
    stored, identifier = manifest["name"], identity(manifest)
    others = "SELECT name, file FROM experiments WHERE id = ?"
    for other, other_file in database.execute(others, (identifier,)).fetchall():
        if not _is_same(database, other, summaries):
            continue  # one run resumed in two places
        if min(file, other_file, key=_rank) == other_file:
            row = (file, identifier, other_file)
            database.execute("INSERT INTO copies VALUES (?, ?, ?)", row)
            return
        _remove(database, other)
        row = (other_file, identifier, file)
        database.execute("INSERT INTO copies VALUES (?, ?, ?)", row)
    name = stored
    while _is_taken(database, name):
        name += " "  # until `_name_all`: no name has a space
    own = [summary._replace(name=name) for summary in summaries]
    database.executemany(f"INSERT INTO metrics VALUES ({', '.join('?' * 12)})", own)
    kept = {key: value for key, value in manifest.items() if key != "git_diff"}
    database.execute("INSERT INTO manifests VALUES (?, ?)", (name, json.dumps(kept)))
    facts = (name, *_facts(file, manifest, summaries), identifier, stored)
    database.execute(f"INSERT INTO experiments VALUES ({', '.join('?' * len(facts))})", facts)


def _rank(file: str) -> tuple[int, str]:
    """Rank of a location: an experiment moves from log to file to pack, or back; the lowest counts."""
    return (0 if is_pack(file) else 1 if file.endswith(".parquet") else 2), file


def _is_taken(database: sqlite3.Connection, name: str) -> bool:
    return (
        database.execute("SELECT 1 FROM experiments WHERE name = ?", (name,)).fetchone() is not None
    )


def _is_same(database: sqlite3.Connection, name: str, summaries: list[MetricSummary]) -> bool:
    """Whether the experiment `name` has these summaries."""
    there = {(s.split, s.metric): _comparable(s) for s in _summaries(database, name)}
    return there == {(s.split, s.metric): _comparable(s) for s in summaries}


def _comparable(summary: MetricSummary) -> list[Any]:
    return [None if value != value else value for value in summary[3:]]  # NaN equals nothing


def _facts(
    file: str, manifest: dict[str, Any], summaries: Iterable[MetricSummary]
) -> tuple[object, ...]:
    """A row of `experiments`, from `file` to `config_hash`."""
    losses = {s.split: s.minimum for s in summaries if s.metric == "loss"}
    split = preferred_split(losses) if losses else None
    return (
        file,
        *(manifest[key] for key in ("status", "project", "started")),
        _microseconds(manifest["started"]),
        _microseconds(manifest.get("resumed") or manifest["started"]),
        manifest["duration"],
        manifest["parameters"],
        max((summary.last_step for summary in summaries), default=None),
        losses[split] if split is not None else None,
        split,
        json.dumps(manifest["tags"]),
        _note(manifest.get("note")),
        False,
        config_hash(manifest),
    )


def _microseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1e6)


def _note(note: object) -> str:
    """`note` as text: the metadata of save_experiment may contain anything."""
    return note if isinstance(note, str) else "" if note is None else json.dumps(note)


def _annotate(database: sqlite3.Connection) -> str | None:
    """Replace tags and notes in the files by later changes.

    Returns errors in them."""
    annotations, problems = read_annotations()
    for key, said in annotations.items():
        database.execute(
            "UPDATE experiments SET tags = ?, note = ?, archived = ? WHERE id = ? OR name = ?",
            (json.dumps(said.tags), said.note, said.archived, key, key),
        )
    return "; ".join(problems) or None
