"""Callbacks: what they write, and that none of them changes what is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.data.batch import Batch
from common.data.tokenizers import CharTokenizer
from common.models import Decoder
from common.training import Callback, Trainer, TrainingConfig
from common.training.callbacks.early_stopping import EarlyStopping
from common.training.callbacks.progress import ProgressBar
from common.training.callbacks.samples import Samples
from common.training.callbacks.tensorboard import TensorBoard
from common.training.config import SampleConfig
from tests.trainers import make_trainer

TOKENIZER = CharTokenizer.train(["abcdefghij"])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Batches:
    def batch(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(0, TOKENIZER.vocab_size, (2, 8), generator=generator)
        return {"input_ids": ids, "labels": ids}


def train(
    *callbacks: Callback, steps: int = 6, resume_at: int = 0, quick: Sequence[Batch] | None = None
) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(
        TOKENIZER.vocab_size,
        num_layers=1,
        num_heads=2,
        hidden_size=8,
        context_length=8,
        dropout=0.4,
    )
    trainer = make_trainer(
        model,
        Batches(),
        TrainingConfig(max_steps=steps, eval_every_steps=2, log_every_steps=1, device="cpu"),
        val_data=[Batches().batch(100)],
        quick_val_data=quick,
        callbacks=callbacks,
    )
    trainer.set_up()
    trainer.state.step = resume_at
    trainer.fit()
    return model


def samples(path: Path, seed: int = 0, **options: Any) -> Samples:
    return Samples(TOKENIZER, SampleConfig(**options), seed, path)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_drawing_samples_or_not_trains_the_same_weights(tmp_path: Path) -> None:
    plain = train()
    for callbacks in (
        [samples(tmp_path / "a.jsonl", prompts=("", "ab"), max_new_tokens=30)],
        [samples(tmp_path / "b.jsonl", seed=4, temperature=0.0)],
        [ProgressBar(), EarlyStopping(100), TensorBoard(tmp_path / "tensorboard")],
    ):
        watched = train(*callbacks)
        for mine, its in zip(plain.parameters(), watched.parameters(), strict=True):
            assert torch.equal(mine, its)


@pytest.mark.slow
def test_samples_are_kept_for_every_evaluation_and_prompt(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    callback = samples(path, prompts=("", "abc"), max_new_tokens=5)
    train(callback)
    found = entries(path)
    assert [(e["step"], e["prompt"]) for e in found] == [
        (step, prompt) for step in (2, 4, 6) for prompt in ("", "abc")
    ]
    assert all(e["text"].startswith(e["prompt"]) and len(e["text"]) <= 8 for e in found)
    assert callback.latest == [e["text"] for e in found[-2:]]


@pytest.mark.slow
def test_every_prompt_gets_as_many_new_tokens_and_draws_of_its_own(tmp_path: Path) -> None:
    """Whatever the other prompts are; the same prompt twice, and at another step, is another text."""
    prompts = ("a", "abcdefghij" * 4 + "a", "a")
    path = tmp_path / "samples.jsonl"
    train(samples(path, prompts=prompts, max_new_tokens=40, temperature=9.0))
    found = entries(path)
    new = [entry["text"].removeprefix(entry["prompt"]) for entry in found]
    assert len(set(new)) == len(new) == 9
    assert all(len(text) <= 40 for text in new)  # some end at the end-of-text token
    again = tmp_path / "again.jsonl"
    train(samples(again, prompts=prompts, max_new_tokens=40, temperature=9.0))
    assert entries(again) == found
    alone = tmp_path / "alone.jsonl"
    train(samples(alone, prompts=prompts[:1], max_new_tokens=40, temperature=9.0))
    assert entries(alone) == found[::3]
    train(samples(tmp_path / "b", seed=1, prompts=prompts, max_new_tokens=40, temperature=9.0))
    assert not {entry["text"] for entry in entries(tmp_path / "b")} & {e["text"] for e in found}


@pytest.mark.slow
def test_samples_of_lost_steps_are_replaced_on_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    kept = [{"step": 2, "prompt": "", "text": "a"}]
    lost = [{"step": 4, "prompt": "", "text": "lost"}, {"step": 6, "prompt": "", "text": "lost"}]
    text = "".join(json.dumps(entry) + "\n" for entry in kept + lost)
    path.write_text(text + '{"step": 8, "pro')  # a killed process leaves half a line
    train(samples(path), resume_at=4, steps=8)
    found = entries(path)
    assert [e["step"] for e in found] == [2, 4, 6, 8]
    assert found[0] == kept[0] and all(e["text"] != "lost" for e in found)


@pytest.mark.slow
def test_tensorboard_files_can_be_read_and_hold_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows: dict[str, list[tuple[int, float]]] = {}

    class Watch(Callback):
        def on_log(self, trainer: Trainer, metrics: Any) -> None:
            for name, value in metrics.items():
                rows.setdefault(f"{name}/train", []).append((trainer.step, value))

        def on_evaluate(self, trainer: Trainer, metrics: Any, split: str) -> None:
            for name, value in metrics.items():
                rows.setdefault(f"{name}/{split}", []).append((trainer.step, value))

    train(Watch(), TensorBoard(tmp_path / "events"), quick=[Batches().batch(101)])
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert set(events.Tags()["scalars"]) == set(rows)
    for tag, expected in rows.items():
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [v for _, v in found] == pytest.approx([v for _, v in expected], rel=1e-6)
    assert [step for step, _ in rows["loss/val_quick"]] == [2, 4, 6]
    assert [step for step, _ in rows["loss/val"]] == [6]


@pytest.mark.slow
@pytest.mark.parametrize("resume_at", [0, 3])
def test_tensorboard_shows_no_step_twice_after_a_resume(tmp_path: Path, resume_at: int) -> None:
    """Also after a process that died before its first checkpoint, so that step 0 is resumed from."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Die(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 5:
                raise RuntimeError("died")

    with pytest.raises(RuntimeError):
        train(TensorBoard(tmp_path), Die())
    train(TensorBoard(tmp_path), resume_at=resume_at)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [1, 2, 3, 4, 5, 6]


