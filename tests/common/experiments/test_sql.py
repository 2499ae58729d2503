"""SQL over the store: what may be asked, what may not, and what is said then."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from threading import Event, Timer

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from common.errors import ExperimentError
from common.experiments import sql_process
from common.experiments.catalogue import Catalogue
from common.experiments.packing import pack_experiments
from common.experiments.sql import query_rows
from common.experiments.sql_views import connect
from common.experiments.store import parquet_path
from common.utils import query_experiments, save_experiment, start_experiment
from common.utils.paths import REPOSITORY_ROOT, get_experiments_dir

FIXED = ["experiment_name", "step", "epoch", "split", "time"]
RUNS = [
    "name",
    "status",
    "project",
    "started",
    "finished",
    "duration",
    "config",
    "git_commit",
    "seed",
    "host",
    "parameters",
    "tokens",
    "tags",
    "note",
    "archived",
    "precision",
    "compiled",
    "threads",
    "device",
    "cpu",
]


def save(name: str, **columns: list[float]) -> None:
    save_experiment(name, pd.DataFrame(columns))


def refusal(sql: str) -> ExperimentError:
    with pytest.raises(ExperimentError) as caught:
        query_rows(sql)
    with pytest.raises(ExperimentError):
        query_experiments(sql)
    return caught.value


def test_an_empty_store_has_its_tables_with_their_columns() -> None:
    assert query_rows("SELECT * FROM experiments") == (FIXED, [])
    assert query_rows("SELECT * FROM runs") == (RUNS, [])
    assert query_rows("SELECT count(*), max(step) FROM experiments")[1] == [[0, None]]


def test_metrics_of_all_experiments_are_united_by_name() -> None:
    save("a", loss=[1.0], accuracy=[0.5])
    save("b", perplexity=[3.0], loss=[2.0])
    with start_experiment("c") as run:
        run.log({"bleu": 4.0, "loss": 3.0}, step=0)
        _, rows = query_rows(
            "SELECT experiment_name, loss, accuracy, perplexity, bleu FROM experiments ORDER BY 1"
        )
    assert rows == [
        ["a", 1.0, 0.5, None, None],
        ["b", 2.0, None, 3.0, None],
        ["c", 3.0, None, None, 4.0],
    ]
    types = dict(query_rows("SELECT column_name, column_type FROM (DESCRIBE experiments)")[1])
    assert types.pop("step") == "BIGINT"
    assert types.pop("experiment_name") == types.pop("split") == "VARCHAR"
    assert set(types.values()) == {"DOUBLE"}


@pytest.mark.parametrize("live", [False, True])
def test_one_metric_in_two_spellings_is_one_column_not_a_renamed_one(live: bool) -> None:
    runs = [start_experiment("a"), start_experiment("b")]
    runs[0].log({"Loss": 1.0}, step=0)
    runs[1].log({"loss": 2.0}, step=0)
    if not live:
        for run in runs:
            run.finish()
    header, _ = query_rows("SELECT * FROM experiments")
    assert [name.lower() for name in header] == [*FIXED, "loss"]
    assert query_rows("SELECT loss FROM experiments ORDER BY experiment_name")[1] == [[1.0], [2.0]]
    for run in runs if live else []:
        run.finish()


@pytest.mark.parametrize("spellings", [("É", "é"), ("\u212a", "k"), ("\u017f", "s"), ("Ⅷ", "ⅷ")])
def test_metrics_whose_spelling_differs_beyond_ascii_are_two(spellings: tuple[str, str]) -> None:
    save("a", **{spellings[0]: [1.0]})
    with start_experiment("b") as run:
        run.log({spellings[1]: 2.0}, step=0)
        sql = f'SELECT "{spellings[0]}", "{spellings[1]}" FROM experiments ORDER BY experiment_name'
        assert query_rows(sql)[1] == [[1.0, None], [None, 2.0]]
    assert query_rows(sql)[1] == [[1.0, None], [None, 2.0]]
    pack_experiments()
    assert query_rows(sql)[1] == [[1.0, None], [None, 2.0]]


def test_a_metric_that_a_run_logs_while_the_question_is_asked_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = start_experiment("a")
    run.log({"loss": 2.0}, step=0)

    catalogue = Catalogue()
    run.log({"loss": 1.0, "accuracy": 0.5}, step=1)
    sql = "SELECT loss, accuracy FROM experiments ORDER BY step"
    monkeypatch.chdir(get_experiments_dir())
    assert connect(catalogue, sql, 2**30).execute(sql).fetchall() == [(2.0, None), (1.0, 0.5)]
    run.finish()


def test_runs_have_their_facts_and_a_config_that_json_operators_read() -> None:
    with start_experiment(
        "a", project="p", config={"optimizer": {"lr": 0.1}}, seed=7, tags=["x", "y"]
    ) as run:
        run.update(parameters=10, tokens=2**40)
        run.log({"loss": 1.0}, step=1)
    _, rows = query_rows(
        "SELECT name, status, project, config->>'$.optimizer.lr', seed, parameters, tokens, tags, "
        "started <= finished, duration >= 0, host IS NOT NULL FROM runs"
    )
    assert rows == [["a", "finished", "p", "0.1", 7, 10, 2**40, ["x", "y"], True, True, True]]
    frame = query_experiments("SELECT started, config FROM runs")
    assert json.loads(frame["config"][0]) == {"optimizer": {"lr": 0.1}}
    started = query_rows("SELECT started FROM runs")[1][0][0]
    assert isinstance(started, datetime) and started.tzinfo is not None
    assert abs((datetime.now().astimezone() - started).total_seconds()) < 60


def test_a_config_that_is_no_text_hides_no_other_run() -> None:
    save("a", loss=[1.0])
    odd = {"path": "\udcff", "é": "🙂\0", "q": '"'}
    save_experiment("b", pd.DataFrame({"loss": [1.0]}), metadata={"config": odd})
    sql = "SELECT config->>'path', config->>'é', config->>'q' FROM runs ORDER BY name"
    assert query_rows(sql)[1] == [[None, None, None], ["?", "🙂\0", '"']]


@pytest.mark.parametrize(
    "source",
    [
        "query('FROM exper' || 'iments')",
        "query_table('exper' || 'iments')",
        'main."Experiments"',
        "query_table('ru' || 'ns')",
        "QUERY_TABLE(['ru' || 'ns'])",
    ],
)
def test_a_table_is_never_empty_because_its_name_was_not_recognised(source: str) -> None:
    start_experiment("a").log({"loss": 1.0}, step=0)
    assert query_rows(f"SELECT count(*) FROM {source}")[1] == [[1]]


def test_the_two_views_join() -> None:
    save_experiment("a", pd.DataFrame({"loss": [1.0, 0.5]}), metadata={"project": "p"})
    sql = "SELECT project, min(loss) FROM experiments e JOIN runs r ON r.name = e.experiment_name GROUP BY 1"
    assert query_rows(sql)[1] == [["p", 0.5]]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM experiments;",
        "-- a comment\nSELECT * FROM experiments",
        "WITH e AS (SELECT * FROM experiments) SELECT loss FROM e",
        "FROM experiments",
        "VALUES (1)",
        "DESCRIBE experiments",
        "SUMMARIZE experiments",
        "SHOW TABLES",
        "EXPLAIN SELECT loss FROM experiments",
    ],
)
def test_everything_that_only_reads_may_be_asked(sql: str) -> None:
    save("a", loss=[1.0])
    assert query_rows(sql)[1]
    assert len(query_experiments(sql))


@pytest.mark.parametrize(
    "sql",
    [
        "",
        ";",
        "-- nothing",
        "SELECT 1; SELECT 2",
        "INSERT INTO experiments VALUES (1)",
        "DELETE FROM experiments",
        "UPDATE experiments SET loss = 0",
        "DROP VIEW experiments",
        "CREATE TABLE t AS SELECT 1",
        "COPY experiments TO 'out.csv'",
        "COPY (SELECT 1) TO 'out.csv'",
        "ATTACH 'x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET threads = 1",
        "PRAGMA database_list",
        "EXPORT DATABASE 'x'",
        "CALL pragma_version()",
        "CHECKPOINT",
        "SELECT 1; COPY (SELECT 1) TO 'out.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO 'out.csv'",
        "EXPLAIN (ANALYZE) COPY (SELECT 1) TO 'out.csv'",
        "EXPLAIN /* */ ANALYZE COPY (SELECT 1) TO 'out.csv'",
        "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{store}/a.parquet' (FORMAT parquet, USE_TMP_FILE false)",
        "WITH d AS (DELETE FROM run_rows RETURNING *) SELECT * FROM d",
        "SELECT * FROM query('COPY (SELECT 1) TO ''out.csv''')",
        "SELECT * FROM enable_profiling(save_location = 'out.json')",
        "SELECT * FROM enable_logging(storage = 'file', storage_path = 'out')",
        "CALL enable_logging()",
        "SELECT * FROM force_checkpoint()",
        "RESET enable_external_access",
        "SET GLOBAL enable_external_access = true",
        "DETACH memory",
        "USE memory",
        "CREATE SECRET s (TYPE s3)",
        "IMPORT DATABASE 'x'",
        "VACUUM",
        "PREPARE p AS SELECT 1",
    ],
)
def test_every_other_statement_is_refused(
    sql: str, tmp_path: Path, assets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save("a", loss=[1.0])
    store = assets_dir / "outputs" / "experiments"
    before = sorted(tmp_path.iterdir())
    assert refusal(sql.replace("{store}", str(store))).message
    assert sorted(tmp_path.iterdir()) == before
    assert query_rows("SELECT loss FROM experiments")[1] == [[1.0]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "'/etc/passwd'",
        "read_csv('/etc/passwd')",
        "read_text('/etc/passwd')",
        "read_blob('/etc/passwd')",
        "read_text('{outside}')",
        "glob('/etc/*')",
        "'{outside}'",
        "read_parquet('{outside}')",
        "read_parquet('{store}/*.parquet')",
        "'{store}/a.jsonl'",
        "read_json('{runs}/a/manifest.json')",
        "read_csv('http://127.0.0.1:9/x.csv')",
        "parquet_metadata('{outside}')",
        "sniff_csv('/etc/passwd')",
        "read_csv(['/etc/passwd'])",
        "read_json('/etc/passwd')",
        "read_ndjson_objects('/etc/passwd')",
        "read_text('/proc/self/environ')",
        "read_duckdb('{outside}')",
        "parquet_schema('{outside}')",
        "parquet_file_metadata('{outside}')",
        "parquet_kv_metadata('{outside}')",
        "'s3://bucket/x.parquet'",
        "'hf://datasets/a/b.parquet'",
        "'https://127.0.0.1:9/x.parquet'",
        "sqlite_scan('{store}/.catalogue.sqlite', 'files')",
        "postgres_scan('', '', '')",
        "read_xlsx('{outside}')",
        "st_read('{outside}')",
        "duckdb_secrets()",
        "duckdb_extensions()",
        "load_aws_credentials()",
        "frame",
    ],
)
def test_nothing_outside_the_experiments_can_be_read(
    source: str, tmp_path: Path, assets_dir: Path
) -> None:
    frame = pd.DataFrame({"secret": [1]})  # a variable here is no table there
    outside = tmp_path / "outside.parquet"
    frame.to_parquet(outside)
    start_experiment("a").finish("interrupted")
    save("b", loss=[1.0])
    places = {
        "outside": outside,
        "store": assets_dir / "outputs" / "experiments",
        "runs": assets_dir / "outputs" / "runs",
    }
    refusal(f"SELECT * FROM {source.format(**places)}")


def test_the_files_of_the_store_itself_may_be_named(assets_dir: Path) -> None:
    save("b", loss=[1.0])
    path = assets_dir / "outputs" / "experiments" / "b.parquet"
    assert query_rows(f"SELECT loss FROM '{path}'")[1] == [[1.0]]


def test_a_wrong_column_is_one_line_with_the_right_one_as_hint() -> None:
    save("a", loss=[1.0], perplexity=[2.0])
    error = refusal("SELECT perplexty FROM experiments")
    assert "perplexty" in error.message and "\n" not in error.message
    assert "perplexity" in error.hint and "\n" not in error.hint


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM experiment",
        "SELEC 1",
        "SELECT (",
        "SELECT 'x",
        "SELECT 1/'a'",
        "SELECT nope(1)",
    ],
)
def test_wrong_sql_is_one_line_and_a_hint(sql: str) -> None:
    save("a", loss=[1.0])
    error = refusal(sql)
    assert error.message and "\n" not in error.message and "\n" not in error.hint


@pytest.mark.parametrize(
    "folder", ["a b", "it's", "a[1]", "a*", "{x,y}", "ü", "a,b", 'q"q', "%41", "#1"]
)
def test_the_assets_may_lie_in_a_folder_of_any_name(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / folder))
    save("a", loss=[1.0])
    assert query_rows("SELECT loss FROM experiments")[1] == [[1.0]]


def test_a_nan_is_a_nan_and_a_missing_value_is_null() -> None:
    with start_experiment("a") as run:
        run.log({"loss": math.nan}, step=0)
        run.log({"other": 1.0}, step=1)
    _, rows = query_rows("SELECT loss FROM experiments ORDER BY step")
    assert math.isnan(rows[0][0]) and rows[1][0] is None
    assert query_rows("SELECT count(loss) FROM experiments")[1] == [[1]]


@pytest.mark.slow
def test_a_result_that_is_too_long_is_refused_never_cut() -> None:
    save("a", loss=[1.0, 2.0, 3.0])
    sql = "SELECT loss FROM experiments"
    assert len(query_rows(sql, limit=3)[1]) == len(query_experiments(sql, limit=3)) == 3
    for query in (query_rows, query_experiments):
        with pytest.raises(ExperimentError, match="more than 2 rows") as caught:
            query(sql, limit=2)
        assert "--limit" in caught.value.hint
    assert len(query_rows("SELECT * FROM range(1000001)", limit=None)[1]) == 1_000_001


ENDLESS = "SELECT count(*) FROM range(100000000) a, range(100000) b"


def test_a_query_that_takes_too_long_is_stopped() -> None:
    started = time.monotonic()
    with pytest.raises(ExperimentError, match=r"longer than 0\.3 seconds"):
        query_rows(ENDLESS, timeout_seconds=0.3)
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_ctrl_c_stops_a_query() -> None:
    # A process started in the background of a shell ignores SIGINT, and so would its children.
    script = f"""
