"""Tags and notes: edited later, kept beside the experiment, found again without the catalogue."""

from __future__ import annotations

import subprocess
import sys
import zlib

import pandas as pd
import pytest

from apps.experiments.deleting import forget_experiments
from common.errors import ExperimentError
from common.experiments.annotate import annotate_experiment
from common.experiments.annotations import Annotation, annotations_path
from common.experiments.catalogue import Catalogue
from common.experiments.log import append_records
from common.experiments.store import parquet_path
from common.utils import query_experiments, save_experiment, start_experiment
from common.utils.paths import get_experiments_dir
from common.utils.plain import clean_text


def save(name: str, tags: list[str] | None = None) -> None:
    save_experiment(name, pd.DataFrame({"loss": [1.0]}), metadata={"tags": tags or []})


def facts(name: str) -> tuple[list[str], str | None]:
    row = query_experiments(f"SELECT tags, note FROM runs WHERE name = '{name}'").iloc[0]
    return list(row["tags"]), None if pd.isna(row["note"]) else row["note"]


def test_tags_and_notes_change_and_the_experiment_does_not() -> None:
    save("a", ["first"])
    before = parquet_path("a").read_bytes()
    assert facts("a") == (["first"], "")
    annotate_experiment("a", add_tags=["paper", "paper", "first"])
    assert facts("a") == (["first", "paper"], "")
    annotate_experiment("a", note="the one in the talk: ü\nand 'more'")
    said = Annotation(["paper"], "the one in the talk: ü\nand 'more'", False)
    assert annotate_experiment("a", remove_tags=["first"]) == said
    assert facts("a") == (["paper"], "the one in the talk: ü\nand 'more'")
    annotate_experiment("a", note="")
    assert facts("a") == (["paper"], "")
    assert parquet_path("a").read_bytes() == before


def test_they_survive_a_rebuild_of_the_catalogue_and_the_end_of_a_run() -> None:
    run = start_experiment("live", tags=["early"])
    run.log({"loss": 1.0}, step=0)
    annotate_experiment("live", add_tags=["late"], note="watch this")
    assert facts("live") == (["early", "late"], "watch this")
    run.finish()
    assert facts("live") == (["early", "late"], "watch this")
    (get_experiments_dir() / ".catalogue.sqlite").unlink()
    assert facts("live") == (["early", "late"], "watch this")
    forget_experiments({Catalogue().place("live").id: "live"})
    (get_experiments_dir() / ".catalogue.sqlite").unlink()
    assert facts("live") == (["early"], "")


def test_mistakes_are_told() -> None:
    save("a", ["x"])
    with pytest.raises(ExperimentError, match="no experiment 'b'"):
        annotate_experiment("b", add_tags=["t"])
    with pytest.raises(ExperimentError, match="'a' has no tag 'y'") as caught:
        annotate_experiment("a", remove_tags=["y"])
    assert "x" in caught.value.hint
    with pytest.raises(ExperimentError, match="empty"):
        annotate_experiment("a", add_tags=[" "])
    assert not annotations_path().exists()


def test_a_damaged_record_is_named_and_costs_nothing_but_itself() -> None:
    for name in "abc":
        save(name)
        annotate_experiment(name, add_tags=["t"])
    lines = annotations_path().read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"t", b"x", 1)
    annotations_path().write_bytes(b"".join(lines))
    catalogue = Catalogue()
    assert [b.error for b in catalogue.broken] == ["line 2: it is damaged"]
    (get_experiments_dir() / ".catalogue.sqlite").unlink()
    assert [facts(name)[0] for name in "abc"] == [["t"], [], ["t"]]


def test_an_archived_experiment_is_kept_and_left_out_of_lists_and_rankings() -> None:
    save("a")
    save("b")
    annotate_experiment("a", archived=True)
    catalogue = Catalogue()
    assert [run.name for run in catalogue.overview()] == ["b"]
    assert [run.name for run in catalogue.overview(archived=True)] == ["a", "b"]
    assert [manifest["name"] for manifest, _ in catalogue.best("loss")] == ["b"]
    assert {summary.name for summary in catalogue.summaries()} == {"b"}
    assert len(query_experiments("SELECT * FROM runs WHERE archived")) == 1
    annotate_experiment("a", archived=False)
    assert [run.name for run in Catalogue().overview()] == ["a", "b"]


@pytest.mark.slow
def test_two_processes_that_tag_at_once_lose_no_tag() -> None:
    save("a")
    script = """
import sys
from apps.experiments.deleting import forget_experiments
from common.experiments.annotate import annotate_experiment
from common.experiments.annotations import Annotation, annotations_path
for i in range(15):
    annotate_experiment("a", add_tags=[f"{sys.argv[1]}{i}"])
"""
    started = [subprocess.Popen([sys.executable, "-c", script, name]) for name in "pq"]
    assert [process.wait() for process in started] == [0, 0]
    assert set(facts("a")[0]) == {f"{name}{i}" for name in "pq" for i in range(15)}


NO_TEXT = pytest.mark.parametrize("text", ["caf\udce9", "\ud800", "a\0b"], ids=ascii)


@NO_TEXT
def test_a_tag_or_note_that_is_no_text_is_refused_and_harms_nothing(text: str) -> None:
    save("a", ["kept"])
    for change in ({"note": text}, {"add_tags": [text]}):
        with pytest.raises(ExperimentError, match="must be text"):
            annotate_experiment("a", **change)  # type: ignore[arg-type]  # one of several keywords
    assert facts("a") == (["kept"], "") and Catalogue().broken == []
    assert not annotations_path().exists()


@NO_TEXT
def test_annotations_with_a_lone_surrogate_of_an_earlier_version_stay_readable(text: str) -> None:
    """Spelt out and named by their line; what was said of the others is not touched."""
    for name in ("a", "b"):
        save(name)
    annotate_experiment("b", note="sound")
    fields = {"tags": ["good", text], "note": text, "archived": False}
    append_records(annotations_path(), [{"kind": "annotate", "name": "a", **fields}])
    tags, note = facts("a")
    assert tags[0] == "good" and note == tags[1] == clean_text(text) and facts("b")[1] == "sound"
    (broken,) = Catalogue().broken
    assert broken.file == "_annotations.jsonl" and broken.error.startswith("line 2: ")
    annotate_experiment("a", remove_tags=[tags[1]], note="mended")
    assert facts("a") == (["good"], "mended")


def test_lines_that_are_not_as_we_write_them_are_named_and_say_nothing() -> None:
    save("a")
    annotate_experiment("a", note="kept")
    wrong: list[dict[str, object]] = [
        {"kind": "annotate"},
        {"kind": "annotate", "name": "a", "tags": 3, "note": "x", "archived": False},
        {"kind": "annotate", "name": "a", "tags": [], "note": None, "archived": False},
        {"kind": "annotate", "name": 3, "tags": [], "note": "", "archived": False},
    ]
    append_records(annotations_path(), wrong)
    with annotations_path().open("ab") as file:
        file.write(b"00000000 {}\n" + b"%08x []\n" % zlib.crc32(b"[]"))
    assert facts("a")[1] == "kept"
    (broken,) = Catalogue().broken
    assert [part.partition(":")[0] for part in broken.error.split("; ")] == [
        f"line {line}" for line in range(2, 8)
    ]
