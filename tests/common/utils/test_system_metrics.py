"""System metrics: true figures of this process, rarely, and never over what the user logs."""

from __future__ import annotations

import time

import pytest
import torch

from common.utils import query_experiments, start_experiment
from common.utils.system_metrics import SystemMetrics


def test_a_busy_process_is_seen_busy_and_its_memory_grows() -> None:
    system = SystemMetrics(every_seconds=0.2)
    assert system.sample() == {}, "too early"
    held = bytearray(300 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
    first = system.sample()
    assert first["cpu_percent"] > 20, "on a machine that others use too"
    assert system.sample() == {}, "just measured"
    del held
    time.sleep(0.5)
    second = system.sample()
    assert first["memory_gib"] - second["memory_gib"] > 0.2
    assert second["cpu_percent"] < first["cpu_percent"]


def test_they_stand_in_the_rows_that_are_logged_anyway() -> None:
    with start_experiment("a", system_metrics_seconds=0.05) as run:
        for step in range(4):
            run.log({"loss": 1.0}, step=step)
            time.sleep(0.06)
    rows = query_experiments("SELECT step, loss, cpu_percent, memory_gib FROM experiments")
    assert len(rows) == 4 and rows["loss"].notna().all()
    assert rows["memory_gib"].notna().tolist() == [False, True, True, True]
    assert rows["memory_gib"].max() > 0.01


def test_the_users_own_figure_of_that_name_wins_and_they_can_be_turned_off() -> None:
    with start_experiment("a", system_metrics_seconds=0.001) as run:
        time.sleep(0.01)
        run.log({"cpu_percent": -1.0}, step=0)
    assert query_experiments("SELECT cpu_percent AS c FROM experiments")["c"].item() == -1.0
    with start_experiment("b", system_metrics_seconds=None) as run:
        run.log({"loss": 1.0}, step=0)
    rows = query_experiments("SELECT memory_gib FROM experiments WHERE experiment_name = 'b'")
    assert rows["memory_gib"].isna().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_on_the_accelerator_is_counted() -> None:
    held = torch.zeros(2**28, device="cuda")
    system = SystemMetrics(every_seconds=0.001)
    time.sleep(0.01)
    assert system.sample()["gpu_memory_gib"] >= held.nbytes / 2**30
