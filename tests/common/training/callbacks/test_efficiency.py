"""MFU and memory beside the other metrics, and how the progress bar shows them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from common.training.callbacks.base import Callback
from common.training.callbacks.efficiency import Efficiency
from common.training.callbacks.progress import ProgressBar
from common.training.distributed import DistributedContext
from common.training.mfu import model_flops_per_token
from tests.tiny_training import CONTEXT_LENGTH, tiny_model, train

METRICS = {"loss": 2.0, "learning_rate": 1e-3, "gradient_norm": 0.5, "tokens_per_second": 1e6}


def trainer(device: str = "cpu", precision: str = "fp32") -> Any:
    return SimpleNamespace(
        model=tiny_model(),
        device=torch.device(device),
        precision=precision,
        step=10,
        config=SimpleNamespace(max_steps=20),
        context=DistributedContext(),
    )


def measured(fake: Any) -> dict[str, float]:
    callback = Efficiency(CONTEXT_LENGTH)
    callback.on_train_start(fake)
    return callback.measure(fake, METRICS)


def test_on_a_processor_there_is_memory_and_no_mfu() -> None:
    found = measured(trainer())
    assert found.keys() == {"memory_gib"}
    assert found["memory_gib"] == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.1)


def test_on_a_known_device_the_mfu_is_a_part_of_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    fake = trainer("cuda", "bf16")
    flops = model_flops_per_token(fake.model, CONTEXT_LENGTH)
    assert flops is not None
    assert measured(fake) == {"mfu": pytest.approx(1e6 * flops / 756e12), "gpu_memory_gib": 1.5}


def test_on_an_unknown_device_there_is_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe MIG 1g")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30)
    assert measured(trainer("cuda", "bf16")) == {"gpu_memory_gib": 1.0}


def test_a_callback_measures_nothing_by_itself() -> None:
    assert Callback().measure(trainer(), METRICS) == {}


@pytest.mark.slow
def test_the_training_runs_with_it() -> None:
    train(Efficiency(CONTEXT_LENGTH))


def test_progress_shows_what_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    fake, bar = trainer(), ProgressBar()
    bar.on_train_start(fake)
    bar.on_log(fake, METRICS | {"mfu": 0.412, "memory_gib": 1.25})
    bar.on_evaluate(fake, {"loss": 2.5}, "val")
    line = capsys.readouterr().err.strip()
    assert line == (
        "step 10/20  loss 2.000  val loss 2.500  lr 1.0e-03  norm 0.50  1,000,000 tokens/s  "
        "MFU 41%  1.2 GiB"
    )
