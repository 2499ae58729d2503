"""Every format is read back by the parser that it is for."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.utils.tables import format_rows

COLUMNS = ["name", "loss", "note"]
texts = st.text(max_size=8).filter(lambda text: "\r" not in text)
cells = st.none() | st.integers() | st.floats() | texts | st.booleans()


@given(st.lists(st.tuples(texts, st.floats(), cells), max_size=5))
def test_json_is_strict_and_keeps_every_finite_value(rows: list[tuple[object, ...]]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    records = json.loads(format_rows(COLUMNS, rows, "json"), parse_constant=refuse)
    for record, row in zip(records, rows, strict=True):
        for value, cell in zip(record.values(), row, strict=True):
            lost = isinstance(cell, float) and not math.isfinite(cell)
            assert value == (None if lost else cell)


@given(st.lists(st.tuples(texts, st.floats(), cells), max_size=5))
def test_csv_is_read_back_by_the_csv_module(rows: list[tuple[object, ...]]) -> None:
    # newline="" as the documentation of the module asks for
    text = io.StringIO(format_rows(COLUMNS, rows, "csv"), newline="")
    back = list(csv.reader(text))
    assert back[0] == COLUMNS
    assert back[1:] == [["" if cell is None else str(cell) for cell in row] for row in rows]


@pytest.mark.parametrize("value", [[1.0, math.nan], {"a": math.inf}, [[math.nan]]])
def test_lists_and_structs_that_hold_a_nan_are_valid_json_too(value: object) -> None:
    text = format_rows(["values"], [[value]], "json")
    assert "NaN" not in text and "Infinity" not in text
    json.loads(text)


def test_two_columns_of_one_name_are_both_in_the_json() -> None:
    (record,) = json.loads(format_rows(["a", "a"], [[1, 2]], "json"))
    assert sorted(record.values()) == [1, 2]


@pytest.mark.parametrize("text", ["a|b", "a\nb", "| --- |"])
def test_markdown_has_a_line_per_row_and_the_same_cells_in_each(text: str) -> None:
    for columns, rows in [(["x", "y"], [[text, 1]]), ([text, "y"], [["x", 1]])]:
        lines = format_rows(columns, rows, "markdown").split("\n")
        assert len(lines) == 3
        assert lines[1] == "| --- | ---: |"
        for line in lines:
            assert line.replace("\\\\", "").replace("\\|", "").count("|") == 3


@pytest.mark.parametrize("text", ["a\nb", "a\n\nb"])
def test_a_table_has_a_line_per_row_and_its_columns_stand_below_one_another(text: str) -> None:
    lines = format_rows(["name", "x"], [[text, 1], ["longer name", 22]], "table").split("\n")
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1, "numbers end in one column"


def test_numbers_stand_right_and_texts_left() -> None:
    table = format_rows(["a", "b"], [["x", 1.0], ["long", 123.4567891]], "table")
    assert table.split("\n") == ["a           b", "----  -------", "x           1", "long  123.457"]


def test_an_empty_table_is_its_header() -> None:
    assert format_rows(["a", "b"], [], "table").split("\n") == ["a  b", "-  -"]
    assert format_rows(["a", "b"], [], "csv") == "a,b"
    assert json.loads(format_rows(["a", "b"], [], "json")) == []
    assert len(format_rows(["a", "b"], [], "markdown").split("\n")) == 2


def test_sums_of_integers_and_times_can_be_written_in_every_format() -> None:
    moment = datetime(2020, 1, 2, tzinfo=UTC)
    row = [Decimal(2**70), Decimal("0.5"), moment, None, True]
    for style in ("table", "csv", "json", "markdown"):
        text = format_rows(["a", "b", "c", "d", "e"], [row], style)
        assert str(2**70) in text and "0.5" in text and "2020" in text
