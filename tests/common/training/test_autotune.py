"""`precision: auto`: measuring changes nothing, and nothing that is kept of it can break a run."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import TrainingError
from common.models import Decoder
from common.training import autotune as module
from common.training.autotune import Choice
from common.training.objective import NextToken, Objective
from common.training.precision import supported_precisions
from common.utils.paths import get_assets_dir, get_runs_dir
from common.utils.seeding import get_rng_state
from tests.budget import budget, repeat
from tests.common.training.attack_lab import (
    Attack,
    assert_same,
    call,
    remains,
    resume,
    status,
    train,
)

pytestmark = pytest.mark.slow


AUTO = ["training.precision=auto", "training.compile=auto"]


class Counting(Decoder):
    """Has what a forward pass changes: a buffer, and gradients that were there before."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.register_buffer("calls", torch.zeros(()))

    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().compute_loss(input_ids, labels)


def test_measuring_changes_nothing_of_the_model_and_of_chance() -> None:
    torch.manual_seed(3)
    shape = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "context_length": 8}
    model = Counting(11, dropout=0.5, **shape).train()
    ids = torch.randint(0, 11, (2, 8))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    values, tensors = get_rng_state()
    choice = module.autotune(
        model, NextToken(), {"input_ids": ids, "labels": ids}, "auto", "auto", 1000
    )
    assert len(choice.seconds) >= 2, "it did measure"
    assert model.training and all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    values_after, tensors_after = get_rng_state()
    assert values_after == values
    assert all(torch.equal(tensors_after[name], tensors[name]) for name in tensors)


class OnlyInFull(Counting):
    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = super().compute_loss(input_ids, labels)
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("\"geqrf_cpu\" not implemented for 'BFloat16'")
        return loss


def tiny_pass(**options: Any) -> tuple[Decoder, Objective, dict[str, torch.Tensor]]:
    """A model, and a batch for it."""
    shape = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "context_length": 8}
    ids = torch.randint(0, 11, (2, 8))
    return Decoder(11, **shape | options), NextToken(), {"input_ids": ids, "labels": ids}


def test_runs_that_share_a_file_compute_as_the_first_of_them(tmp_path: Path) -> None:
    path = tmp_path / "auto.json"
    first = module.autotune(*tiny_pass(), "auto", "auto", 5, path)
    assert len(first.seconds) >= 2, "it measured, although it is short itself"
    for other in (tiny_pass(mixer="lstm", num_layers=2), tiny_pass(hidden_size=64)):
        choice = module.autotune(*other, "auto", "auto", 100_000, path)
        assert (choice.precision, choice.compile) == (first.precision, first.compile)
        assert not choice.seconds, "nothing was measured again"


def test_what_is_set_is_not_agreed_on(tmp_path: Path) -> None:
    path = tmp_path / "auto.json"
    module.autotune(*tiny_pass(), "bf16", "auto", 1000, path)
    assert "precision" not in json.loads(path.read_text()), "it was not measured"
    path.write_text(json.dumps({"precision": "bf32", "compile": True}))
    assert module.autotune(*tiny_pass(), "bf16", "auto", 1000, path) == Choice("bf16", True, {})
    assert module.autotune(*tiny_pass(), "auto", False, 1000, path) == Choice("bf32", False, {})
    assert module.autotune(*tiny_pass(), "fp32", False, 1000, path) == Choice("fp32", False, {})


def test_a_machine_without_the_precision_of_the_others_refuses(tmp_path: Path) -> None:
    path = tmp_path / "auto.json"
    path.write_text(json.dumps({"precision": "tf32", "compile": False}))
    with pytest.raises(TrainingError, match="compute in tf32, which cpu does not support"):
        module.autotune(*tiny_pass(), "auto", "auto", 1000, path)


