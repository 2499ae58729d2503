"""Training by several real processes, which torchrun starts: the same training as by one.

This file is also what they run: `torchrun test_distributed.py WHAT FOLDER` (see `main`).
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import load_config
from common.data.batch import IGNORE_INDEX, Batch, count_labels, rows_of
from common.errors import CheckpointError, ConfigError, DataError, exit_on_error
from common.models import BaseLanguageModel, Decoder, checkpoint
from common.training import Callback, Trainer, TrainingConfig
from common.training.checkpoints import steps_in
from common.training.config import OptimizerConfig, ScheduleConfig
from common.training.distributed import DistributedContext, join_context
from common.training.job import train_experiment
from common.training.objective import NextToken
from common.training.parallel import check_distributed, own_rows
from common.utils import query_experiments, start_experiment
from common.utils.paths import REPOSITORY_ROOT, get_runs_dir
from projects.baseline.train import Config, build
from projects.custom_transformer.model import CustomTransformer
from tests.budget import budget
from tests.fork_server import ForkServer
from tests.torchrun import fork_processes, run_processes, torchrun, workers
from tests.trainers import make_trainer

SCRIPT = Path(__file__)
VOCAB_SIZE = 11  # divisible by no number of processes
CONTEXT_LENGTH = 8
Rows = list[dict[str, float]]


class Batches:
    """Some labels are not predicted; each third batch has none at all, others differ from row to row."""

    def __init__(self, size: int, holes: bool) -> None:
        self.size, self.holes = size, holes

    def batch(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(0, VOCAB_SIZE, (self.size, CONTEXT_LENGTH), generator=generator)
        labels = ids.clone()
        if self.holes:
            for row in range(self.size):
                labels[row, : 1 + (row + index) * 3 % CONTEXT_LENGTH] = IGNORE_INDEX
            if index % 3 == 2:
                labels[:] = IGNORE_INDEX
        return {"input_ids": ids, "labels": labels}


class Record(Callback):
    """What is logged, and every result of an evaluation."""

    def __init__(self) -> None:
        self.rows: Rows = []

    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self.rows.append({key: metrics[key] for key in ("loss", "gradient_norm")})

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
        self.rows.append({key: metrics[key] for key in ("loss", "num_tokens")})


class Draw(Callback):
    """The main process alone lets the model write; others have long gone on."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
        drawn = trainer.model.generate(torch.tensor([[1, 2]]), 40, seed=trainer.step)[0]
        self.rows.append({f"token {place}": token for place, token in enumerate(drawn.tolist())})


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer) -> None:
        trainer.should_stop = trainer.step == self.step


class FailAt(Callback):
    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == 2:
            raise DataError("the disk of this machine is gone")


CASES: dict[str, dict[str, Any]] = {
    "whole batches": {"size": 4},
    "uneven": {"size": 3, "holes": True, "accumulation": 3, "ema": 0.9},
    "lstm": {"size": 3, "mixer": "lstm", "accumulation": 2},
    "one row": {"size": 1},
    "recomputed": {
        "size": 4,
        "accumulation": 2,
        "checkpointing": True,
        "masked": True,
        "untied": True,
    },
    "by hand": {"size": 3, "model": "custom"},
    "muon": {"size": 3, "optimizer": "muon", "ema": 0.9},
}


def strategies(name: str) -> list[str]:
    """In `make test` two cases are held in both ways, and the others in turns."""
    if CASES[name].get("optimizer") == "muon":
        return ["ddp"]
    turn = [("ddp", "fsdp")[list(CASES).index(name) % 2]]
    return budget(["ddp", "fsdp"] if name in ("uneven", "recomputed") else turn, ["ddp", "fsdp"])


def create_model(case: Mapping[str, Any]) -> BaseLanguageModel:
    torch.manual_seed(0)
    size: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "hidden_size": 8}
    size["context_length"] = CONTEXT_LENGTH
    if case.get("model") == "custom":
        return CustomTransformer(VOCAB_SIZE, **size)
    model = Decoder(
        VOCAB_SIZE,
        preset="gpt2",
        mixer=case.get("mixer", "attention"),
        dropout=case.get("dropout", 0.0),
        tie_embeddings=not case.get("untied", False),
        **size,
    )
    if case.get("masked"):
        model.mask_documents(end_of_text=3)
    return model