def judged(callback: EarlyStopping, losses: list[float]) -> list[bool]:
    """Whether training was to stop after each evaluation."""
    trainer: Any = SimpleNamespace(should_stop=False, step=0, quick_split="val")
    stops = []
    for loss in losses:
        callback.on_evaluate(trainer, {"loss": loss}, "val")
        stops.append(trainer.should_stop)
    return stops


def test_early_stopping_counts_evaluations_without_a_new_lowest_loss() -> None:
    assert judged(EarlyStopping(2), [3, 2, 2.5, 1.9, 1.9, 1.95]) == [False] * 5 + [True]
    assert judged(EarlyStopping(1), [3, 3]) == [False, True]
    assert judged(EarlyStopping(2), [3, math.nan, math.nan]) == [False, False, True]


def test_early_stopping_goes_on_counting_after_a_resume() -> None:
    before = EarlyStopping(3)
    judged(before, [1.0, 2.0, 2.0])
    after = EarlyStopping(3)
    after.load_state(json.loads(json.dumps(before.state())))
    assert judged(after, [1.5]) == [True]


@pytest.mark.slow
def test_progress_is_a_line_per_evaluation_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(ProgressBar())
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["2/6", "4/6", "6/6"]
    assert all("val loss" in line and "tokens/s" in line for line in lines)
    assert all(line.endswith(" left") for line in lines[:2]) and "left" not in lines[2]


@pytest.mark.slow
def test_progress_names_the_split_of_few_batches(capsys: pytest.CaptureFixture[str]) -> None:
    train(ProgressBar(), quick=[Batches().batch(101)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["2/6", "4/6", "6/6", "6/6"]
    assert all("val_quick loss" in line for line in lines)
    assert [" val loss" in line for line in lines] == [False, False, False, True]


@pytest.mark.slow
def test_samples_are_drawn_once_where_two_evaluations_share_a_step(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    train(samples(path, prompts=("a",)), quick=[Batches().batch(101)])
    assert [entry["step"] for entry in entries(path)] == [2, 4, 6]


def test_early_stopping_counts_the_evaluations_of_few_batches_alone() -> None:
    stopping = EarlyStopping(1)
    trainer: Any = SimpleNamespace(should_stop=False, step=0, quick_split="val_quick")
    stopping.on_evaluate(trainer, {"loss": 1.0}, "val_quick")
    stopping.on_evaluate(trainer, {"loss": 2.0}, "val")
    assert not trainer.should_stop and stopping.best == 1.0
    stopping.on_evaluate(trainer, {"loss": 1.5}, "val_quick")
    assert trainer.should_stop


@pytest.mark.slow
def test_no_step_has_two_lines_however_slow_the_steps_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.training.callbacks.progress.EVERY_SECONDS", 0.0)
    train(ProgressBar(), EarlyStopping(1000))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == [f"{step}/6" for step in range(1, 7)]
