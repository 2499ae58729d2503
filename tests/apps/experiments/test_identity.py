"""Experiments that have one name: two stores that were merged, runs that were renamed, killed anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.experiments.checking import check_store
from apps.experiments.deleting import delete_experiments, unpack_experiment
from apps.experiments.exports import export_experiments
from apps.experiments.renaming import rename_experiment
from apps.importing import import_experiments
from common.errors import ExperimentError
from common.experiments import store
from common.experiments.annotate import annotate_experiment
from common.experiments.catalogue import Catalogue
from common.experiments.log import LogWriter, encode_record, read_records
from common.experiments.members import read_members
from common.experiments.packing import pack_experiments
from common.experiments.parquet import write_parquet
from common.experiments.run_folders import folder_of
from common.utils import (
    query_experiments,
    start_experiment,
)
from common.utils.manifest import ID, create_manifest, identity
from common.utils.paths import REPOSITORY_ROOT, get_experiments_dir, get_runs_dir
from tests.budget import budget
from tests.conftest import RunTool
from tests.fork_server import ForkServer

Machine = Callable[[str], None]


pytestmark = pytest.mark.slow  # dozens of commands


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    def use(name: str) -> None:
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / name))

    yield use


def finished(name: str, *losses: float) -> None:
    with start_experiment(name, project=name) as run:
        for step, loss in enumerate(losses):
            run.log({"loss": loss}, step=step)


def unfinished(name: str, *losses: float) -> None:
    run = start_experiment(name)
    for step, loss in enumerate(losses):
        run.log({"loss": loss}, step=step)
    run.finish("interrupted")


def packed(name: str, *losses: float) -> None:
    finished(name, *losses)
    pack_experiments()


def copy_into(source: Path, target: Path) -> None:
    """As `cp -n` copies what experiments there are."""
    for path in source.rglob("*"):
        copied = target / path.relative_to(source)
        if path.suffix in (".parquet", ".jsonl") and path.name[0] != "_" and not copied.exists():
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copied)


def rows() -> dict[str, list[float]]:
    """{experiment: its losses}, asked of every way to ask."""
    frame = query_experiments("SELECT experiment_name, loss FROM experiments ORDER BY ALL")
    found: dict[str, list[float]] = {}
    for name, loss in zip(frame["experiment_name"], frame["loss"], strict=True):
        found.setdefault(name, []).append(loss)
    catalogue = Catalogue()
    assert (
        sorted(found) == sorted(catalogue.names()) == sorted(r.name for r in catalogue.overview())
    )
    members = {m["name"]: sorted(t["loss"].to_pylist()) for m, t in read_members(catalogue.names())}
    assert members == found
    for name in found:
        assert catalogue.manifest(name)["name"] == name
        (one,) = query_experiments(
            f"SELECT count(*) n FROM experiments WHERE experiment_name = '{name}'"
        )["n"]
        assert one == len(found[name])
        (summary,) = catalogue.summaries(name=name)
        assert (summary.minimum, summary.num_values) == (min(found[name]), len(found[name]))
        assert catalogue.best("loss", top=-1)
    cache = get_experiments_dir() / ".catalogue.sqlite"
    before = [(p.name, p.file) for p in catalogue.places()]
    cache.unlink()
    assert [
        (p.name, p.file) for p in Catalogue().places()
    ] == before, "as a new catalogue would have it"
    return found


WAYS = [finished, unfinished, packed]


@pytest.mark.slow
# A file system holds one file of a name.
@pytest.mark.parametrize(
    ("theirs", "mine"), [(t, m) for t in WAYS for m in WAYS if t is not m or t is packed]
)
def test_two_experiments_of_one_name_are_both_kept_listed_and_named(
    mine: Callable[..., None],
    theirs: Callable[..., None],
    machine: Machine,
    tmp_path: Path,
) -> None:
    machine("b")
    theirs("exp_001", 5.0, 4.0, 3.0)
    machine("a")
    mine("exp_001", 2.0, 1.0)
    rows()  # the catalogue knows of one of them
    there, here = (tmp_path / m / "outputs" / "experiments" for m in "ba")
    copy_into(there, here)
    second = next(name for name in Catalogue().names() if "@" in name)
    expected = {"exp_001": [3.0, 4.0, 5.0], second: [1.0, 2.0]}
    assert rows() == expected, "the one that was started first keeps the name"
    findings = check_store()
    (finding,) = [f for f in findings if not f.mended]
    assert findings == [finding], "nothing is removed"
    assert "'exp_001'" in finding.problem and f"--rename {second} NEW" in finding.action
    assert rows() == expected
    rename_experiment(second, "mine")
    assert rows() == {"exp_001": [3.0, 4.0, 5.0], "mine": [1.0, 2.0]} and check_store() == []
    delete_experiments(["exp_001"])
    assert rows() == {"mine": [1.0, 2.0]}


@pytest.mark.slow
def test_packs_of_two_stores_with_one_name_in_each(machine: Machine, tmp_path: Path) -> None:
    """And a third, which is in both."""
    machine("b")
    for name in ("a", "b"):
        finished(name, 1.0)
    shutil.copytree(tmp_path / "b", tmp_path / "a")
    finished("c", 2.0)
    pack_experiments()
    machine("a")
    finished("c", 3.0)
    pack_experiments()
    copy_into(*(tmp_path / m / "outputs" / "experiments" for m in "ba"))
    second = next(name for name in Catalogue().names() if "@" in name)
    expected = {"a": [1.0], "b": [1.0], "c": [2.0], second: [3.0]}
    assert rows() == expected and second.startswith("c@")
    unpack_experiment(second)
    assert rows() == expected
    unpack_experiment("c")
    pack_experiments()
    assert rows() == expected
    delete_experiments(["c", "a"])
    assert rows() == {"b": [1.0], "c": [3.0]}


def test_a_run_whose_name_was_taken_while_it_ran_is_stored_beside(
    machine: Machine, tmp_path: Path
) -> None:
    machine("b")
    finished("exp", 5.0)
    machine("a")
    run = start_experiment("exp")
    run.log({"loss": 1.0}, step=0)
    folders = [tmp_path / m / "outputs" / "experiments" for m in "ba"]
    copy_into(*folders)
    whole = store.parquet_path("exp").read_bytes()
    run.finish()
    assert store.parquet_path("exp").read_bytes() == whole
    assert rows() == {"exp": [5.0], f"exp@{run.manifest[ID][:8]}": [1.0]}
    assert [f.mended for f in check_store()] == [False]
    with pytest.raises(ExperimentError, match="already exists"):
        start_experiment("exp")
    delete_experiments(["exp"])
    assert rows() == {"exp": [1.0]}


def test_an_unfinished_run_beside_a_finished_one_is_renamed_and_resumed(
    machine: Machine, tmp_path: Path
) -> None:
    machine("b")
    unfinished("exp", 5.0)
    machine("a")
    finished("exp", 1.0)
    shutil.rmtree(get_runs_dir())
    shutil.copytree(tmp_path / "b" / "outputs" / "runs", get_runs_dir())
    copy_into(*(tmp_path / m / "outputs" / "experiments" for m in "ba"))
    second = next(name for name in Catalogue().names() if "@" in name)
    assert folder_of("exp") == get_runs_dir() / "exp", "theirs, which was started first"
    assert not folder_of(second).exists()
    with pytest.raises(ExperimentError, match="finished") as refused:
        start_experiment("exp", resume=True)
    assert "--rename" in refused.value.hint
    rename_experiment("exp", "theirs")  # it was started first
    with start_experiment("theirs", resume=True) as run:
        run.resume_from(1)
        run.log({"loss": 4.0}, step=1)
    assert rows() == {"exp": [1.0], "theirs": [4.0, 5.0]}
    assert [p.name for p in get_runs_dir().iterdir()] == ["theirs"], "the folder was theirs"


def test_one_run_that_was_resumed_on_two_machines_is_two_results(
    machine: Machine, tmp_path: Path
) -> None:
    machine("a")
    unfinished("exp", 5.0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name, loss in (("b", 4.0), ("a", 3.0)):
        machine(name)
        with start_experiment("exp", resume=True) as run:
            run.resume_from(1)
            run.log({"loss": loss}, step=1)
    source = tmp_path / "b" / "outputs" / "experiments" / "exp.parquet"
    key = identity(Catalogue().manifest("exp"))
    shutil.copy(source, get_experiments_dir() / f"exp@{key[:8]}.parquet")
    assert sorted(rows().values()) == [[3.0, 5.0], [4.0, 5.0]]
    check_store()
    assert sorted(rows().values()) == [[3.0, 5.0], [4.0, 5.0]]


def test_what_another_file_holds_as_well_counts_once_and_is_removed_by_a_check() -> None:
    unfinished("exp", 5.0, float("nan"))
    early = store.log_path("exp").read_bytes()
    with start_experiment("exp", resume=True) as run:
        run.log({"loss": 3.0, "other": 1.0}, step=2)
        late = store.log_path("exp").read_bytes()
    whole = store.parquet_path("exp").read_bytes()
    for is_packed in (False, True):
        if is_packed:
            pack_experiments()
            store.parquet_path("exp").write_bytes(whole)
        for log in (early, late):
            store.log_path("exp").write_bytes(log)
            assert len(Catalogue().names()) == (2 if log == early else 1)  # the early one has less
            removed = {f.file for f in check_store() if f.mended}
            assert removed == ({"exp.jsonl", "exp.parquet"} if is_packed else {"exp.jsonl"})
            assert len(query_experiments("SELECT * FROM experiments")) == 3
            if is_packed:
                store.parquet_path("exp").write_bytes(whole)
    assert Catalogue().names() == ["exp"]


def test_experiments_of_earlier_versions_are_told_apart_by_their_start(
    machine: Machine, tmp_path: Path
) -> None:
    def forget(path: Path) -> None:
        """The log as if it had been started without an id."""
        lines = []
        for record, _ in read_records(path):
            assert record is not None
            record.get("manifest", {}).pop(ID, None)
            lines.append(encode_record(record))
        path.write_bytes(b"".join(lines))

    for name in "ba":
        machine(name)
        unfinished("exp", 5.0 if name == "b" else 1.0)
        forget(store.log_path("exp"))
    log = store.log_path("exp").read_bytes()
    with start_experiment("exp", resume=True) as run:
        run.resume_from(1)
    store.log_path("exp").write_bytes(log)  # its own, which a crash left behind
    assert rows() == {"exp": [1.0]}
    shutil.copy(tmp_path / "b" / "outputs" / "experiments" / "exp.jsonl", get_experiments_dir())
    assert sorted(rows().values()) == [[1.0], [5.0]]
    assert not any(finding.mended for finding in check_store())
    assert sorted(rows().values()) == [[1.0], [5.0]]


def test_runs_of_an_earlier_import_with_equal_rows_are_not_taken_for_one() -> None:
    """All of one file have the moment of that file, no host and no command."""
    facts = {"status": "finished", "started": "2024-01-01T00:00:00+00:00", "host": None}
    for name in ("a", "b"):
        manifest = create_manifest(name, project="", config={}, seed=None, tags=[]) | facts
        for key in (ID, "argv"):
            del manifest[key]
        row = {"step": 1, "split": "val", "epoch": None, "time": 1.0, "metrics": {"loss": 2.0}}
        write_parquet(manifest, [row])
    assert rows() == {"a": [2.0], "b": [2.0]} and check_store() == []
    pack_experiments()
    assert rows() == {"a": [2.0], "b": [2.0]}


def test_half_files_are_named_while_they_are_new() -> None:
    finished("a", 1.0)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for folder in (get_experiments_dir(), store.packs_dir(), get_runs_dir() / "a"):
        folder.mkdir(exist_ok=True)
        (folder / f".x.parquet.{dead.pid}.tmp").touch()
        (folder / f".y.parquet.{os.getpid()}.tmp").touch()  # at work
        (folder / "z.tmp").touch()
    found = check_store()
    assert [f.mended for f in found] == [False] * 6 and all("hour" in f.action for f in found)
    assert {Path(f.file).name for f in found} == {f".x.parquet.{dead.pid}.tmp", "z.tmp"}
    for path in [p for p in get_experiments_dir().parent.rglob("*.tmp")]:
        os.utime(path, (0, 0))
    assert [f.action for f in check_store()] == ["removed"] * 9 and check_store() == []


# Another name -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WAYS)
def test_everything_of_an_experiment_goes_with_its_name(kind: Callable[..., None]) -> None:
    kind("old", 2.0, float("inf"), 1.0)
    finished("other", 3.0)
    (get_runs_dir() / "old" / "checkpoints").mkdir(parents=True)
    annotate_experiment("old", add_tags=["t"], note="n")
    before = Catalogue().manifest("old")
    rename_experiment("old", "new")
    after = Catalogue().manifest("new")
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {"name", "file"} and (after["tags"], after["note"]) == (["t"], "n")
    assert Catalogue().names() == ["new", "other"] and check_store() == []
    losses = query_experiments("SELECT loss FROM experiments WHERE experiment_name = 'new'")
    assert sorted(losses["loss"]) == [1.0, 2.0, float("inf")]
    assert {path.name for path in get_runs_dir().iterdir()} == {"new", "other"}
    assert json.loads((get_runs_dir() / "new" / "manifest.json").read_text())["name"] == "new"
    finished("old", 9.0)  # the name is free, and nothing of the first one sticks to it
    assert Catalogue().manifest("old")["tags"] == []
    rename_experiment("new", "again")
    assert Catalogue().manifest("again")["note"] == "n"


def test_tags_that_an_earlier_version_wrote_by_the_name_follow_a_renaming() -> None:
    finished("old", 1.0)
    fields = {"tags": ["t"], "note": "n", "archived": False}
    path = get_experiments_dir() / "_annotations.jsonl"
    path.touch()
    writer = LogWriter(path)
    writer.append({"kind": "annotate", "name": "old", **fields})
    writer.close()
    rename_experiment("old", "new")
    finished("old", 1.0)
    assert (
        Catalogue().manifest("new")["tags"] == ["t"] and Catalogue().manifest("old")["tags"] == []
    )


def test_a_renaming_that_cannot_be_is_refused_and_changes_nothing() -> None:
    finished("a", 1.0)
    unfinished("b", 2.0)
    (get_runs_dir() / "folder").mkdir(parents=True)
    wrong: list[tuple[str, str, str]] = [
        ("a", "b", "already exists"),
        ("b", "a", "already exists"),
        ("a", "a", "already named 'a'"),
        ("a", "folder", "run folder"),
        ("a", "x/y", "not a valid experiment name"),
        ("a", "a@12345678", "not a valid experiment name"),
        ("c", "d", "no experiment 'c'"),
    ]
    before = rows()
    for old, new, message in wrong:
        with pytest.raises(ExperimentError, match=message):
            rename_experiment(old, new)
    run = start_experiment("live")
    run.log({"loss": 3.0}, step=0)
    with pytest.raises(ExperimentError, match="is running"):
        rename_experiment("live", "d")
    run.finish()
    assert rows() == before | {"live": [3.0]} and check_store() == []


KILLED = """
import os, sys
from pathlib import Path
left, where = int(sys.argv[1]), sys.argv[2]
calls = 0
def dying(real):
    def call(*arguments, **keywords):
        global calls
        if "catalogue" in str(arguments[0]) or str(arguments[0]).endswith(".lock"):
            return real(*arguments, **keywords)
        calls += 1
        if calls == left and where == "before":
            os._exit(9)
        try:
            return real(*arguments, **keywords)
        finally:
            if calls == left:
                os._exit(9)
    return call
