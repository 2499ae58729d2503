"""The store under attack: killed processes, crowds, cut files, full disks. Minutes, so all are slow.

The processes that are killed are in store_attackers.py.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from apps.experiments.deleting import unpack_experiment
from common.errors import ExperimentError
from common.experiments import packing, store
from common.experiments.catalogue import Catalogue
from common.experiments.sql import query_rows
from common.utils import manifest, save_experiment, start_experiment
from common.utils.paths import get_experiments_dir
from tests.budget import budget, repeat
from tests.conftest import SmallDisk

pytestmark = pytest.mark.slow
ATTACKERS = Path(__file__).with_name("store_attackers.py")
KILLS = budget(12, 200)
WRITERS = budget(6, 64)
CROWD_SECONDS = budget(1.5, 20.0)


@contextmanager
def attackers(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The parent of the attackers. It finds no git, which would take most of the time of a start."""
    pipe = subprocess.PIPE
    environment = os.environ | {"PATH": "", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(ATTACKERS), *arguments]
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
    ) as parent:
        try:
            yield parent
        finally:
            parent.kill()


# --- kills -----------------------------------------------------------------------------------------


class Truth:
    """What the store must hold, from what the killed processes have said."""

    def __init__(self) -> None:
        save_experiment("before", pd.DataFrame({"loss": [0.0]}))  # a column to ask for
        self.rows: dict[str, list[float]] = {"before": [0.0]}
        self.finished: set[str] = {"before"}
        self.moments: Counter[str] = Counter()

    def check(self, order: dict[str, Any], said: list[str]) -> None:
        allowed = self._allowed(order, said)
        catalogue = Catalogue()
        assert catalogue.broken == []
        found: dict[str, list[tuple[int, float]]] = {}
        sql = "SELECT experiment_name, step, loss FROM experiments ORDER BY experiment_name, step"
        for name, step, loss in query_rows(sql, limit=None)[1]:
            found.setdefault(name, []).append((step, loss))
        for name in found.keys() | self.rows.keys():
            rows = found.get(name, [])
            assert [step for step, _ in rows] == list(range(len(rows))), name
            values = [loss for _, loss in rows]
            assert values in allowed.get(name, [self.rows.get(name)]), name
            if values:
                self.rows[name] = values
        for summary in catalogue.summaries("loss"):
            values = self.rows[summary.name]
            assert (summary.num_values, summary.last) == (len(values), values[-1]), summary.name
        names = catalogue.names()
        assert len(names) == len(set(names)) and self.rows.keys() <= set(names)
        statuses = {manifest["name"]: manifest["status"] for manifest in catalogue.manifests}
        assert set(statuses.values()) <= {"finished", "died"}, "nobody is alive"
        finished = {name for name, status in statuses.items() if status == "finished"}
        assert self.finished <= finished
        self.finished = finished

    def _allowed(self, order: dict[str, Any], said: list[str]) -> dict[str, list[list[float]]]:
        """{run: the rows that it may have}: one that was on its way may be there or not."""

        def row(step: int) -> float:
            return float(order["generation"] * 1e6 + step)

        name, last = order["name"], "starts"
        rows = list(self.rows.get(name, []))
        allowed: dict[str, list[list[float]]] = {}
        for line in said:
            last, *words = line.split()
            assert last != "error", line
            if last == "begins":
                name, rows = words[0], []
            elif last == "resumes":
                allowed[name] = [rows, rows[: int(words[0])]]
            elif last == "resumed":
                rows = rows[: int(words[0])]
            elif last == "row":
                assert int(words[0]) == len(rows)
                rows.append(row(len(rows)))
            elif last == "finished":
                self.finished.add(name)
            if last in ("begins", "resumed", "row"):
                allowed[name] = [rows, [*rows, row(len(rows))]]
            elif last == "finishes":
                allowed[name] = [rows]
        self.moments[last] += 1
        return allowed