import signal
from common.experiments.sql import query_rows
from common.experiments.sql_views import connect
from common.experiments.store import parquet_path
from common.utils.paths import REPOSITORY_ROOT, get_experiments_dir
signal.signal(signal.SIGINT, signal.default_int_handler)
query_rows("SELECT 1")
print("ready", flush=True)
query_rows({ENDLESS!r}, timeout_seconds=60)
"""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert "KeyboardInterrupt" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "select",
    ["repeat('a', 1500000000)", "repeat('a', 100000000) FROM range(900)", "range(900000000)"],
)
def test_a_call_that_cannot_be_interrupted_is_ended_all_the_same(select: str) -> None:
    with pytest.raises(ExperimentError, match=r"longer than 0\.05 s"):
        query_rows(f"SELECT {select}", timeout_seconds=0.05, memory_bytes=2**34)
    with pytest.raises(ExperimentError, match=r"needs more than 0\.1 GiB of memory") as caught:
        query_rows(f"SELECT {select}", memory_bytes=2**27)
    assert "query less" in caught.value.hint
    assert query_rows("SELECT 1")[1] == [[1]]


@pytest.mark.slow
def test_a_result_that_is_too_large_for_the_asker_is_refused() -> None:
    for query in (query_rows, query_experiments):
        with pytest.raises(ExperimentError, match="more than 128 MiB"):
            query("SELECT repeat('a', 1000) FROM range(200000)", memory_bytes=2**29)


def test_a_query_is_stopped_from_another_thread() -> None:
    stop = Event()
    Timer(0.2, stop.set).start()
    with pytest.raises(ExperimentError, match="the query was stopped"):
        query_rows(ENDLESS, timeout_seconds=None, stop=stop)


def test_a_process_that_was_killed_is_replaced() -> None:
    query_rows("SELECT 1")
    (idle,) = sql_process._idle
    idle.kill()
    assert query_rows("SELECT 2")[1] == [[2]]


def test_a_fork_does_not_share_the_process_of_its_parent() -> None:
    query_rows("SELECT 1")
    child = os.fork()
    if child == 0:
        os._exit(query_rows("SELECT 2")[1] != [[2]])
    assert os.waitpid(child, 0)[1] == 0
    assert query_rows("SELECT 3")[1] == [[3]]


def test_the_query_of_a_killed_process_ends_with_it() -> None:
    script = f"""
