"""SQL over the store: what may be asked, what may not, and what is said then."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest

from common.errors import ExperimentError
from common.utils import query_experiments, save_experiment, start_experiment
from common.utils.experiment_storage import sql
from common.utils.experiment_storage.catalogue import Catalogue
from common.utils.experiment_storage.packs import pack_experiments
from common.utils.experiment_storage.sql import query_rows

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

    class Slow(Catalogue):
        def __init__(self) -> None:
            super().__init__()
            run.log({"loss": 1.0, "accuracy": 0.5}, step=1)

    monkeypatch.setattr(sql, "Catalogue", Slow)
    assert query_rows("SELECT loss, accuracy FROM experiments ORDER BY step")[1][:2] == [
        [2.0, None],
        [1.0, 0.5],
    ]
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
from common.utils.experiment_storage.sql import query_rows
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
