"""What `auto` chooses is measured, kept, and leaves no trace in the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common.models import Decoder
from common.training import Trainer, TrainingConfig, probe
from common.training.precision import supported_precisions

pytestmark = pytest.mark.slow


def decoder(**options: float) -> Decoder:
    torch.manual_seed(0)
    return Decoder(11, num_layers=1, num_heads=2, hidden_size=8, context_length=8, **options)


class Batches:
    def batch(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def choose(model: Decoder, precision: str = "auto", passes: int = 100) -> probe.Choice:
    return probe.choose(model, Batches().batch(0), precision, False, passes)


def test_every_precision_of_the_device_is_measured_and_the_choice_is_never_slower_than_fp32() -> (
    None
):
    choice = choose(decoder())
    assert set(choice.seconds) == set(supported_precisions(torch.device("cpu")))
    assert choice.seconds[choice.precision] <= choice.seconds["fp32"]


def test_a_choice_is_measured_once_per_model_and_machine(
    assets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = choose(decoder())
    assert len(json.loads((assets_dir / "cache" / "probes.json").read_text())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(probe, "_measure", lambda *_: pytest.fail("measured again"))
        assert choose(decoder()) == first
    other = Decoder(11, num_layers=2, num_heads=2, hidden_size=8, context_length=8)
    choose(other)
    assert len(json.loads((assets_dir / "cache" / "probes.json").read_text())) == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"x": 3}'])
def test_a_cache_that_is_no_cache_is_measured_again(assets_dir: Path, content: str) -> None:
    path = assets_dir / "cache" / "probes.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert choose(decoder()).precision in supported_precisions(torch.device("cpu"))
    assert len(json.loads(path.read_text())) >= 1


def test_a_run_too_short_to_measure_is_plain_fp32() -> None:
    assert choose(decoder(), passes=5) == probe.Choice("fp32", False, {})


def test_what_is_set_is_not_measured() -> None:
    assert choose(decoder(), precision="bf16") == probe.Choice("bf16", False, {})


def test_measuring_changes_nothing_that_training_sees() -> None:
    def train(precision: str) -> tuple[Decoder, str]:
        model = decoder(dropout=0.3)
        config = TrainingConfig(max_steps=25, device="cpu", precision=precision, compile=False)
        trainer = Trainer(model, Batches(), config)
        trainer.fit()
        return model, trainer.precision

    measured, chosen = train("auto")
    plain, _ = train(chosen)
    for mine, other in zip(measured.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, other)