@pytest.mark.attack
def test_kills_at_random_moments_lose_double_and_damage_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng = random.Random(0)
    truth = Truth()
    checked = 0
    longest = (
        0.2  # seconds that an attacker lives; more on a busy machine, or none would finish a run
    )
    started = time.monotonic()
    with attackers("kills") as parent:
        assert parent.stdin is not None and parent.stdout is not None
        for generation in range(KILLS):
            work = ("append", "finish", "catalogue", "pack")[generation % 4]
            name = f"run_{generation}"
            alive = sorted(truth.rows.keys() - truth.finished)
            resume = work == "append" and bool(alive) and rng.random() < 0.6
            order = {
                "work": work,
                "generation": generation,
                "name": rng.choice(alive) if resume else name,
                "resume": resume,
                "seconds": rng.uniform(0.0, longest),
            }
            parent.stdin.write(json.dumps(order) + "\n")
            parent.stdin.flush()
            answer = json.loads(parent.stdout.readline())
            assert answer["killed"], answer
            truth.check(order, answer["said"])
            checked += sum(map(len, truth.rows.values()))
            if min(len(truth.rows), len(truth.finished)) <= generation / 6:
                longest = min(longest * 1.05, 1.0)
    assert len(truth.rows) > KILLS / 8 and len(truth.finished) > KILLS / 8
    with capsys.disabled():
        print(
            f"\n{KILLS} kills in {time.monotonic() - started:.0f} s: {len(truth.rows)} runs, "
            f"{sum(map(len, truth.rows.values())):,} rows, {checked:,} checked; killed while "
            + ", ".join(f"{moment} {count}" for moment, count in truth.moments.most_common())
        )


# --- a crowd ---------------------------------------------------------------------------------------

STEPS = """SELECT experiment_name, count(*), count(DISTINCT step), min(step), max(step), count(loss)
FROM experiments GROUP BY 1"""


class Reader:
    """Asks again and again, and remembers what it was told: none of it may be taken back."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.finished: set[str] = set()
        self.asked = 0

    def look(self) -> None:
        self._ask_sql()
        self._ask_catalogue()
        self.asked += 1

    def _ask_sql(self) -> None:
        counts = {}
        for name, rows, steps, first, last, losses in query_rows(STEPS)[1]:
            assert rows == steps == losses == last + 1 and first == 0, name
            assert name not in counts
            counts[name] = rows
        self._remember(counts)

    def _ask_catalogue(self) -> None:
        catalogue = Catalogue()
        assert catalogue.broken == []
        overview = catalogue.overview()
        assert len({run.name for run in overview}) == len(overview)
        statuses = {run.name: run.status for run in overview}
        assert set(statuses.values()) <= {"running", "finished", "interrupted"}, statuses
        finished = {name for name, status in statuses.items() if status == "finished"}
        assert self.finished <= finished
        self.finished = finished
        self._remember({run.name: run.step + 1 for run in overview if run.step is not None})
        ranked = catalogue.best("loss") if self.rows else []
        losses = [summary.minimum for _, summary in ranked]
        assert losses == sorted(losses) and len(ranked) >= len(self.rows)

    def _remember(self, rows: dict[str, int]) -> None:
        for name, count in self.rows.items():
            assert rows.get(name, 0) >= count, f"{name} had {count} rows, has {rows.get(name)}"
        self.rows = rows


def read_until_told(connection: Any) -> None:
    reader = Reader()
    try:
        while not connection.poll():
            reader.look()
        connection.send((reader.asked, None))
    except BaseException as error:
        import traceback

        connection.send((reader.asked, "".join(traceback.format_exception(error))))


@pytest.mark.attack
def test_many_writers_4_readers_and_a_finisher_agree_at_every_moment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_experiment("first", pd.DataFrame({"loss": [0.0]}), {"seed": 0})  # a column to ask for
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(4)]
    readers = [context.Process(target=read_until_told, args=(theirs,)) for _, theirs in pipes]
    with attackers("crowd", str(WRITERS), str(CROWD_SECONDS)) as parent:
        for reader in readers:
            reader.start()
        output, errors = parent.communicate(timeout=CROWD_SECONDS + 300)
    answers = []
    for reader, (ours, _) in zip(readers, pipes, strict=True):
        ours.send("stop")
        answers.append(ours.recv())
        reader.join()
    assert errors == "" and parent.returncode == 0
    assert "\n".join(error for _, error in answers if error) == ""
    stored = {"first": ("finished", 1, 0)}
    for name, status, rows, seed in map(json.loads, output.splitlines()):
        assert name not in stored
        stored[name] = (status, rows, seed)
    assert len(stored) > WRITERS
    statuses = {run.name: run.status for run in Catalogue().overview()}
    counts = query_rows(
        "SELECT experiment_name, count(*), count(DISTINCT step), any_value(seed), sum(loss) "
        "FROM experiments JOIN runs ON name = experiment_name GROUP BY 1"
    )[1]
    assert len(counts) == len(stored) == len(statuses)
    for name, rows, steps, seed, losses in counts:
        assert (statuses[name], rows, seed) == stored[name] and rows == steps
        assert losses == seed * 1e6 * rows + rows * (rows - 1) / 2
    with capsys.disabled():
        print(
            f"\n{WRITERS} writers, 4 readers and a finisher for {CROWD_SECONDS:.0f} s: {len(stored)} runs, "
            f"{sum(rows for _, rows, _ in stored.values()):,} rows, {len(Catalogue().packed())} packed, "
            f"{sum(asked for asked, _ in answers)} times asked"
        )


# --- cut files -------------------------------------------------------------------------------------


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["log", "file", "pack"])
def test_a_file_cut_at_any_byte_is_named_and_hides_nothing_else(
    kind: str, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut log gives every row that is whole; a cut Parquet file gives none, and is named."""
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(small_disk("8m")))  # in memory, to be fast
    monkeypatch.setattr(manifest, "REPOSITORY_ROOT", small_disk("8m"))  # no diff to be stored
    save_experiment("sound", pd.DataFrame({"loss": [1.0, 2.0]}))
    run = start_experiment("cut", system_metrics_seconds=None)
    for step in range(6):
        run.log({"loss": float(step)}, step=step)
    run.finish("finished" if kind != "log" else "interrupted")
    if kind == "pack":
        store.parquet_path("sound").rename(store.parquet_path("sound").with_suffix(".aside"))
        assert packing.pack_experiments() == 1
        store.parquet_path("sound").with_suffix(".aside").rename(store.parquet_path("sound"))
    path = {
        "log": store.log_path("cut"),
        "file": store.parquet_path("cut"),
        "pack": next(iter(store.packs_dir().glob("*.parquet")), Path()),
    }[kind]
    whole = path.read_bytes()
    file = str(path.relative_to(get_experiments_dir()))
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")] if kind == "log" else []
    sizes = {*range(0, len(whole), budget(64, 1)), *ends, *(end - 1 for end in ends), len(whole)}
    for size in sorted(sizes):
        path.write_bytes(whole[:size])
        rows = 6 * (size == len(whole))
        if kind == "log":  # the start, six rows, the status; the line end itself may be missing
            rows = min(6, max(0, sum(end <= size for end in ends) - 1))
        catalogue = Catalogue()
        summaries = {summary.name: summary.num_values for summary in catalogue.summaries("loss")}
        assert summaries == {"sound": 2} | ({"cut": rows} if rows else {}), size
        is_named = [broken.file for broken in catalogue.broken] == [file]
        started = kind == "log" and (size == 0 or size >= ends[0])
        assert is_named == (size < len(whole) and not started), size
        if size % 16 == 0 or size == len(whole):
            assert query_rows("SELECT count(*) FROM experiments")[1] == [[2 + rows]], size


