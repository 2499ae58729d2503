"""When a number of a paper counts as reproduced, and what the table says where that cannot be told."""

from __future__ import annotations

import csv
import io
import math

import pytest
from scipy import stats

from apps.reproduction.table import COLUMNS, Measured, PaperRow, PaperTable, format_tables

ROW = PaperRow.from_deviation("accuracy", 90.0, 1.0, times=2, digits=1)


def verdict(values: list[float | None], limit: float | None = None, **settings: object) -> str:
    return PaperTable("title", **settings).verdict(Measured(ROW, values, limit))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([88.1, 88.0, 87.9], "reproduced"),  # the mean is exactly on the edge
        ([88.0, 87.9, 87.9], "not reproduced"),
        ([92.1, 92.1, 92.1], "not reproduced"),
        ([60.0, 90.0, 120.0], "reproduced"),  # it is the mean that counts
        ([90.0, 90.0], "needs 3 seeds"),
        ([float("nan"), 90.0, 90.0], "not reproduced"),
    ],
)
def test_the_mean_of_enough_seeds_has_to_lie_within_the_accepted_range(
    values: list[float | None], expected: str
) -> None:
    assert verdict(values) == expected


def test_what_did_not_happen_is_open_only_where_the_run_ended_before_it_had_to() -> None:
    values = [90.0, None, 90.0]  # accepted is a mean of up to 92
    assert verdict(values, limit=None) == "open"
    assert verdict(values, limit=96.0) == "open"  # the mean is at least 92
    assert verdict(values, limit=96.1) == "not reproduced"
    assert verdict([None, None, None], limit=1000.0) == "not reproduced"


def test_a_reduced_setting_reproduces_nothing() -> None:
    assert verdict([90.0] * 3, reduced="a tenth of the steps") == "agrees (reduced)"
    assert verdict([10.0] * 3, reduced="a tenth of the steps") == "not reproduced"


def test_a_control_is_not_judged() -> None:
    assert PaperTable("title").verdict(Measured(PaperRow("control"), [1.0])) == "control"


def test_a_single_published_number_is_accepted_within_a_factor() -> None:
    row = PaperRow.from_factor("steps", 910, 2)
    assert (row.published, row.value, row.accepted) == ("910", 910, (455, 1820))


def test_a_line_has_the_interval_and_the_deviation_over_seeds() -> None:
    table = PaperTable("title", digits=3)
    values = [88.0, 90.5, 91.0, 89.25]
    table.add(ROW, values)
    (line,) = csv.DictReader(io.StringIO(format_tables([table], "csv")))
    assert tuple(line) == ("table", *COLUMNS)
    deviation = stats.tstd(values)
    half_width = stats.t.ppf(0.975, 3) * deviation / math.sqrt(4)
    assert line["ours"] == f"89.688 ± {half_width:.3f}"
    assert line["deviation"] == f"{deviation:.3f}"
    assert (line["accepted"], line["seeds"]) == ("88.000 to 92.000", "4")


def test_a_line_says_how_many_seeds_did_not_get_there() -> None:
    table = PaperTable("title", digits=0, reduced="few steps")
    table.add(PaperRow.from_factor("steps", 1000, 2), [700.0, None, 1500.0], limit=1_500)
    text = format_tables([table])
    assert "title (reduced: few steps)" in text
    assert "1 of 3 not by 1,500; others 700, 1,500" in text
    assert text.rstrip().endswith("open")
