"""The JSON that the page is made of, and what is refused."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import uvicorn
from starlette.testclient import TestClient

from apps.dashboard.launch import HOST, serve
from apps.dashboard.queries import AT_ONCE, MOST_IN_LINE
from apps.dashboard.server import create_app
from common.errors import MissingPackageError
from common.experiments.parquet import read_parquet, write_table
from common.experiments.statistics import estimate
from common.experiments.store import parquet_path
from common.utils import save_experiment, start_experiment
from common.utils.paths import get_experiments_dir, get_runs_dir
from common.utils.sockets import listen

ADDRESS = "http://127.0.0.1:8420"


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(create_app(), base_url=ADDRESS) as client:
        yield client


def save(name: str, losses: list[float], **metadata: Any) -> None:
    steps = range(0, 10 * len(losses), 10)
    frame = pd.DataFrame({"step": steps, "split": "val", "loss": losses})
    save_experiment(name, frame, metadata=metadata)


def get(client: TestClient, path: str, code: int = 200, **parameters: Any) -> Any:
    response = client.get(f"/api/{path}", params=parameters)
    assert response.status_code == code, response.text
    return json.loads(response.text, parse_constant=lambda text: pytest.fail(f"{text} in JSON"))


def post(client: TestClient, path: str, code: int = 200, **body: Any) -> Any:
    response = client.post(f"/api/{path}", json=body)
    assert response.status_code == code, response.text
    return json.loads(response.text, parse_constant=lambda text: pytest.fail(f"{text} in JSON"))


# The table ----------------------------------------------------------------------------------------


def test_the_table_is_columns_and_names_broken_files(client: TestClient) -> None:
    save("a", [3.0, 2.0], project="alpha", tags=["x"], parameters=1000, config={"lr": 1})
    save("b", [3.0, math.nan], project="beta")
    (get_experiments_dir() / "bad.parquet").write_bytes(b"PAR1")
    answer = get(client, "runs")
    columns = answer["columns"]
    assert columns["name"] == ["a", "b"] and columns["status"] == ["finished"] * 2
    assert columns["best_loss"] == [2.0, 3.0] and columns["diverged"] == [False, True]
    assert columns["step"] == [10, 10] and columns["tags"] == [["x"], []]
    assert columns["parameters"] == [1000, None] and len(set(columns["config_hash"])) == 2
    ((file, reason),) = answer["broken"]
    assert file == "bad.parquet" and reason


def test_the_second_answer_holds_only_what_changed(client: TestClient) -> None:
    save("old", [1.0])
    first = get(client, "runs")
    assert first["complete"] and first["columns"]["name"] == ["old"]
    again = get(client, "runs", since=first["revision"])
    assert not again["complete"] and again["columns"]["name"] == []
    assert again["revision"] == first["revision"]
    with start_experiment("live") as run:
        run.log({"loss": 2.0}, step=1)
        second = get(client, "runs", since=first["revision"])
        assert second["columns"]["name"] == ["live"] and second["columns"]["status"] == ["running"]
        run.log({"loss": 1.0}, step=2)
        third = get(client, "runs", since=second["revision"])
        assert third["columns"]["step"] == [2]
    parquet_path("old").unlink()
    last = get(client, "runs", since=third["revision"])
    assert last["removed"] == ["old"] and last["columns"]["status"] == ["finished"]
    assert get(client, "runs", since=first["revision"])["removed"] == ["old"]


def test_a_revision_of_another_server_is_answered_in_full(client: TestClient) -> None:
    save("a", [1.0])
    for revision in ("other-1", "nonsense", "-"):
        answer = get(client, "runs", since=revision)
        assert answer["complete"] and answer["columns"]["name"] == ["a"]


def test_a_run_that_is_gone_and_comes_again_is_told(client: TestClient) -> None:
    save("a", [1.0])
    first = get(client, "runs")
    parquet_path("a").unlink()
    second = get(client, "runs", since=first["revision"])
    assert second["removed"] == ["a"]
    save("a", [0.5])
    third = get(client, "runs", since=second["revision"])
    assert third["removed"] == [] and third["columns"]["best_loss"] == [0.5]


def test_looking_at_the_store_leaves_nothing_in_it(client: TestClient) -> None:
    with pytest.raises(RuntimeError), start_experiment("failed") as run:
        run.log({"loss": 1.0}, step=1)
        raise RuntimeError
    get(client, "runs")
    before = sorted(path.name for path in get_experiments_dir().iterdir())
    get(client, "runs")
    assert sorted(path.name for path in get_experiments_dir().iterdir()) == before
    assert before == [".catalogue.sqlite", "failed.jsonl"]


@pytest.mark.slow
def test_a_slow_query_holds_up_nobody(client: TestClient) -> None:
    slow = "SELECT SUM(a.n * b.n) FROM range(20000) a(n), range(20000) b(n)"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, client, "sql", sql=slow)
        assert get(client, "runs")["complete"] and not answer.done()
        assert answer.result()["total"] == 1


@pytest.fixture
def port() -> Iterator[int]:
    """A real server, whose clients can leave."""
    listener = listen(HOST, 0, 8420)
    server = uvicorn.Server(uvicorn.Config(create_app(), log_level="warning"))
    thread = Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


def ask_sql(port: int, sql: str) -> HTTPConnection:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/api/sql", json.dumps({"sql": sql}), headers)
    return connection


def answer_of(connection: HTTPConnection) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


@pytest.mark.slow
def test_many_slow_queries_hold_up_nobody_and_end_when_their_askers_leave(port: int) -> None:
    save("a", [1.0])
    endless = "SELECT count(*) FROM range(100000000) a, range(100000) b"
    asked = [ask_sql(port, endless) for _ in range(45)]
    refused = [answer_of(connection)["error"] for connection in asked[AT_ONCE + MOST_IN_LINE :]]
    assert len(refused) == 35 and all("already running" in error for error in refused)
    runs = HTTPConnection("127.0.0.1", port, timeout=60)
    runs.request("GET", "/api/runs")
    assert answer_of(runs)["columns"]["name"] == ["a"]
    for connection in asked:
        connection.close()
    while "error" in (answer := answer_of(ask_sql(port, "SELECT max(loss) FROM experiments"))):
        assert "already running" in answer["error"]  # it sees that they left in a moment
    assert answer["rows"] == [[1.0]]


def test_a_query_of_the_page_has_a_gigabyte(port: int) -> None:
    for select in ("repeat('x', 2000000000)", "range(900000000)"):
        answer = answer_of(ask_sql(port, f"SELECT {select}"))
        assert "the query needs more than 1.0 GiB of memory" in answer["error"]


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_head() -> None:
    async def option() -> int:
        found = asyncio.get_running_loop().create_future()

        def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            of_it = writer.get_extra_info("socket")
            found.set_result(of_it.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen(HOST, 0, 8420)
        async with await asyncio.start_server(accepted, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            writer.close()
            return int(await found)

    assert asyncio.run(option())


def test_an_empty_store_has_an_answer(client: TestClient) -> None:
    assert get(client, "runs")["columns"]["name"] == []
    assert post(client, "curves", runs=[])["curves"] == []
    assert post(client, "compare", runs=[]) == {
        "runs": [],
        "left_out": 0,
        "metrics": [],
        "configs": {},
        "notes": [],
    }


def test_a_loss_of_few_batches_is_told_from_one_of_the_whole_split(client: TestClient) -> None:
    for name, splits in (("whole", ["val_quick", "val"]), ("going", ["val_quick"])):
        frame = pd.DataFrame({"split": splits, "loss": [1.3085, 1.3561][: len(splits)]})
        save_experiment(name, frame)
    columns = get(client, "runs")["columns"]
    found = dict(
        zip(columns["name"], zip(columns["best_loss"], columns["split"], strict=True), strict=True)
    )
    assert found == {"whole": (1.3561, "val"), "going": (1.3085, "val_quick")}
    rows = post(client, "compare", runs=["whole", "going"])["metrics"]
    cells = {row["split"]: [cell and cell["best"] for cell in row["cells"]] for row in rows}
    assert cells == {"val": [1.3561, None], "val_quick": [1.3085, 1.3085]}
    assert [row["split"] for row in rows if row["judges"]] == ["val"]
    answer = post(client, "curves", runs=["whole", "going"])
    assert answer["metrics"]["loss"] == ["val", "val_quick"]
    drawn = {(c["label"], s["split"]): s["y"] for c in answer["curves"] for s in c["series"]}
    assert drawn["whole", "val"] == [1.3561] and drawn["going", "val_quick"] == [1.3085]


# Curves -------------------------------------------------------------------------------------------


def series_of(answer: Any, split: str = "val") -> Any:
    ((curve,),) = [answer["curves"]]
    return next(series for series in curve["series"] if series["split"] == split)


def test_nan_and_infinity_are_gaps_with_the_step_where_it_diverged(client: TestClient) -> None:
    save("a", [3.0, 2.0, math.inf, math.nan])
    series = series_of(post(client, "curves", runs=["a"]))
    assert series["x"] == [0, 10, 20, 30] and series["y"] == [3.0, 2.0, None, None]
    assert series["trouble"] == [{"run": "a", "points": 2, "step": 20, "diverged": True}]


def test_every_split_metric_and_axis_can_be_chosen(client: TestClient) -> None:
    with start_experiment("a") as run:
        for step in range(3):
            run.log({"loss": 2.0, "lr": 0.1}, step=step, epoch=step / 2)
        run.log({"loss": 1.0, "zeal": 5.0}, step=2, split="val", epoch=1.0)
        answer = post(client, "curves", runs=["a"])
        assert answer["metrics"] == {"loss": ["val", "train"], "lr": ["train"], "zeal": ["val"]}
        assert answer["shown"] == ["loss"]
        assert series_of(answer, "train")["x"] == [0, 1, 2]
        answer = post(client, "curves", runs=["a"], metrics=["zeal", "lr"], x="epoch")
        series = {(s["metric"], s["split"]): s for s in answer["curves"][0]["series"]}
        assert series.keys() == {("zeal", "val"), ("lr", "train")}
        assert series["lr", "train"]["x"] == [0.0, 0.5, 1.0]
        only = post(client, "curves", runs=["a"], splits=["val"], x="time")["curves"][0]["series"]
        assert [s["split"] for s in only] == ["val"] and 0 <= only[0]["x"][0] < 60


def test_only_curves_that_grew_are_sent_again(client: TestClient) -> None:
    save("done", [1.0])
    with start_experiment("live") as run:
        run.log({"loss": 2.0}, step=1)
        first = post(client, "curves", runs=["done", "live"])
        known = {curve["key"]: curve["stamp"] for curve in first["curves"]}
        assert known.keys() == {"done", "live"}
        same = post(client, "curves", runs=["done", "live"], known=known)
        assert same["curves"] == [] and same["keys"] == ["done", "live"]
        run.log({"loss": 1.5}, step=2)
        (grown,) = post(client, "curves", runs=["done", "live"], known=known)["curves"]
        assert grown["key"] == "live" and grown["series"][0]["y"] == [2.0, 1.5]


def write_long(name: str, values: np.ndarray[Any, Any]) -> None:
    save(name, [1.0])
    manifest, _ = read_parquet(parquet_path(name))
    parquet_path(name).unlink()
    columns = {
        "experiment_name": pa.array([name] * len(values)),
        "step": pa.array(np.arange(len(values))),
        "epoch": pa.nulls(len(values), pa.float64()),
        "split": pa.array(["val"] * len(values)),
        "time": pa.array(np.arange(len(values)) / 100),
        "loss": pa.array(values),
    }
    write_table(manifest, pa.table(columns))


@pytest.mark.slow
def test_a_million_points_are_reduced_and_exact_where_zoomed_in(client: TestClient) -> None:
    values = np.random.default_rng(0).normal(size=1_000_000)
    values[123_456] = 99.0
    write_long("long", values)
    series = series_of(post(client, "curves", runs=["long"], smoothing=0.9))
    assert len(series["x"]) <= 2000 and len(series["smooth"]) == len(series["x"])
    assert series["y"][series["x"].index(123_456)] == 99.0
    near = series_of(post(client, "curves", runs=["long"], window=[123_400, 123_500]))
    assert near["x"] == list(range(123_399, 123_502))
    assert near["y"] == values[123_399:123_502].tolist()


def test_smoothing_leaves_short_curves_alone(client: TestClient) -> None:
    save("short", [3.0, 2.0, 1.0])
    save("long", [float(n % 7) for n in range(60)])
    short, long = post(client, "curves", runs=["short", "long"], smoothing=0.5)["curves"]
    assert "smooth" not in short["series"][0]
    assert long["series"][0]["smooth"][1] == pytest.approx(2 / 3)  # (0 * 0.25 + 1 * 0.5) / 0.75


def test_seeds_of_a_configuration_become_one_band(client: TestClient) -> None:
    for seed, last in enumerate([1.0, 1.5, 1.2]):
        save(f"big_s{seed}", [3.0, last], project="p", config={"lr": 1, "seed": seed}, seed=seed)
    save("other", [2.0, 2.0], project="p", config={"lr": 2, "seed": 0})
    names = ["big_s0", "other", "big_s1", "big_s2"]
    group, single = post(client, "curves", runs=names, group=True)["curves"]
    assert group["label"] == "big" and group["runs"] == ["big_s0", "big_s1", "big_s2"]
    series, expected = group["series"][0], estimate([1.0, 1.5, 1.2])
    assert series["members"] == 3 and series["n"] == [3, 3]
    assert series["y"][1] == pytest.approx(expected.mean)
    assert expected.half_width is not None
    assert series["high"][1] == pytest.approx(expected.mean + expected.half_width)
    assert single["label"] == "other" and "low" not in single["series"][0]


def test_the_runs_of_a_seed_count_once_in_a_band(client: TestClient) -> None:
    for seed, last in enumerate([1.0, 2.0]):
        for again in "abc":
            config = {"lr": 1, "seed": seed}
            save(f"s{seed}{again}", [3.0, last], project="p", config=config, seed=seed)
    names = [f"s{seed}{again}" for seed in range(2) for again in "abc"]
    (group,) = post(client, "curves", runs=names, group=True)["curves"]
    series, expected = group["series"][0], estimate([1.0, 2.0])
    assert series["n"] == [2, 2] and series["y"][1] == 1.5 and expected.half_width is not None
    assert series["high"][1] == pytest.approx(1.5 + expected.half_width)


def test_a_run_that_is_gone_is_named_and_the_others_are_drawn(client: TestClient) -> None:
    save("a", [1.0])
    answer = post(client, "curves", runs=["a", "gone", "../a"])
    assert answer["keys"] == ["a"] and [name for name, _ in answer["missing"]] == ["gone", "../a"]


def test_a_malformed_question_is_told(client: TestClient) -> None:
    answer = post(client, "curves", code=422, runs=["a"], smoothing=2)
    assert "smoothing" in answer["error"]


# One run, and runs beside each other --------------------------------------------------------------


def test_comparison_marks_the_better_one_and_leaves_out_what_diverged(client: TestClient) -> None:
    save("a", [3.0, 2.0], config={"lr": 1, "depth": 2})
    save("b", [3.0, 2.5], config={"lr": 3, "depth": 2})
    save("c", [0.1, math.nan], config={"lr": 9, "depth": 2})
    answer = post(client, "compare", runs=["b", "a", "c", "gone"])
    assert answer["runs"] == ["b", "a", "c"] and answer["configs"] == {"lr": [3, 1, 9]}
    (row,) = answer["metrics"]
    assert (row["metric"], row["split"], row["direction"], row["judges"]) == (
        "loss",
        "val",
        "min",
        True,
    )
    assert row["better"] == {"best": [1], "last": [1]}
    assert [cell["diverged"] for cell in row["cells"]] == [False, False, True]
    assert row["cells"][2]["best"] == 0.1 and row["cells"][2]["last"] is None


def test_configurations_are_compared_by_their_seeds(client: TestClient) -> None:
    for seed, value in enumerate([1.0, 1.02, 0.98]):
        save(f"a{seed}", [3.0, value], config={"lr": 1, "seed": seed}, seed=seed)
        save(f"b{seed}", [3.0, value - 0.5], config={"lr": 2, "seed": seed}, seed=seed)
    answer = post(client, "compare-seeds", runs=["a1", "b0", "a0"])
    assert answer["groups"] == ["a1", "b0"]
    (row,) = answer["rows"]
    first, second = row["cells"]
    assert (row["metric"], row["split"], row["judges"]) == ("loss", "val", True)
    assert first["seeds"] == 3 and first["mean"] == pytest.approx(1.0) and first["p_value"] is None
    assert second["mean"] == pytest.approx(0.5) and second["p_value"] < 0.001
    assert (first["verdict"], second["verdict"]) == (None, "better") and answer["notes"] == []


def test_losses_of_other_tokens_are_not_ranked(client: TestClient) -> None:
    for name, value in (("a", 2.0), ("b", 1.0)):
        save(name, [3.0, value], config={"vocab": name}, tokenizer=name, precision="fp32")
    answer = post(client, "compare", runs=["a", "b"])
    assert answer["metrics"][0]["better"] == {"best": [], "last": []}
    assert answer["notes"] == ["tokenizer differs: a (a), b (b)"]
    assert answer["configs"]["tokenizer"] == ["a", "b"]
    cell = post(client, "compare-seeds", runs=["a", "b"])["rows"][0]["cells"][1]
    assert cell["verdict"] == "not compared: another tokenizer" and cell["p_value"] is None


def test_details_are_the_manifest_as_json(client: TestClient) -> None:
    with start_experiment("a", config={"clip": math.inf, "lr": 1e-3}, seed=7):
        pass
    facts = get(client, "run", name="a")
    assert facts["seed"] == 7 and facts["config"] == {"clip": None, "lr": 1e-3}
    assert "did you mean 'a'" in get(client, "run", code=400, name="aa")["hint"]


def test_tags_and_note_are_kept(client: TestClient) -> None:
    save("a", [1.0], tags=["old"])
    now = post(client, "annotate", name="a", add_tags=["<b>"], remove_tags=["old"], note="so <i>")
    assert now == {"tags": ["<b>"], "note": "so <i>", "archived": False}
    assert get(client, "run", name="a")["note"] == "so <i>"
    assert get(client, "runs")["columns"]["tags"] == [["<b>"]]
    assert "no tag" in post(client, "annotate", code=400, name="a", remove_tags=["x"])["error"]
    assert "no experiment" in post(client, "annotate", code=400, name="../a", note="x")["error"]


def test_a_note_that_is_no_text_is_refused_and_the_page_goes_on(client: TestClient) -> None:
    save("a", [1.0])
    for change in (b'"note": "\\ud800"', b'"add_tags": ["a\\u0000"]'):
        body = b'{"name": "a", "add_tags": [], "remove_tags": [], %s}' % change
        headers = {"Content-Type": "application/json"}
        answer = client.post("/api/annotate", content=body, headers=headers)
        assert answer.status_code in (400, 422), answer.text
    assert get(client, "runs")["columns"]["name"] == ["a"]


def test_samples_are_those_of_the_last_evaluation_up_to_a_step(client: TestClient) -> None:
    save("a", [1.0])
    lines = [
        json.dumps({"step": s, "prompt": "p", "text": f"p{s}"}) for s in (100, 200) for _ in "ab"
    ]
    path = get_runs_dir() / "a" / "samples.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join([*lines, '{"step": 300, "pro']), encoding="utf-8")
    answer = get(client, "samples", name="a")
    assert answer["steps"] == [100, 200] and answer["step"] == 200 and answer["damaged"] == 1
    assert answer["samples"] == [{"prompt": "p", "text": "p200"}] * 2
    assert get(client, "samples", name="a", step=150)["step"] == 100
    assert get(client, "samples", name="a", step=1)["step"] == 100
    save("none", [1.0])
    assert get(client, "samples", name="none")["steps"] == []


@pytest.mark.parametrize("name", ["../secret", "..", "a/../../secret", "/etc", "secret"])
def test_nothing_outside_of_the_runs_is_read(
    client: TestClient, assets_dir: Path, name: str
) -> None:
    save("a", [1.0])
    for folder in (assets_dir / "outputs" / "secret", assets_dir / "outputs", get_runs_dir()):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "samples.jsonl").write_text('{"step": 1, "prompt": "", "text": "secret"}\n')
    assert "no experiment" in get(client, "samples", code=400, name=name)["error"]


# SQL ----------------------------------------------------------------------------------------------


def test_sql_answers_with_values_that_javascript_can_hold(client: TestClient) -> None:
    save("a", [2.0, 1.0])
    answer = post(
        client,
        "sql",
        sql="SELECT MIN(loss) AS low, 'nan'::DOUBLE AS gap, 9007199254740993 AS big, NULL AS none, "
        "[1, 2] AS list, SUM(step) AS total, DATE '2026-01-02' AS day FROM experiments",
    )
    assert answer["columns"] == ["low", "gap", "big", "none", "list", "total", "day"]
    assert answer["rows"] == [[1.0, "nan", "9007199254740993", None, "[1, 2]", 10, "2026-01-02"]]


def test_sql_sends_a_thousand_rows_and_counts_them_all(client: TestClient) -> None:
    sql = "SELECT * FROM range(2500) AS numbers(n)"
    answer = post(client, "sql", sql=sql)
    assert len(answer["rows"]) == 1000 and answer["total"] == 2500
    text = client.post("/api/sql.csv", json={"sql": sql}).text
    assert text.splitlines()[:2] == ["n", "0"] and len(text.splitlines()) == 2501


@pytest.mark.parametrize("path", ["sql", "sql.csv"])
@pytest.mark.parametrize("sql", ["SELECT nothing FROM experiments", "DROP VIEW runs", "SELEC"])
def test_wrong_sql_is_told_with_a_hint(client: TestClient, path: str, sql: str) -> None:
    answer = post(client, path, code=400, sql=sql)
    assert answer["error"] and "Traceback" not in answer["error"]


# Other people's pages -----------------------------------------------------------------------------


def test_only_the_names_of_this_machine_are_answered(client: TestClient) -> None:
    for path in ("/", "/api/runs", "/static/app.js"):
        assert client.get(path, headers={"host": "localhost:8420"}).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", "192.168.0.7:8420"):
            assert client.get(path, headers={"host": host}).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": ""},
        {"content-type": "application/json", "origin": "http://evil.example"},
        {"content-type": "application/json", "origin": "null"},
        {"content-type": "application/json", "origin": "http://127.0.0.1:9999"},
        {"content-type": "application/json", "sec-fetch-site": "cross-site"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["annotate", "sql", "sql.csv", "curves"])
def test_a_post_of_another_page_is_refused(
    client: TestClient, path: str, headers: dict[str, str]
) -> None:
    save("a", [1.0])
    body = json.dumps({"name": "a", "note": "pwned", "sql": "SELECT 1", "runs": []})
    assert client.post(f"/api/{path}", content=body, headers=headers).status_code == 403
    assert get(client, "run", name="a")["note"] == ""


def test_a_post_of_this_page_is_accepted(client: TestClient) -> None:
    save("a", [1.0])
    headers = {"origin": ADDRESS, "sec-fetch-site": "same-origin"}
    body = {"name": "a", "note": "mine"}
    assert client.post("/api/annotate", json=body, headers=headers).status_code == 200


def test_every_answer_forbids_scripts_that_are_not_its_own(client: TestClient) -> None:
    for path in ("/", "/static/app.js", "/api/runs", "/plotly/plotly.min.js", "/nothing"):
        headers = client.get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
        assert "unsafe" not in policy["style-src"] and policy["connect-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_has_no_script_or_style_of_its_own(client: TestClient) -> None:
    page = client.get("/").text
    assert "style=" not in page and "<style" not in page and " on" not in page.split("<body>")[0]
    assert page.count("<script") == page.count('<script type="module" src=')


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "plotly"])
def test_without_the_extra_the_fix_is_told(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=package) as caught:
        serve(port=0, open_browser=False)
    assert '".[dashboard]"' in caught.value.hint