from common.experiments.sql_process import Question, asked
with asked(Question({ENDLESS!r}, "rows", None, None)) as process:
    print(process._process.pid, flush=True)
    process.receive(None)
"""
    asker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None
    worker = psutil.Process(int(asker.stdout.readline()))
    asker.kill()
    asker.communicate()
    worker.wait(timeout=60)


NAMES = [
    "_file_of_the_store",
    "file",
    "File_",
    "filename",
    "file_row_number",
    "file_index",
    "rowid",
]
NAMES += ["file_row_group_number", "live_rows", "experiments", "runs", "random", "a.b", "config"]


def test_a_metric_may_be_named_as_anything_that_the_store_names() -> None:
    columns = ", ".join(f'"{name}"' for name in NAMES)
    expected = [list(map(float, range(len(NAMES)))), [math.nan] * len(NAMES)]
    sql = f"SELECT {columns} FROM experiments ORDER BY step"
    with start_experiment("a") as run:
        for step, values in enumerate(expected):
            run.log(dict(zip(NAMES, values, strict=True)), step=step)
        assert repr(query_rows(sql)[1]) == repr(expected)
    assert repr(query_rows(sql)[1]) == repr(expected)
    table = pq.read_table(parquet_path("a"))
    pq.write_table(table, parquet_path("a"))  # with statistics, as an earlier version wrote it
    assert Catalogue().hiding_nan() == {"a.parquet"}
    assert repr(query_rows(sql)[1]) == repr(expected)
    pack_experiments()
    assert repr(query_rows(sql)[1]) == repr(expected)


@pytest.mark.parametrize(("folder", "match"), [("run[1]", "run1"), ("a*b", "axb"), ("q?", "qq")])
def test_a_store_is_not_mistaken_for_one_that_its_name_would_match(
    folder: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loss, name in enumerate((folder, match)):
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / name))
        save("loose", loss=[float(loss)])
        save("packed", loss=[float(loss)])
        if loss:
            pack_experiments()
    for loss, name in enumerate((folder, match)):
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / name))
        assert query_rows("SELECT loss FROM experiments")[1] == [[float(loss)]] * 2


@pytest.mark.parametrize(
    "sql",
    [
        "PIVOT {e} ON split USING avg(loss) GROUP BY experiment_name",
        "SELECT * FROM (PIVOT {e} ON split USING avg(loss) GROUP BY experiment_name)",
        "WITH p AS (PIVOT {e} ON split USING avg(loss) GROUP BY experiment_name) FROM p;",
    ],
)
def test_a_pivot_finds_its_columns_itself(sql: str) -> None:
    save_experiment("a", pd.DataFrame({"split": ["train", "val"], "loss": [1.0, 2.0]}))
    source = "(SELECT experiment_name, split, loss FROM experiments)"
    for view in ("experiments", source):
        assert query_rows(sql.format(e=view))[0][-2:] == ["train", "val"]
    assert query_rows(sql.format(e=source))[1] == [["a", 1.0, 2.0]]
    assert query_experiments(sql.format(e=source)).to_numpy().tolist() == [["a", 1.0, 2.0]]
    for statement in (
        "COPY ({}) TO 'x.csv'",
        "CREATE TABLE t AS {}",
        "EXPLAIN ANALYZE COPY ({}) TO 'x.csv'",
    ):
        refusal(statement.format(sql.format(e=source).strip(";")))


@pytest.mark.parametrize(
    "condition",
    [
        "config->>'$.lr' > 1e-3",
        "config->>'$.lr' > 1",
        "(config->>'$.lr') BETWEEN 1 AND 2",
        "config->>'$.lr' * 2 > 1",
        "config->'$.lr' > 1e-3",
        "config->>'$.name'::DOUBLE > 1",
    ],
)
def test_a_comparison_with_a_text_of_the_configuration_says_how_to_cast_it(condition: str) -> None:
    config = {"lr": 0.01, "name": "x"}
    save_experiment("a", pd.DataFrame({"loss": [1.0]}), metadata={"config": config})
    assert "TRY_CAST(config->>'$." in refusal(f"SELECT name FROM runs WHERE {condition}").hint
    right = "SELECT name FROM runs WHERE TRY_CAST(config->>'$.lr' AS DOUBLE) > 1e-3"
    assert query_rows(right)[1] == [["a"]]


def test_the_examples_of_the_documentation_are_right() -> None:
    text = (REPOSITORY_ROOT / "docs" / "experiments.md").read_text()
    (block,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    statements = [part.strip() for part in re.split(r"\n(?=SELECT|PIVOT)|--[^\n]*\n|\n\n", block)]
    frame = pd.DataFrame(
        {
            "split": ["val", "train", "val"],
            "loss": [2.0, 1.0, math.nan],
            "accuracy": [0.5, 0.6, math.nan],
        }
    )
    for name, lr in (("a", 1e-2), ("b", "1e-4"), ("c", "constant")):
        metadata = {
            "config": {"optimizer": {"lr": lr}},
            "tags": ["x", "paper"] if name == "a" else ["x"],
        }
        save_experiment(name, frame, metadata=metadata)
    answers = [query_rows(statement)[1] for statement in filter(None, statements)]
    assert answers[:3] == [[["a", 2.0]], [], [["a"]]]  # there is no curve of quickstart_001
    assert [sorted(rows) for rows in answers[3:5]] == [
        [["paper", 1], ["x", 3]],
        [["a"], ["b"], ["c"]],
    ]
    assert answers[5] == [[0.6]] and len(answers[6]) == 3


def test_a_large_query_spills_nothing_where_we_stand() -> None:
    assert query_rows("SELECT current_setting('temp_directory')")[1] == [[""]]


def test_what_a_run_was_computed_with_is_null_where_nobody_recorded_it() -> None:
    facts = {"precision": "bf16", "compiled": True, "threads": 2, "device": "cpu", "cpu": "EPYC"}
    odd = {
        "precision": 16,
        "compiled": "maybe",
        "threads": [2],
        "device": ["cuda"],
        "cpu": {"a": 1},
    }
    for name, metadata in (("a", facts), ("b", {}), ("c", odd)):
        save_experiment(name, pd.DataFrame({"loss": [1.0]}), metadata=metadata)
    sql = "SELECT precision, compiled, threads, device, cpu FROM runs ORDER BY name"
    _, found = query_rows(sql)
    assert found[:2] == [["bf16", True, 2, "cpu", "EPYC"], [None] * 5]
    assert found[2][:3] == ["16", None, None], "of another kind in somebody's metadata"