from apps.experiments.renaming import rename_experiment
for name in ("rename", "replace", "link", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
rename_experiment("old", "new")
"""


@pytest.mark.attack
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "end"), [(finished, "again"), (unfinished, "check"), (packed, "check")]
)
def test_a_renaming_killed_at_every_rename_loses_nothing_and_is_completed(
    kind: Callable[..., None], end: str, machine: Machine, tmp_path: Path, fork_server: ForkServer
) -> None:
    machine("start")
    for name in ("kept", "old"):
        kind(name, 2.0, 1.0)
    annotate_experiment("old", note="n")
    for moment in range(1, 41, budget(5, 1)):
        machine(f"kill_{moment}")
        shutil.copytree(tmp_path / "start", tmp_path / f"kill_{moment}")
        place = (moment + 1) // 2, ("before", "after")[moment % 2]
        if fork_server.run("-c", KILLED, *place).returncode == 0:
            break
        losses = {m["name"]: t["loss"].to_pylist() for m, t in read_members(Catalogue().names())}
        (name,) = losses.keys() - {"kept"}
        assert name in ("old", "new") and losses == {n: [2.0, 1.0] for n in ("kept", name)}
        assert Catalogue().manifest(name)["note"] == "n"
        if end == "again":
            rename_experiment("old", "new")
        else:
            assert all(finding.mended or finding.file.endswith(".tmp") for finding in check_store())
            if "old" in Catalogue():  # it was killed before there was anything to complete
                rename_experiment("old", "new")
        assert rows() == {"kept": [1.0, 2.0], "new": [1.0, 2.0]}
        assert Catalogue().manifest("new")["note"] == "n"
        assert {path.name for path in get_runs_dir().iterdir()} == {"kept", "new"}
        manifest = json.loads((get_runs_dir() / "new" / "manifest.json").read_text())
        assert manifest["name"] == "new"
    else:
        raise AssertionError("it never came to its end")
    assert moment > 6


def test_the_command_renames_and_says_so(run_tool: RunTool) -> None:
    finished("old", 1.0)
    result = run_tool("tools/query_experiments.py", "--rename", "old", "new")
    assert (result.returncode, result.stdout) == (0, "renamed old to new\n"), result.stderr
    result = run_tool("tools/query_experiments.py", "--rename", "old", "other")
    assert result.returncode == 2 and "no experiment 'old'" in result.stderr


def test_an_export_comes_back_as_the_experiment_that_it_was(tmp_path: Path) -> None:
    for name in ("a", "b"):
        finished(name, 1.0)
    key = Catalogue().place("a").id
    export_experiments(tmp_path / "all.json")
    delete_experiments(["a"])
    report = import_experiments(tmp_path / "all.json")
    assert report.imported == ["a"] and "already imported as 'b'" in report.skipped[0][1]
    assert Catalogue().place("a").id == key and rows() == {"a": [1.0], "b": [1.0]}


@pytest.mark.slow
def test_stores_are_merged_as_the_documentation_says(machine: Machine, tmp_path: Path) -> None:
    text = (REPOSITORY_ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    section = text.partition("## Merging stores")[2]
    commands = section.partition("```bash\n")[2].partition("```")[0]
    machine("theirs/assets")
    packed("packed", 1.0)
    finished("both", 2.0)
    annotate_experiment("both", note="theirs")
    unfinished("going", 3.0)
    machine("ours/assets")
    finished("going", 5.0)
    annotate_experiment("going", note="ours")
    (tmp_path / "ours" / "tools").symlink_to(REPOSITORY_ROOT / "tools")
    commands = commands.replace("OTHER", str(tmp_path / "theirs" / "assets" / "outputs"))
    python = f"{sys.executable} {REPOSITORY_ROOT}"
    commands = commands.replace("python ", f"{python}/")
    result = subprocess.run(
        ["bash", "-c", commands], cwd=tmp_path / "ours", capture_output=True, text=True
    )
    second = next(name for name in Catalogue().names() if "@" in name)
    assert result.returncode == 0 and f"--rename {second} NEW" in result.stdout, result
    assert rows() == {"packed": [1.0], "both": [2.0], "going": [3.0], second: [5.0]}
    assert Catalogue().manifest("both")["note"] == "theirs"
    assert Catalogue().manifest(second)["note"] == "ours"
    assert {path.name for path in get_runs_dir().iterdir()} == {"packed", "both", "going"}


@pytest.mark.parametrize("options", [["--note", "a"], ["--tag", "a"]])
def test_bytes_that_are_not_utf_8_are_refused_in_one_line(options: list[str]) -> None:
    finished("a", 1.0)
    tool = str(REPOSITORY_ROOT / "tools" / "query_experiments.py")
    command = [os.fsencode(part) for part in (sys.executable, tool, *options)]
    result = subprocess.run([*command, b"caf\xe9"], capture_output=True)
    assert result.returncode == 2 and b"Traceback" not in result.stderr
    assert b"must be text" in result.stderr and rows() == {"a": [1.0]}