def test_a_precision_that_the_model_cannot_be_computed_in_is_not_chosen() -> None:
    shape = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "context_length": 8}
    ids = torch.randint(0, 11, (2, 8))
    model = OnlyInFull(11, **shape)
    choice = module.autotune(
        model, NextToken(), {"input_ids": ids, "labels": ids}, "auto", "auto", 1000
    )
    assert "fp32" in choice.seconds and "bf16" not in choice.seconds
    assert float(model.calls) == 0.0 and all(p.grad is None for p in model.parameters())


def test_fp16_is_measured_where_it_was_asked_for() -> None:
    """Only `compile` is open then."""
    shape = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "context_length": 8}
    ids = torch.randint(0, 11, (2, 8))
    batch = {"input_ids": ids, "labels": ids}
    choice = module.autotune(Decoder(11, **shape), NextToken(), batch, "fp16", "auto", 1000)
    assert choice.precision == "fp16" and list(choice.seconds) == ["fp16"]


def test_a_measured_precision_trains_as_the_same_one_by_name(attack: Attack) -> None:
    process = train(attack, "auto", "muon", *AUTO)
    assert process.code == 0 and "measured now" in process.output, process.output
    manifest = json.loads((get_runs_dir() / "auto" / "manifest.json").read_text())
    assert manifest["compiled"] is False
    process = train(attack, "by_name", "muon", f"training.precision={manifest['precision']}")
    assert process.code == 0, process.output
    assert_same(remains("auto"), remains("by_name"))


def test_a_killed_run_keeps_the_precision_that_was_measured(attack: Attack) -> None:
    """Whatever a new measurement would say: here the cache is made to prefer another."""
    strike = call("training.checkpoints:delete_old_checkpoints", 7, after=True)
    process = train(attack, "kept", "muon", *AUTO, strikes=(strike,))
    assert process.code == -signal.SIGKILL
    precision = json.loads((get_runs_dir() / "kept" / "manifest.json").read_text())["precision"]
    cache = get_assets_dir() / "cache" / "autotune.json"
    known = json.loads(cache.read_text())
    other = "bf16" if precision != "bf16" else "fp32"
    for entry in known.values():
        entry["precision"] = other
    cache.write_text(json.dumps(known))
    try:
        process = resume(attack, "kept")
    finally:
        cache.unlink()
    assert process.code == 0, process.output
    assert "computing in" not in process.output, "nothing is measured"
    assert (
        json.loads((get_runs_dir() / "kept" / "manifest.json").read_text())["precision"]
        == precision
    )
    process = train(attack, "not_killed", "muon", f"training.precision={precision}")
    assert_same(remains("kept"), remains("not_killed"))


GARBAGE = [
    "",
    "{",
    "[]",
    "3",
    '{"KEY": 1}',
    '{"KEY": {}}',
    '{"KEY": {"precision": "fp8", "compile": false, "seconds": {"fp8": 0.1}}}',
    '{"KEY": {"precision": "fp16", "compile": false, "seconds": {"fp16": 0.1}}}',
    '{"KEY": {"precision": "fp32", "compile": "no", "seconds": {"fp32": 0.1}}}',
    '{"KEY": {"precision": "fp32", "compile": false, "seconds": {}}}',
    '{"KEY": {"precision": "fp32", "compile": false, "seconds": {"fp32": "fast"}}}',
    '{"KEY": {"precision": "fp32", "compile": false, "seconds": 3}}',
    '{"KEY": {"precision": "fp32", "compile": false, "seconds": {"fp32": 1}, "more": 1}}',
]


@pytest.mark.attack
def test_a_measurement_that_cannot_be_read_is_made_again(attack: Attack) -> None:
    cache = get_assets_dir() / "cache" / "autotune.json"
    cache.unlink(missing_ok=True)
    assert train(attack, "measured", "muon", *AUTO).code == 0
    (key,) = json.loads(cache.read_text())
    for number, content in enumerate(GARBAGE[:: budget(12, 1)]):
        cache.write_text(content.replace("KEY", key))
        process = train(attack, f"garbage_{number}", "adamw", *AUTO)
        assert process.code == 0 and "measured now" in process.output, (content, process.output)
        assert list(json.loads(cache.read_text())) == [key]
    process = train(attack, "garbage_over", "adamw", *AUTO)
    assert process.code == 0 and "measured before" in process.output


