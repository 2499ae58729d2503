"""The learning rate against its formula, and at the corners where formulas break."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.training.config import ScheduleConfig
from common.training.schedules import learning_rate_factor
from tests.budget import examples


def rates(max_steps: int, peak: float = 2.0, **options: object) -> list[float]:
    config = ScheduleConfig(**options)
    return [peak * learning_rate_factor(step, max_steps, config) for step in range(max_steps)]


def test_warm_up_is_linear_starts_above_zero_and_reaches_the_peak() -> None:
    found = rates(20, warmup_steps=4, name="cosine")
    assert found[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_cosine_follows_its_formula_to_the_last_step() -> None:
    found = rates(104, warmup_steps=3, min_lr_ratio=0.1, name="cosine")
    for step in range(3, 104):
        progress = (step - 3) / 100
        expected = 0.2 + 0.5 * (2.0 - 0.2) * (1 + math.cos(math.pi * progress))
        assert found[step] == pytest.approx(expected, rel=1e-12)
    assert found[-1] == pytest.approx(0.2)
    assert found[53] == pytest.approx(1.1)  # half-way: the mean of peak and minimum


def test_linear_falls_by_equal_parts() -> None:
    found = rates(13, warmup_steps=2, min_lr_ratio=0.0, name="linear")
    assert found[2:] == pytest.approx([2.0 * (10 - i) / 10 for i in range(11)])
    assert found[-1] == 0.0


def test_wsd_is_constant_and_falls_linearly_in_its_last_part() -> None:
    found = rates(20, warmup_steps=2, min_lr_ratio=0.0, decay_fraction=0.25, name="wsd")
    assert found[:2] == [1.0, 2.0]
    assert found[2:15] == [2.0] * 13
    assert found[15:] == pytest.approx([1.6, 1.2, 0.8, 0.4, 0.0])


def test_constant_stays_at_the_peak_after_warm_up() -> None:
    assert rates(6, warmup_steps=2, name="constant") == pytest.approx(
        [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    )


def test_no_warm_up_begins_at_the_peak() -> None:
    for name in ("cosine", "linear", "constant", "wsd"):
        assert rates(5, warmup_steps=0, name=name)[0] == 2.0


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    assert rates(3, warmup_steps=10) == pytest.approx([0.2, 0.4, 0.6])
    assert rates(10, warmup_steps=10)[-1] == 2.0


def test_steps_after_the_last_keep_the_minimum() -> None:
    config = ScheduleConfig(warmup_steps=0, min_lr_ratio=0.1)
    assert 2.0 * learning_rate_factor(500, 10, config) == pytest.approx(0.2)


def test_a_single_step_has_a_rate() -> None:
    for name in ("cosine", "linear", "constant", "wsd"):
        assert rates(1, warmup_steps=0, name=name)[0] > 0


@given(
    max_steps=st.integers(1, 200),
    warmup=st.integers(0, 250),
    ratio=st.floats(0, 1),
    name=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
)
@examples(100)
def test_rates_rise_then_fall_between_minimum_and_peak(
    max_steps: int, warmup: int, ratio: float, name: str
) -> None:
    found = rates(max_steps, peak=1.0, warmup_steps=warmup, min_lr_ratio=ratio, name=name)
    rising, falling = found[:warmup], found[warmup:]
    assert all(0 < rate <= 1 for rate in rising)
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert all(ratio - 1e-12 <= rate <= 1 for rate in falling)