def create_trainer(
    case: Mapping[str, Any],
    strategy: str,
    context: DistributedContext,
    callbacks: list[Callback],
    run: Any = None,
    steps: int = 12,
) -> Trainer:
    batches = Batches(case["size"], case.get("holes", False))
    return make_trainer(
        create_model(case),
        batches,
        TrainingConfig(
            max_steps=steps,
            gradient_accumulation_steps=case.get("accumulation", 1),
            max_grad_norm=0.3,
            ema_decay=case.get("ema"),
            eval_every_steps=5,
            log_every_steps=case.get("log_every_steps", 1),
            device="cpu",
            precision="fp32",
            compile=False,
            activation_checkpointing=case.get("checkpointing", False),
            distributed=strategy,  # type: ignore[arg-type]  # a word of its Literal
        ),
        optimizer=OptimizerConfig(name=case.get("optimizer", "adamw"), lr=1e-2),
        schedule=ScheduleConfig(warmup_steps=2),
        val_data=[batches.batch(index) for index in (100, 101)],
        callbacks=callbacks,
        run=run,
        context=context,
    )


def train(case: Mapping[str, Any], strategy: str, context: DistributedContext) -> Rows:
    record = Record()
    drawing: list[Callback] = [Draw(record.rows)] if context.is_main else []
    create_trainer(case, strategy, context, [record, *drawing]).fit()
    return record.rows


def continue_run(
    name: str,
    case: Mapping[str, Any],
    strategy: str,
    context: DistributedContext,
    stop_at: int | None,
) -> None:
    """Start or resume a run, and stop it after `stop_at` steps: only the main process wants to."""
    run = None
    if context.is_main:
        exists = (get_runs_dir() / name).exists()
        run = start_experiment(name, resume=exists, system_metrics_seconds=None)
    resume = context.from_main(run is not None and run.rows > 0)
    callbacks: list[Callback] = [StopAt(stop_at)] if stop_at and context.is_main else []
    trainer = create_trainer(case, strategy, context, callbacks, run, steps=16)
    if resume:
        torch.manual_seed(12345)  # whatever was drawn until now does not matter
        trainer.resume()
    trainer.fit()
    if run is not None:
        run.finish("interrupted" if stop_at else "finished")


# What the processes do -------------------------------------------------------------------------


def main(what: str, folder: Path) -> None:
    with exit_on_error(), join_context("cpu") as context:
        if what == "losses":
            found = {
                f"{name}, {strategy}": train(case, strategy, context)
                for name, case in CASES.items()
                for strategy in strategies(name)
            }
            if context.is_main:
                (folder / "losses.json").write_text(json.dumps(found))
            for strategy in ("ddp", "fsdp"):
                compare_exactly(strategy, context)
        elif what == "exact":
            for strategy in budget(["fsdp"], ["ddp", "fsdp"]):
                compare_exactly(strategy, context, model="custom")
        elif what == "resume":
            for name, strategy, stop_at in json.loads((folder / "resume.json").read_text()):
                continue_run(name, CASES["uneven"], strategy, context, stop_at)
        elif what == "fail":
            callbacks: list[Callback] = [] if context.is_main else [FailAt()]
            create_trainer(CASES["uneven"], "ddp", context, callbacks).fit()


