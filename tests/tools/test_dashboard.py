"""`tools/dashboard.py` as a process, and its page as somebody sees it: in a real browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from common.experiments.packing import PACK_SIZE
from common.experiments.packs import write_pack
from common.experiments.parquet import rows_to_table
from common.utils import save_experiment, start_experiment
from common.utils.manifest import ID, create_manifest
from common.utils.paths import REPOSITORY_ROOT, get_experiments_dir, get_runs_dir

pytestmark = pytest.mark.slow
SCRIPT = REPOSITORY_ROOT / "tools" / "dashboard.py"
MANY = 10_000
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>'
WAIT_SECONDS = 20.0


@contextmanager
def dashboard(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The tool's process and the address that it printed."""
    command = [sys.executable, str(SCRIPT), "--no-open", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found is None:
                process.kill()
                pytest.fail(f"no address in {line!r}: {process.communicate()[1]}")
            yield process, found.group()
        finally:
            process.kill()


def read_json(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


# The process --------------------------------------------------------------------------------------


def test_ctrl_c_ends_it_quietly_even_during_a_query() -> None:
    with dashboard("--port", "0") as (process, address):
        assert read_json(f"{address}/api/runs")["columns"]["name"] == []
        sql = "SELECT SUM(a.n * b.n) FROM range(1000000) a(n), range(1000000) b(n)"
        request = urllib.request.Request(
            f"{address}/api/sql",
            json.dumps({"sql": sql}).encode(),
            {"Content-Type": "application/json"},
        )
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            assert isinstance(request.data, bytes)
            head = f"POST /api/sql HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(request.data)}\r\n\r\n"
            connection.sendall(head.encode() + request.data)
            time.sleep(1.0)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate(timeout=30)
        assert process.returncode == 0 and "Traceback" not in complaints
        assert time.monotonic() - began < 15


def test_a_taken_port_is_one_line_and_the_default_moves_on(run_tool: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run_tool("tools/dashboard.py", "--no-open", "--port", taken.getsockname()[1])
    assert result.returncode == 2 and result.stdout == ""
    assert (
        result.stderr.count("\n") == 2 and "error [error]: cannot listen on port" in result.stderr
    )
    with dashboard() as (_, first), dashboard() as (_, second):
        assert first != second  # both were free to choose, from 8420 on
        assert read_json(f"{second}/api/runs")["columns"]["name"] == []


def test_only_this_machine_can_reach_it() -> None:
    with dashboard("--port", "0") as (_, address):
        port = int(address.rpartition(":")[2])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells our own address
            ours = probe.getsockname()[0]
        if ours.startswith("127."):
            pytest.skip("this machine has no address but its own")
        with pytest.raises(OSError):
            socket.create_connection((ours, port), timeout=5).close()


# The page -----------------------------------------------------------------------------------------


class Page:
    """A browser at an address, with what the tests ask of it."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, state: str = "") -> Page:
        self.driver.get("about:blank")
        self.driver.get_log("browser")  # forgets what earlier pages said
        self.driver.get(f"{self.address}/{state}")
        self.until("return document.body.dataset.layout")
        return self

    def js(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, *arguments: object) -> Any:
        """The first truthy result of `script`."""
        end = time.monotonic() + WAIT_SECONDS
        while not (result := self.js(script, *arguments)):
            assert time.monotonic() < end, f"{script}\n{self.text('body')}\n{self.complaints()}"
            time.sleep(0.02)
        return result

    def text(self, selector: str) -> str:
        return str(
            self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        )

    def wait_for(self, selector: str, part: str) -> None:
        self.until(
            "return document.querySelector(arguments[0])?.innerText.includes(arguments[1])",
            selector,
            part,
        )

    def click(self, selector: str, says: str = "") -> None:
        self.until(
            """const found = [...document.querySelectorAll(arguments[0])].find((element) =>
                   element.textContent.includes(arguments[1]));
               found?.click(); return Boolean(found)""",
            selector,
            says,
        )

    def type(self, selector: str, text: str) -> None:
        self.js(
            """const field = document.querySelector(arguments[0]); field.value = arguments[1];
               field.dispatchEvent(new Event("input", {bubbles: true}))""",
            selector,
            text,
        )

    def rows(self) -> list[str]:
        """The names in sight, from top to bottom."""
        names: list[str] = self.js(
            """return [...document.querySelectorAll(".spacer .row:not([hidden])")]
                   .sort((a, b) => a.dataset.index - b.dataset.index)
                   .map((row) => row.querySelector("button.name").textContent)"""
        )
        return names

    def curves(self) -> list[dict[str, Any]]:
        """The lines of the first plot as plotly.js has them, once they are drawn."""
        self.until("return document.querySelector('.plot[data-drawn]')?.data?.length")
        lines: list[dict[str, Any]] = self.js(
            """return document.querySelector(".plot").data.map((line) =>
                   ({name: line.name, mode: line.mode, x: [...line.x], y: [...line.y]}))"""
        )
        return lines

    def complaints(self) -> list[str]:
        """What the console says, without the refused style of plotly's maps and refused SQL."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        said = [line for line in said if not ("/api/sql" in line and "400" in line)]
        return [
            line
            for line in said
            if not ("plotly.min.js" in line and "Applying inline style" in line)
        ]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser, control = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or control is None:
        pytest.skip(
            "needs chromium and chromedriver (Debian: apt install chromium chromium-driver)"
        )
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the package selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,800",
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(control))
    yield driver
    driver.quit()


@contextmanager
def store_at(directory: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESEARCH_ASSETS_DIR", str(directory))
        yield


@pytest.fixture
def page(driver: Any) -> Iterator[Page]:
    """The page over the test's own store."""
    with dashboard("--port", "0") as (_, address):
        page = Page(driver, address)
        yield page
        assert page.complaints() == []


@pytest.fixture(scope="module")
def many(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page over ten thousand runs."""
    with store_at(tmp_path_factory.mktemp("many")):
        write_many()
        with dashboard("--port", "0") as (_, address):
            yield Page(driver, address)


def write_many() -> None:
    common = create_manifest("", project="", config={}, seed=None, tags=[])
    names = [f"run_{index:05d}" for index in range(MANY)]

    def member(index: int) -> tuple[dict[str, Any], pa.Table]:
        row = {"step": index, "epoch": None, "split": "val", "time": 1.0}
        rows = [row | {"metrics": {"loss": 1.0 + (index * 7919 % MANY) / MANY}}]
        manifest = common | {
            "name": names[index],
            ID: f"{index:032x}",
            "status": "finished",
            "project": ("alpha", "beta", "gamma")[index % 3],
            "config": {"lr": index // 5, "seed": index % 5},
            "tags": ["rare"] if index % 1000 == 0 else [],
        }
        return manifest, rows_to_table(names[index], rows, ["loss"])

    for first in range(0, MANY, PACK_SIZE):
        write_pack(map(member, range(first, min(first + PACK_SIZE, MANY))), ["loss"])


def save(name: str, losses: list[float], **metadata: Any) -> None:
    steps = range(0, 10 * len(losses), 10)
    frame = pd.DataFrame({"step": steps, "split": "val", "loss": losses})
    save_experiment(name, frame, metadata=metadata)


def test_ten_thousand_runs_open_at_once(many: Page) -> None:
    many.open()
    many.until("return document.querySelectorAll('.spacer .row').length")
    began = time.monotonic()
    many.driver.get(f"{many.address}/?again")
    many.until("return document.querySelectorAll('.spacer .row').length")
    assert time.monotonic() - began < 5  # 0.5 s on two cores; this is no timing test
    assert many.text("#counts") == "10,000 runs"
    assert many.js("return document.querySelectorAll('.spacer .row').length") < 100
    many.js("document.querySelector('.body').scrollTop = 1e9")
    many.until(
        "return [...document.querySelectorAll('button.name')].some(b => b.textContent === arguments[0])",
        "run_00000",
    )
    assert many.complaints() == []


def test_ten_thousand_runs_are_filtered_and_sorted(many: Page) -> None:
    many.open()
    many.type("#filter", "project:beta 77")
    many.wait_for("#select-filtered", "(")
    wanted = {f"run_{n:05d}" for n in range(MANY) if n % 3 == 1 and "77" in f"{n:05d}"}
    assert many.text("#select-filtered") == f"Select filtered ({len(wanted)})"
    assert set(many.rows()) <= wanted
    many.type("#filter", "tag:rare -project:alpha status:finished")
    assert sorted(many.rows()) == [f"run_{n:05d}" for n in range(0, MANY, 1000) if n % 3]
    many.type("#filter", "")
    many.click("[data-key=best_loss]")
    by_loss = sorted(range(MANY), key=lambda n: n * 7919 % MANY)
    assert many.rows()[:5] == [f"run_{n:05d}" for n in by_loss[:5]]
    many.click("[data-key=best_loss]")
    assert many.rows()[0] == f"run_{by_loss[-1]:05d}"
    many.type("#filter", "tag:rare")
    many.click("#select-filtered")
    many.wait_for("#clear", "(10)")
    assert len(many.curves()) == 10
    assert many.complaints() == []


def test_a_live_run_grows_without_a_reload(page: Page) -> None:
    save("done", [3.0, 2.0])
    with start_experiment("live") as run:
        for step in range(5):
            run.log({"loss": 5.0 - step}, step=step)
        page.open("#tab=curves&runs=live,done")
        page.js("window.loadedOnce = true")
        lengths = {line["name"]: len(line["y"]) for line in page.curves()}
        assert lengths == {"live train": 5, "done val": 2}
        for step in range(5, 9):
            run.log({"loss": 5.0 - step}, step=step)
        page.until(
            "return document.querySelector('.plot').data.some((line) => line.y.length === 9)"
        )
        page.wait_for(".status.running", "running")
    page.until("return !document.querySelector('.status.running')")
    assert page.js("return window.loadedOnce") and len(page.curves()) == 2
    save("later", [1.0])
    page.wait_for("#counts", "3 runs")


def test_a_loss_of_few_batches_is_marked_and_sorted_after_whole_ones(page: Page) -> None:
    for name, splits in (("whole", ["val_quick", "val"]), ("going", ["val_quick"])):
        frame = pd.DataFrame({"split": splits, "loss": [1.3085, 1.3561][: len(splits)]})
        save_experiment(name, frame)
    page.open("#sort=best_loss")
    page.wait_for("#counts", "2 runs")
    assert page.rows() == ["whole", "going"]
    cells = page.js(
        """return [...document.querySelectorAll(".row:not([hidden]) .cell.of-best_loss")]
               .map((cell) => [cell.textContent, cell.title])"""
    )
    texts = sorted(text for text, _ in cells)
    assert texts[0].startswith("1.356") and texts[1].startswith("quick 1.308")
    assert any("of few batches" in title for _, title in cells)


def test_nan_is_a_gap_with_a_notice(page: Page) -> None:
    save("bad", [4.0, 3.0, math.nan, math.inf])
    save("gap", [4.0, math.nan, 3.0, 2.0])
    page.open("#tab=curves&runs=bad,gap")
    lines = page.curves()
    assert [line["y"] for line in lines] == [[4, 3, None, None], [3], [4, None, 3, 2]]
    assert lines[1]["mode"] == "markers"
    assert "loss (val) diverged at step 20" in page.text(".notices")
    assert "loss (val) has 1 gap from step 10 on" in page.text(".notices")
    page.click("button", "log y")
    page.until("return document.querySelector('.plot').layout.yaxis.type === 'log'")
    page.click("[role=tab]", "Compare")
    page.wait_for(".compare", "diverged")


def test_two_runs_are_compared(page: Page) -> None:
    save("first", [3.0, 2.0, 2.5], config={"optimizer": {"lr": 0.1}, "depth": 2})
    save("second", [3.0, 1.5, 1.75], config={"optimizer": {"lr": 0.3}, "depth": 2})
    page.open()
    page.click(".spacer .row", "first")
    page.until("return location.hash.includes('tab=curves')")
    page.click(".spacer .row", "second")
    page.click("[role=tab]", "Compare")
    page.wait_for(".compare", "optimizer.lr")
    assert page.text("td.better").startswith("1.5000")
    assert "depth" not in page.text(".compare")
    page.click(".compare button", "Last")
    page.wait_for("td.better", "1.7500")
    page.driver.refresh()
    page.wait_for("td.better", "1.7500")


def test_seeds_are_drawn_as_a_band(page: Page) -> None:
    for seed in range(3):
        save(f"net_s{seed}", [3.0, 2.0 + seed / 10], config={"lr": 1, "seed": seed}, seed=seed)
    page.open("#tab=curves&runs=net_s0,net_s1,net_s2")
    assert len(page.curves()) == 3
    page.click("button", "group seeds")
    page.wait_for(".legend", "net (3 runs)")
    page.until(
        "return document.querySelector('.plot').data.some((line) => line.fill === 'tonexty')"
    )
    assert page.curves()[-1]["y"] == pytest.approx([3.0, 2.1])
    page.click("[role=tab]", "Compare")
    page.wait_for(".compare tbody", "2.1000 ± 0.25")


def test_zoom_shows_every_point(page: Page) -> None:
    save("long", [math.sin(n / 50) for n in range(12_000)])
    page.open("#tab=curves&runs=long&smooth=0.5")
    assert len(page.curves()[0]["x"]) <= 2000
    page.js(
        "Plotly.relayout(document.querySelector('.plot'), {'xaxis.range[0]': 1000, 'xaxis.range[1]': 1100})"
    )
    page.until("return document.querySelector('.plot').data[0].x.length === 13")
    page.click("button", "Reset zoom")
    page.until("return document.querySelector('.plot').data[0].x.length > 1000")


def test_sql_answers_explains_and_selects(page: Page) -> None:
    save("a", [3.0, 2.0])
    save("b", [3.0, 1.0])
    page.open("#tab=sql")
    page.click(".examples button", "Best validation loss")
    page.wait_for(".result table", "b")
    assert page.text(".result tbody").split() == ["b", "1", "10", "a", "2", "10"]
    page.type(".sql", "SELECT los FROM experiments")
    page.click("button.primary")
    page.wait_for(".result .banner", "hint:")
    for example in ("Hours per project", "Columns"):
        page.click(".examples button", example)
        page.wait_for(
            ".result table", {"Hours per project": "hours", "Columns": "column_name"}[example]
        )
    page.type(".sql", "SELECT name FROM runs WHERE name = 'b'")
    page.click("button.primary")
    page.click(".result button", "Select this run")
    assert [line["name"] for line in page.curves()] == ["b"]


def test_tags_and_notes_are_edited(page: Page) -> None:
    save("a", [1.0], tags=["old"])
    page.open("#tab=run&run=a")
    page.wait_for(".annotations", "old")
    page.click("[aria-label='Remove the tag old']")
    page.until("return !document.querySelector('.annotations .tag')")
    page.type(".note", "the one")
    page.click(".annotations button", "Save note")
    page.wait_for(".annotations", "Saved.")
    page.driver.refresh()
    page.until("return document.querySelector('.note')?.value === 'the one'")
    assert "old" not in page.text(".annotations")


def test_texts_of_the_store_are_never_html(page: Page) -> None:
    config = {HOSTILE: HOSTILE, "nested": {"a": HOSTILE}}
    with start_experiment("evil", project=HOSTILE, config=config, tags=[HOSTILE]) as run:
        run.log({"loss": 2.0, HOSTILE: 1.0}, step=1)
        run.log({"loss": 1.0}, step=2, split=HOSTILE)
        run.update(note=HOSTILE)
    save("good", [1.0])
    sample = {"step": 1, "prompt": HOSTILE, "text": HOSTILE}
    (get_runs_dir() / "evil" / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    name = "<img src=x onerror=window.hacked=3>"
    (get_experiments_dir() / f"{name}.parquet").write_bytes(b"no experiment")
    page.open("#runs=evil,good&sort=name")
    page.wait_for(".of-tags", HOSTILE)
    page.click("[role=tab]", "Curves")
    page.click("#banners summary")
    page.wait_for("#banners", name)
    page.click(".metrics button", HOSTILE)
    page.curves()
    page.wait_for(".panels", HOSTILE)
    seen = {"Compare": ".compare", "Details": ".details", "Samples": ".samples"}
    for tab, place in seen.items():
        page.click("[role=tab]", tab)
        page.wait_for(place, HOSTILE)
    assert page.js("return document.querySelector('.note')") is None
    page.click("[role=tab]", "SQL")
    page.type(".sql", f"SELECT project, note, '{HOSTILE}' AS \"<b>x</b>\" FROM runs")
    page.click("button.primary")
    page.wait_for(".result", HOSTILE)
    page.type(".sql", f"SELECT '{HOSTILE}' FROM nothing")
    page.click("button.primary")
    page.until("return document.querySelector('.result .banner')")
    assert page.js("return window.hacked ?? null") is None
    assert page.js("return document.querySelectorAll('img, iframe, body script').length") == 0


def test_the_keyboard_reaches_everything(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    for name in ("a", "b", "c"):
        save(name, [1.0])
    page.open("#sort=name")
    assert page.rows() == ["a", "b", "c"]
    table = page.driver.find_element("css selector", ".body")
    table.send_keys(Keys.ARROW_DOWN, Keys.SPACE)
    page.until("return location.hash.includes('runs=b')")
    table.send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    page.wait_for(".details h2", "c")
    page.driver.find_element("css selector", "body").send_keys("/")
    assert page.js("return document.activeElement.id") == "filter"


def test_an_empty_store_says_how_to_begin(page: Page) -> None:
    page.open()
    assert "make quickstart" in page.text("#empty") and not page.rows()
    save("first", [1.0])
    page.wait_for("#counts", "1 run")
    assert page.rows() == ["first"]


def test_a_server_that_has_gone_is_told_and_found_again(driver: Any) -> None:
    save("a", [1.0])
    with dashboard("--port", "0") as (_, address):
        page = Page(driver, address).open()
        assert page.rows() == ["a"]
    page.wait_for("#banners", "does not answer")
    with dashboard("--port", address.rpartition(":")[2]):
        page.until("return !document.querySelector('#banners').innerText")
        assert page.rows() == ["a"]