# --- a full disk -----------------------------------------------------------------------------------


class Disk:
    """A store on a disk of 8 MB that can be filled to the last byte, and emptied again."""

    def __init__(self, path: Path) -> None:
        self._filler = path / "filler"

    def fill(self, leave: int = 0) -> None:
        with self._filler.open("ab", 0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        if leave:
            os.truncate(self._filler, self._filler.stat().st_size - leave)

    def empty(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> Disk:
    path = small_disk("8m")
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(path))
    save_experiment("before", pd.DataFrame({"loss": [1.0, 2.0]}))
    return Disk(path)


def counts() -> dict[str, int]:
    assert Catalogue().broken == []
    found = query_rows("SELECT experiment_name, count(*) FROM experiments GROUP BY 1")[1]
    assert {name for name, _ in found} <= set(Catalogue().names())
    return {name: count for name, count in found}


def test_a_disk_that_runs_full_while_a_run_logs(disk: Disk) -> None:
    run = start_experiment("exp")
    run.log({"loss": 0.0}, step=0)
    disk.fill(leave=4096)
    for step in range(1, 1000):  # the training goes on, and what finds no space waits
        run.log({"loss": float(step)}, step=step)
    kept = counts()["exp"]
    assert 0 < kept < 1000 and counts() == {"before": 2, "exp": kept}
    disk.empty()
    for step in range(1000, 1005):
        run.log({"loss": float(step)}, step=step)
    run.finish()
    steps = query_rows("SELECT step FROM experiments WHERE experiment_name = 'exp' ORDER BY 1")[1]
    assert steps == [[step] for step in range(1005)]


@repeat("leave", [4096, 0, 8192, 16384, 32768])
def test_a_disk_that_is_full_while_a_run_finishes(disk: Disk, leave: int) -> None:
    run = start_experiment("exp")
    rng = random.Random(0)
    for step in range(2000):
        run.log({"loss": rng.random()}, step=step)
    disk.fill(leave)
    with pytest.raises(OSError, match=r"space|disk is full"):
        run.finish()
    assert counts() == {"before": 2, "exp": 2000}
    run._lock.release()  # as the end of the process does
    assert counts() == {"before": 2, "exp": 2000}
    disk.empty()
    assert counts() == {"before": 2, "exp": 2000}
    assert Catalogue().manifest("exp")["status"] in ("died", "finished")


@repeat("leave", [0, 4096, 8192, 16384])
def test_a_disk_that_is_full_while_experiments_are_packed(disk: Disk, leave: int) -> None:
    rng = random.Random(0)
    for number in range(20):
        save_experiment(f"run_{number}", pd.DataFrame({"loss": [rng.random() for _ in range(200)]}))
    expected = {"before": 2} | {f"run_{number}": 200 for number in range(20)}
    disk.fill(leave)
    with pytest.raises(OSError, match=r"[Ss]pace"):
        packing.pack_experiments()
    assert counts() == expected
    disk.empty()
    assert packing.pack_experiments() == 21
    assert counts() == expected
    disk.fill(leave)
    with pytest.raises(OSError, match=r"[Ss]pace"):
        unpack_experiment("run_7")
    assert counts() == expected


def test_a_disk_that_is_full_while_the_catalogue_is_brought_up_to_date(disk: Disk) -> None:
    for number in range(10):
        save_experiment(f"run_{number}", pd.DataFrame({f"m_{number}": [1.0]}))
    before = sorted(map(str, Catalogue().summaries()))
    for path in get_experiments_dir().glob("*.parquet"):
        os.utime(path)
    disk.fill()
    for _ in range(2):
        assert sorted(map(str, Catalogue().summaries())) == before
    (get_experiments_dir() / ".catalogue.sqlite").unlink(missing_ok=True)
    disk.fill()
    assert sorted(map(str, Catalogue().summaries())) == before
    disk.empty()
    assert sorted(map(str, Catalogue().summaries())) == before


# --- kills at every moment of a change -------------------------------------------------------------

KILLED_EVERYWHERE = """
import os, signal, sys
import pyarrow.parquet
from pathlib import Path
from apps.experiments.checking import check_store
from apps.experiments.deleting import delete_experiments

def die_at(moment):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.rmdir") and "/outputs/" in str(arguments[0]):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

moment = {first}
while True:
    moment += {stride}
    child = os.fork()
    if child == 0:
        die_at(moment)
        {action}
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    assert ended in (0, signal.SIGKILL), ended
    print(moment, flush=True)
    sys.stdin.readline()
    if ended == 0:
        break
"""


@pytest.mark.attack
@pytest.mark.parametrize(
    "action", ["delete_experiments(['packed', 'loose', 'left'])", "check_store()"]
)
def test_a_change_that_is_killed_anywhere_harms_nothing_else(action: str) -> None:
    def make() -> None:
        for name in ("packed", "loose", "left", "kept_packed"):
            if name in Catalogue():
                continue
            run = start_experiment(name)
            run.log({"loss": 1.0}, step=0)
            run.finish("interrupted" if name == "left" else "finished")
        for name in ("packed", "kept_packed"):
            if f"{name}.parquet" == Catalogue().file_of(name):
                aside = {n: store.parquet_path(n).with_suffix(".aside") for n in ("loose", "kept")}
                for other, path in aside.items():
                    store.parquet_path(other).rename(path)
                packing.pack_experiments()
                for other, path in aside.items():
                    path.rename(store.parquet_path(other))

    save_experiment("kept", pd.DataFrame({"loss": [1.0, 2.0]}))
    make()
    pipe = subprocess.PIPE
    stride = budget(7, 1)
    places = {"{action}": action, "{first}": str(-(stride // 2)), "{stride}": str(stride)}
    script = functools.reduce(
        lambda text, place: text.replace(*place), places.items(), KILLED_EVERYWHERE
    )
    moments = 0
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        while process.stdout.readline():
            moments += 1
            found = counts()
            assert (found["kept"], found["kept_packed"]) == (2, 1)
            assert set(found) == {"kept", "kept_packed"} | found.keys() & {
                "packed",
                "loose",
                "left",
            }
            if action == "check_store()":
                assert len(found) == 5
            make()
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0 and moments * stride > 10


# --- SQL -------------------------------------------------------------------------------------------

READERS = ["read_text", "read_blob", "read_csv", "read_csv_auto", "read_json", "read_json_auto"]
READERS += ["read_ndjson", "read_ndjson_auto", "read_json_objects", "read_parquet", "parquet_scan"]
READERS += [
    "parquet_metadata",
    "parquet_schema",
    "parquet_bloom_probe",
    "sniff_csv",
    "glob",
    "arrow_scan",
]
PLACES = [
    "{outside}",
    "{store}/../outside.parquet",
    "{store}/link.parquet",
    "{store}/../experiments/*",
]
PLACES += ["{store}/{{a,b}}.parquet", "{store}/a.parquet/../../outside.parquet", "file://{outside}"]
PLACES += [
    "{store}/_checksums.jsonl",
    "{store}/.catalogue.sqlite",
    "{store}/live.jsonl",
    "/dev/stdin",
]
PLACES += [
    "/proc/self/fd/0",
    "gcs://b/x",
    "az://b/x",
    "r2://b/x",
    "http://[::1]:9/x",
    "{store}/packs",
]
STATEMENTS = """
SET VARIABLE x = 1
RESET lock_configuration
PRAGMA enable_profiling
PRAGMA database_list
CREATE MACRO m() AS 1
CREATE TEMP TABLE t AS SELECT 1
CREATE SECRET (TYPE http)
ALTER TABLE live_rows ADD COLUMN x INT
TRUNCATE live_rows
MERGE INTO live_rows USING (SELECT 1) AS s ON false WHEN NOT MATCHED THEN DO NOTHING
EXECUTE p
ROLLBACK
COMMIT
BEGIN
LOAD '{outside}'
INSTALL '{outside}'
UPDATE EXTENSIONS
ATTACH ':memory:' AS m
ATTACH '{outside}' AS m
COPY live_rows FROM '{outside}'
COPY FROM DATABASE memory TO memory
EXPORT DATABASE '{outside}'
COMMENT ON TABLE live_rows IS 'x'
EXPLAIN ANALYZE DELETE FROM live_rows
SELECT 1; COMMIT; SELECT 2
SELECT getenv('HOME')
SELECT * FROM read_csv('a', store_rejects = true)
SELECT * FROM pragma_user_agent(), duckdb_settings() WHERE set_config('threads', '1', false)
SELECT set_config('enable_external_access', 'true', false)
SELECT nextval('s')
SELECT * FROM disable_logging()
SELECT * FROM parse_duckdb_log_message('x', 'y')
SELECT * FROM python_map_function()
SELECT * FROM outside
SELECT * FROM pandas_scan(1)
SELECT * FROM sqlite_master_of_catalogue
SELECT * FROM http_get('http://127.0.0.1:9')
SELECT write_log('x', disable_logging := false) FROM enable_logging()
WITH x AS (INSERT INTO live_rows SELECT 1) SELECT 1
WITH x AS (UPDATE live_rows SET step = 1 RETURNING *) SELECT * FROM x
""".strip().splitlines()


@pytest.mark.attack
def test_no_question_reaches_beyond_the_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    outside = tmp_path / "outside.parquet"
    pd.DataFrame({"secret": [42]}).to_parquet(outside)
    for name in ("a", "b"):
        save_experiment(name, pd.DataFrame({"loss": [1.0]}))
    start_experiment("live").log({"loss": 1.0}, step=0)
    (get_experiments_dir() / "link.parquet").symlink_to(outside)
    (get_experiments_dir().parent / "outside.parquet").symlink_to(outside)
    with store.packs_lock():  # a reader that looks again takes it
        before = sorted(tmp_path.rglob("*"))
    places = {"outside": outside, "store": get_experiments_dir()}
    asked = [f"SELECT * FROM {reader}('{place}')" for reader in READERS for place in PLACES[:3]]
    asked += [f"SELECT * FROM {reader}('{place}')" for reader in READERS[:2] for place in PLACES]
    asked += [f"SELECT * FROM '{place}'" for place in PLACES]
    asked = asked[:: budget(9, 1)]
    refused = 0
    for sql in [
        *(sql.format(**places) for sql in asked),
        *(s.replace("{outside}", str(outside)) for s in STATEMENTS),
    ]:
        with pytest.raises(ExperimentError):
            print(sql, query_rows(sql))
        refused += 1
    assert sorted(tmp_path.rglob("*")) == before
    assert query_rows("SELECT count(*) FROM experiments")[1] == [[3]]
    with capsys.disabled():
        print(f"\n{refused} questions refused")