def compare_exactly(strategy: str, context: DistributedContext, model: str = "decoder") -> None:
    """With dropout: resumed by as many processes, a run is the same to the last bit."""
    case = {"size": 4, "dropout": 0.3, "ema": 0.9, "model": model, "log_every_steps": 5}
    trainer = create_trainer(case, strategy, context, [])
    trainer.set_up()
    drawn = context.gather(torch.rand(3).tolist())
    assert len({tuple(numbers) for numbers in drawn}) == context.world_size
    create_trainer(case, "ddp", DistributedContext(), [])
    assert drawn[0] == torch.rand(3).tolist(), "the main process draws what a single one does"
    del trainer
    continue_run(f"whole_{strategy}", case, strategy, context, None)
    continue_run(f"parts_{strategy}", case, strategy, context, 7)
    continue_run(f"parts_{strategy}", case, strategy, context, None)
    weights = [
        checkpoint.weights_of(
            BaseLanguageModel.load_checkpoint(get_runs_dir() / name / "checkpoints/step_16")
        )
        for name in (f"whole_{strategy}", f"parts_{strategy}")
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    if context.is_main:
        rows = [
            query_experiments(
                "SELECT step, loss, gradient_norm FROM experiments WHERE split = 'train' AND "
                f"experiment_name = '{name}_{strategy}' ORDER BY step"
            )
            for name in ("whole", "parts")
        ]
        assert len(rows[0]) == 3
        assert rows[0].equals(rows[1]), "also of the row in which it was stopped"


# What is asked of them -------------------------------------------------------------------------


def assert_close(found: Rows, expected: Rows) -> None:
    assert len(found) == len(expected)
    for mine, its in zip(found, expected, strict=True):
        assert mine == pytest.approx(its, rel=1e-5, abs=1e-5)


@pytest.mark.attack
@pytest.mark.slow
def test_two_processes_train_as_one_does(fork_server: ForkServer, tmp_path: Path) -> None:
    code, output = fork_processes(fork_server, 2, SCRIPT, "losses", tmp_path)
    assert code == 0, output
    found = json.loads((tmp_path / "losses.json").read_text())
    for name, case in CASES.items():
        expected = train(case, "auto", DistributedContext())
        assert any(row.get("gradient_norm", 0) > 0.3 for row in expected), "nothing was clipped"
        for strategy in strategies(name):
            assert_close(found[f"{name}, {strategy}"], expected)


@pytest.mark.attack
@pytest.mark.slow
def test_three_processes_add_their_gradients_in_the_same_order_after_a_resume(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    """Two numbers have the same sum in either order, three do not."""
    code, output = fork_processes(fork_server, 3, SCRIPT, "exact", tmp_path)
    assert code == 0, output
    assert "find_unused_parameters" not in output


@pytest.mark.attack
@pytest.mark.slow
def test_a_run_goes_on_with_any_number_of_processes(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    """1 -> 2 -> 4 -> 1 process, changing how the model is held."""
    case = CASES["uneven"]
    continue_run("whole", case, "auto", DistributedContext(), None)
    chains = {"one": ("ddp", "fsdp")}
    chains |= budget({}, {"two": ("fsdp", "ddp"), "three": ("fsdp", "fsdp")})
    for name in chains:
        continue_run(name, case, "auto", DistributedContext(), 4)
    for count, place, stop_at in ((2, 0, 7), (4, 1, 11)):
        todo = [(name, chain[place], stop_at) for name, chain in chains.items()]
        (tmp_path / "resume.json").write_text(json.dumps(todo))
        code, output = fork_processes(fork_server, count, SCRIPT, "resume", tmp_path)
        assert code == 0, output
    for name, (_, last) in chains.items():
        folder = get_runs_dir() / name / "checkpoints" / "step_11"
        shards = [file.name for file in folder.glob("shard-*.safetensors")]
        assert len(shards) == (4 if last == "fsdp" else 0)
        if shards:
            check_guarded(folder, shards[0])
        continue_run(name, case, "auto", DistributedContext(), None)
        assert_close(logged(name), logged("whole"))


def check_guarded(folder: Path, shard: str) -> None:
    """Every part is covered by a checksum, and none is a pickle."""
    checkpoint.verify(folder)
    content = (folder / shard).read_bytes()
    json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1]):
        (folder / shard).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"damaged: {shard}"):
            Decoder.load_checkpoint(folder)
    (folder / shard).write_bytes(content)


def logged(name: str) -> Rows:
    """The rows of a finished run; those at which it was stopped and judged are left out."""
    frame = query_experiments(
        f"SELECT split, step, loss FROM experiments WHERE experiment_name = '{name}' "
        "AND (split = 'train' OR step % 5 = 0 OR step = 16) ORDER BY split, step"
    )
    rows: Rows = frame[["step", "loss"]].to_dict("records")
    return rows


CONFIG = """
seed: 3
data: {tokenizer: char, batch_size: 3, path: TEXT}
model: {num_layers: 1, num_heads: 2, hidden_size: 8, context_length: 16, dropout: 0.0}
schedule: {warmup_steps: 5}
training:
  max_steps: 90
  eval_every_steps: 30
  checkpoint_every_steps: 10
  log_every_steps: 10
  device: cpu
  precision: fp32
  compile: false
  distributed: fsdp
samples: {prompts: ["", "the "], max_new_tokens: 4}
"""