def test_where_nothing_can_be_kept_it_is_measured_each_time(attack: Attack) -> None:
    cache = get_assets_dir() / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    cache.write_text("no folder")
    try:
        process = train(attack, "unkept", "adamw", *AUTO)
    finally:
        cache.unlink()
    assert process.code == 0, process.output
    assert "cannot cache the measurement" in process.output and "autotune.json" in process.output


@pytest.mark.attack
def test_runs_that_measure_at_the_same_time_do_not_spoil_what_is_kept(attack: Attack) -> None:
    sizes = budget((2, 3), (2, 3, 5, 6))
    processes = [
        attack.start(
            "--config", "config.yaml", "--name", f"crowd_{size}", *AUTO, f"data.batch_size={size}"
        )
        for size in sizes
    ]
    assert [process.wait() for process in processes] == [0] * len(sizes)
    known = json.loads((get_assets_dir() / "cache" / "autotune.json").read_text())
    assert known and all(
        set(entry) == {"precision", "compile", "seconds"} for entry in known.values()
    )


@repeat("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_measuring_leaves_a_run_that_can_be_resumed(
    attack: Attack, number: signal.Signals
) -> None:
    (get_assets_dir() / "cache" / "autotune.json").unlink(missing_ok=True)
    name = f"measuring_{number.name}"
    process = train(
        attack, name, "muon", *AUTO, strikes=(call("training.autotune:_pass", 2, number=number),)
    )
    assert process.code == (130 if number == signal.SIGINT else -number), process.output
    assert "Traceback" not in process.output
    assert status(name) == ("interrupted" if number == signal.SIGINT else "died")
    process = resume(attack, name)
    assert process.code == 0, process.output


# The choice itself


def tiny(**options: float) -> Decoder:
    torch.manual_seed(0)
    return Decoder(11, num_layers=1, num_heads=2, hidden_size=8, context_length=8, **options)


class Batches:
    def batch(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def choose(model: Decoder, precision: str = "auto", passes: int = 100) -> module.Choice:
    return module.autotune(model, NextToken(), Batches().batch(0), precision, False, passes)


def test_every_precision_but_fp16_is_measured_and_the_choice_is_never_slower_than_fp32() -> None:
    choice = choose(tiny())
    assert set(choice.seconds) == set(supported_precisions(torch.device("cpu"))) - {"fp16"}
    assert choice.seconds[choice.precision] <= choice.seconds["fp32"]


def test_a_choice_is_measured_once_per_model_and_machine(
    assets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = choose(tiny())
    assert len(json.loads((assets_dir / "cache" / "autotune.json").read_text())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(module, "_measure", lambda *_: pytest.fail("measured again"))
        assert choose(tiny()) == first
    other = Decoder(11, num_layers=2, num_heads=2, hidden_size=8, context_length=8)
    choose(other)
    assert len(json.loads((assets_dir / "cache" / "autotune.json").read_text())) == 2


@pytest.mark.parametrize("content", GARBAGE)
def test_what_cannot_be_read_is_measured_again(
    content: str, assets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(tiny())
    cache = assets_dir / "cache" / "autotune.json"
    (key,) = json.loads(cache.read_text())
    cache.write_text(content.replace("KEY", key))
    measured = []
    real = module._measure
    monkeypatch.setattr(module, "_measure", lambda *a: measured.append(1) or real(*a))
    choose(tiny())
    assert measured and list(json.loads(cache.read_text())) == [key]


def test_a_run_too_short_to_measure_is_plain_fp32() -> None:
    assert choose(tiny(), passes=5) == module.Choice("fp32", False, {})


def test_what_is_set_is_not_measured() -> None:
    assert choose(tiny(), precision="bf16") == module.Choice("bf16", False, {})
