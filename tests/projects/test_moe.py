"""Mixtures of experts: equal active parameters, an auxiliary loss in no reported number, exact resumes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from common.config import load_config
from common.models import Decoder
from common.training.job import train_experiment
from common.utils import query_experiments
from common.utils.paths import get_runs_dir
from projects.moe.train import Config, build
from tests.budget import budget
from tests.fork_server import ForkServer
from tests.torchrun import fork_processes

PROJECT = Path(__file__).parents[2] / "projects" / "moe"
CONFIGS = sorted((PROJECT / "configs").glob("*.yaml"))
SMALL = (
    *("data.num_stories=300", "data.tokenizer=char", "data.batch_size=4", "model.num_layers=2"),
    *("model.hidden_size=16", "model.num_heads=2", "model.context_length=32"),
    *("training.device=cpu", "training.precision=fp32", "training.compile=false"),
    *("training.log_every_steps=1", "training.eval_batches=1", "samples.max_new_tokens=5"),
)
LAST_STEP = 12


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_differ_only_in_feedforward_layers_of_one_active_size(path: Path) -> None:
    first, config = load_config(CONFIGS[0].parent / "dense.yaml", Config), load_config(path, Config)
    own = {"feedforward", "options"}
    assert config.model.model_dump(exclude=own) == first.model.model_dump(exclude=own)
    assert config.model_copy(update={"model": first.model}) == first
    with torch.device("meta"):
        models = [Decoder(512, **each.model.model_dump()) for each in (first, config)]
    dense, model = models
    assert dense.num_active_parameters() == dense.num_parameters()
    assert model.num_active_parameters() == pytest.approx(dense.num_parameters(), rel=0.01)
    if path.stem != "dense":
        assert model.num_parameters() > 2 * dense.num_parameters()


@pytest.mark.slow
def test_no_reported_number_includes_the_auxiliary_loss() -> None:
    """Two trainings of one step that differ in it alone: the gradient does, loss and perplexity do not."""
    for name, weight in (("with", 100.0), ("without", 0.0)):
        options = f"model.options.moe.loss_weight={weight}"
        steps = ("training.max_steps=1", "training.eval_every_steps=1", "schedule.warmup_steps=1")
        frozen = "optimizer.lr=1e-30"  # so that the evaluations are of one model
        config = load_config(
            PROJECT / "configs/balance_loss.yaml", Config, [*SMALL, *steps, options, frozen]
        )
        train_experiment(config, build, project="moe", name=name)
    rows = query_experiments("SELECT * FROM experiments ORDER BY split, experiment_name")
    for split in ("train", "val"):
        with_it, without = rows[rows.split == split].to_dict("records")
        assert with_it["loss"] == without["loss"]
        assert with_it["perplexity"] == without["perplexity"]
        if split == "train":
            assert with_it["gradient_norm"] > 10 * without["gradient_norm"]


def rows_of(name: str) -> pd.DataFrame:
    """The training log, less what depends on the clock."""
    rows = query_experiments(
        f"SELECT * FROM experiments WHERE experiment_name = '{name}' AND split = 'train' ORDER BY step"
    )
    same = [key for key in rows if key.startswith("expert_")]
    return rows[["step", "loss", "gradient_norm", *same]]


def tensors_of(name: str) -> dict[str, torch.Tensor]:
    folder = get_runs_dir() / name / "checkpoints" / f"step_{LAST_STEP}"
    return {
        f"{path.name} {key}": tensor
        for path in folder.glob("*.safetensors")
        for key, tensor in load_file(path).items()
    }


@pytest.mark.attack
@pytest.mark.slow
@pytest.mark.parametrize("strategy", budget([], ["ddp", "fsdp"]))  # only `make attack`
def test_two_processes_with_accumulation_resume_to_the_same_bits(
    strategy: str, fork_server: ForkServer
) -> None:
    """Killed while the checkpoint of step 8 is written, between two logs; the bias counts all of a step."""
    script = PROJECT / "train.py"
    arguments: tuple[Any, ...] = (
        *("--config", "configs/balance_bias.yaml", *SMALL, f"training.distributed={strategy}"),
        *("training.gradient_accumulation_steps=2", f"training.max_steps={LAST_STEP}"),
        *("training.checkpoint_every_steps=4", "training.log_every_steps=3"),
        *("schedule.warmup_steps=2", f"training.eval_every_steps={LAST_STEP}"),
    )
    code, output = fork_processes(fork_server, 2, script, *arguments, "--name", "whole")
    assert code == 0, output
    kill = {"count": 1, "signal": signal.SIGKILL, "change": "step_8", "reads": False}
    killed = (*arguments, "--name", "killed")
    code, output = fork_processes(fork_server, 2, script, *killed, strikes=[kill])
    assert code == -signal.SIGKILL, output
    assert not (get_runs_dir() / "killed" / "checkpoints" / "step_8").exists()
    code, output = fork_processes(fork_server, 2, script, "--name", "killed", "--resume")
    assert code == 0, output

    found, expected = tensors_of("killed"), tensors_of("whole")
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    biases = [tensor for key, tensor in expected.items() if key.endswith("feedforward.bias")]
    assert len(biases) == 2 and all(bias.any() for bias in biases)
    pd.testing.assert_frame_equal(rows_of("killed"), rows_of("whole"), check_exact=True)

    code, output = fork_processes(fork_server, 1, script, *arguments, "--name", "one")
    assert code == 0, output
    one, two = (rows_of(name).iloc[0] for name in ("one", "whole"))
    for key in one.index:
        assert one[key] == pytest.approx(two[key], rel=1e-3), "one process counts as much as two"