@pytest.mark.slow
def test_the_script_survives_signals_and_kills(tmp_path: Path) -> None:
    """SIGTERM to one of two processes, then kill -9 of one of two, then finished by a single one."""
    script = REPOSITORY_ROOT / "projects" / "baseline" / "train.py"
    (tmp_path / "text.txt").write_text(
        "the cat sat on the mat, the dog ran to the red house. " * 60
    )
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace("TEXT", str(tmp_path / "text.txt")))
    job = (load_config(config, Config), build)
    train_experiment(*job, project="baseline", name="whole")

    output = signal_one(2, signal.SIGTERM, script, "--config", config, "--name", "run")
    assert output.count("interrupted at step") == 1, output
    assert "everything is saved; continue with --name run --resume" in output
    assert status("run") == "interrupted"
    saved = steps_in(get_runs_dir() / "run" / "checkpoints")[-1]

    output = signal_one(2, signal.SIGKILL, script, "--name", "run", "--resume")
    assert f"resumed  step={saved}" in output
    assert output.count("error [training]: another process of this training died") == 1
    assert status("run") == "failed"

    train_experiment(*job, project="baseline", name="run", resume=True)
    assert_close(*(logged_by_script(name) for name in ("run", "whole")))
    samples = [
        (get_runs_dir() / name / "samples.jsonl").read_text().splitlines()
        for name in ("run", "whole")
    ]
    assert len(samples[0]) == len(samples[1]) == 6, "each process has drawn samples"


def signal_one(count: int, number: int, *arguments: Any) -> str:
    """Train until a further checkpoint is there, send one process a signal; what was printed."""
    folder = get_runs_dir() / "run" / "checkpoints"
    before = steps_in(folder)
    with torchrun(count, *arguments) as process:
        deadline = time.monotonic() + 300
        while steps_in(folder)[-1:] == before[-1:]:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        children = workers(process)
        children[-1].send_signal(number)
        output, _ = process.communicate(timeout=300)
        assert process.returncode != 0
        assert not any(child.is_running() for child in children)
    return output


def status(name: str) -> str:
    manifest = json.loads((get_runs_dir() / name / "manifest.json").read_text())
    return str(manifest["status"])


def logged_by_script(name: str) -> Rows:
    frame = query_experiments(
        f"SELECT step, loss FROM experiments WHERE experiment_name = '{name}' ORDER BY split, step"
    )
    rows: Rows = frame.to_dict("records")
    return rows


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_and_is_told_once(tmp_path: Path) -> None:
    code, output = run_processes(2, SCRIPT, "fail", tmp_path)
    assert code != 0
    assert output.count("error [") == 1, output
    assert "error [data]: the disk of this machine is gone" in output
    assert output.count("Traceback") == 1, "torchrun's own report is the only one"


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_the_rows_of_a_batch_are_shared_out(size: int, world_size: int) -> None:
    batch = Batches(size, holes=True).batch(0)
    contexts = [DistributedContext(rank, world_size) for rank in range(world_size)]
    shares = [own_rows(batch, NextToken(), context) for context in contexts]
    assert all(len(part["input_ids"]) >= 1 for part, _ in shares)
    assert all(count_labels(part["labels"]) == count for part, count in shares)
    assert sum(count for _, count in shares) == count_labels(batch["labels"])
    owned = [rows_of(batch, rank, world_size) for rank in range(world_size)]
    rows = torch.cat([part["labels"] for part in owned if part is not None])
    assert torch.equal(rows, batch["labels"])


@pytest.mark.parametrize(
    ("training", "optimizer", "message"),
    [
        ({}, {"name": "muon"}, "Muon needs whole matrices"),
        ({"save_in_background": True}, {}, "not in the background"),
    ],
)
def test_what_fsdp_cannot_do_is_a_config_error(
    training: dict[str, Any], optimizer: dict[str, Any], message: str
) -> None:
    config = TrainingConfig(distributed="fsdp", **training)
    with pytest.raises(ConfigError, match=message):
        check_distributed(config, OptimizerConfig(**optimizer), DistributedContext(0, 2))
    check_distributed(
        config, OptimizerConfig(**optimizer), DistributedContext()
    )  # one process has it all


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
