"""Command lines of trials, and how they share a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.launching.command import Command, available_cores, share_gpus, trial_environment
from common.errors import ConfigError

TINY = str(Path(__file__).with_name("tiny_train.py"))


def test_a_command_line_has_the_options_before_the_overrides() -> None:
    command = Command("train.py", "a.yaml", ("steps=3",))
    line = command.arguments({"lr": "1e-3"}, "--name", "a_000", python="python")
    assert " ".join(line) == "python train.py --config a.yaml --name a_000 steps=3 lr=1e-3"


def test_several_processes_are_started_by_torchrun() -> None:
    line = Command("train.py", nproc=2).arguments({}, python="python")
    torchrun = "python -m torch.distributed.run --standalone --nproc-per-node=2 train.py"
    assert line == torchrun.split()


@pytest.mark.parametrize(
    ("parallel", "nproc", "given", "threads"),
    [
        (4, None, None, "4"),
        (4, 2, None, "2"),
        (1, 2, None, "8"),
        (100, None, None, "1"),
        (4, None, "16", "4"),  # would be four times too many
        (4, None, "1", "1"),  # what was asked for, and no more than the share
        (4, None, "many", "4"),
        (1, None, None, None),  # alone: PyTorch knows best
        (1, None, "3", "3"),
    ],
)
def test_trials_share_the_cores(
    parallel: int,
    nproc: int | None,
    given: str | None,
    threads: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("apps.launching.command.available_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert trial_environment(parallel, nproc).get("OMP_NUM_THREADS") == threads


def test_cores_are_counted() -> None:
    assert available_cores() >= 1


def test_gpus_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-a,7,8")
    assert share_gpus(2, 2) == ["4,5", "GPU-a,7"]
    assert share_gpus(0, 3) == ["", "", ""]
    with pytest.raises(ConfigError, match="need 6, found 5"):
        share_gpus(2, 3)


@pytest.mark.slow
def test_the_script_checks_its_configuration_itself() -> None:
    command = Command(TINY, "tiny.yaml", ("steps=7",))
    first, second = command.resolved_configs([{"lr": "0.5"}, {"lr": "1e-3", "seed": "010"}])
    assert (first["steps"], first["lr"], first["seed"]) == (7, 0.5, 0)
    assert (second["steps"], second["lr"], second["seed"]) == (7, 0.001, 10)
    with pytest.raises(ConfigError, match="unknown key 'lrr'; did you mean 'lr'"):
        command.resolved_configs([{"lrr": "0.5"}])
    with pytest.raises(ConfigError, match=r"argument 'lr=nan': lr: .* \(and 1 more of 3 trials\)"):
        command.resolved_configs([{"lr": "1"}, {"lr": "nan"}, {"lr": "abc"}])
    with pytest.raises(ConfigError) as error:
        Command(TINY, "tini.yaml").resolved_configs([{}])
    assert "no configuration file tini.yaml" in error.value.message
    assert "tiny.yaml" in error.value.hint


def test_what_is_no_training_script_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such script: nothing"):
        Command("nothing.py").resolved_configs([{}])
    other = tmp_path / "other.py"
    other.write_text("raise SystemExit('I am something else')")
    with pytest.raises(ConfigError, match="exited with code 1: I am something else"):
        Command(str(other)).resolved_configs([{}])
    other.write_text("print('hello')")
    with pytest.raises(ConfigError, match="prints no configurations"):
        Command(str(other)).resolved_configs([{}])
