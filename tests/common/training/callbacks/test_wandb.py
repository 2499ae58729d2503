"""Weights & Biases in offline mode, with the real package; its files are read back."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from apps.importing.foreign import Content
from apps.importing.wandb import WandbRun
from common.errors import ConfigError, MissingPackageError, TrainingError
from common.experiments.conditions import config_hash
from common.experiments.run import Run
from common.training import Callback, Trainer
from common.training.callbacks.wandb import WandB
from common.utils import start_experiment
from common.utils.paths import REPOSITORY_ROOT
from tests.tiny_training import same_weights, train

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left() -> Iterator[None]:
    import wandb

    yield
    wandb.teardown()


def experiment(name: str = "exp", **facts: Any) -> Run:
    facts = {"config": {"lr": 0.1}, "seed": 3, "tags": ["first", "try"]} | facts
    return start_experiment(name, project="tiny", **facts)


def logs(run: Run) -> list[Path]:
    return sorted((run.directory / "wandb").glob("offline-run-*/run-*.wandb"))


def read(run: Run, number: int = 0) -> Content:
    return WandbRun(logs(run)[number]).read()


class Watch(Callback):
    """Every number that was logged, by (step, split)."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, str], dict[str, float]] = {}

    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self.rows[trainer.step, "train"] = dict(metrics)

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
        self.rows[trainer.step, split] = dict(metrics)


class Fail(Callback):
    def __init__(self, step: int, error: type[BaseException]) -> None:
        self.step, self.error = step, error

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            raise self.error


def test_an_offline_run_holds_every_number_and_fact(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch()
    with experiment() as run:
        train(watch, WandB(run, "offline"), run=run, quick=True)
    content = read(run)
    assert {(6, "val_quick"), (6, "val")} < watch.rows.keys() and (4, "val") not in watch.rows
    assert {(r["step"], r["split"]): r["metrics"] for r in content.rows} == watch.rows
    facts = content.facts
    assert facts["name"] == "exp" and facts["project"] == "tiny" and facts["status"] == "finished"
    assert facts["config"] == {"lr": 0.1} and facts["tags"] == ["first", "try"]
    assert f"wandb sync {logs(run)[0].parent}" in capsys.readouterr().err


def test_seeds_of_one_configuration_are_a_group() -> None:
    groups = []
    for seed in (1, 2):
        with experiment(f"seed_{seed}", config={"lr": 0.1, "seed": seed}) as run:
            train(WandB(run, "offline"), run=run, steps=1)
        groups.append(read(run).facts["group"])
        assert config_hash(run.manifest).startswith(groups[-1])
    assert groups[0] == groups[1] != ""


def test_it_changes_nothing_of_the_training() -> None:
    plain = train()
    after = (random.getstate(), torch.get_rng_state())
    random.seed(0)
    expected = random.getstate()
    with experiment() as run:
        watched = train(WandB(run, "offline"), run=run)
    assert same_weights(plain, watched)
    assert torch.equal(torch.get_rng_state(), after[1]) and random.getstate() == expected


def test_a_resumed_training_continues_the_same_run() -> None:
    run = experiment()
    with pytest.raises(RuntimeError), run:
        train(WandB(run, "offline"), Fail(5, RuntimeError), run=run)
    with start_experiment("exp", resume=True) as again:
        train(WandB(again, "offline"), run=again, resume=True)
    names = [path.name for path in logs(run)]
    assert len(names) == 2 and names[0] == names[1]
    first, second = read(run, 0), read(run, 1)
    assert first.facts["status"] == "failed" and second.facts["status"] == "finished"
    assert max(row["step"] for row in first.rows) == 4
    # From the checkpoint of step 4 on, whose evaluation is done a second time.
    assert [(r["step"], r["split"]) for r in second.rows] == [
        (4, "val"),
        (5, "train"),
        (6, "train"),
        (6, "val"),
    ]


def test_another_training_is_another_run() -> None:
    ids = set()
    for name in ("a", "b"):
        with experiment(name) as run:
            train(WandB(run, "offline"), run=run, steps=1)
        ids.add(logs(run)[0].name)
    assert len(ids) == 2


def test_an_interrupted_training_is_an_interrupted_run() -> None:
    run = experiment()
    with pytest.raises(KeyboardInterrupt), run:
        train(WandB(run, "offline"), Fail(3, KeyboardInterrupt), run=run)
    assert read(run).facts["status"] == "interrupted"


def test_the_environment_decides_on_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with experiment("silent") as run:
        train(WandB(run, "online"), run=run, steps=1)
    assert not (run.directory / "wandb").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    with experiment("offline") as run:
        train(WandB(run, "online"), run=run, steps=1)
    assert len(logs(run)) == 1
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with experiment("wrong") as run, pytest.raises(ConfigError, match="WANDB_MODE is 'ofline'"):
        WandB(run)


def test_online_without_an_account_is_an_error_with_the_way_out() -> None:
    run = experiment()
    with pytest.raises(TrainingError, match="API key") as error, run:
        train(WandB(run, "online"), run=run)
    assert "wandb login" in error.value.hint and "offline" in error.value.hint


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with experiment() as run, pytest.raises(MissingPackageError, match="package wandb"):
        WandB(run)


def test_the_package_is_imported_only_when_it_is_used() -> None:
    code = "import sys, common.training.callbacks.wandb; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY_ROOT).returncode == 0
