"""Masked diffusion from training to the drawn order of unmasking."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.models.masked_decoder import MaskedDecoder
from common.training import Experiment, OptimizerConfig, Trainer, TrainingConfig, load_run
from common.training.masked_diffusion import MaskedDiffusion
from common.utils import query_experiments
from common.utils.paths import get_runs_dir
from tests.fork_server import ForkServer

PROJECT = Path(__file__).parents[2] / "projects" / "diffusion"
TINY = [
    *("--config", "configs/stories.yaml", "data.num_stories=200", "data.vocab_size=300"),
    *("training.device=cpu", "training.precision=fp32", "training.compile=false"),
    *("training.max_steps=6", "training.eval_every_steps=3", "training.eval_batches=1"),
    *("model.num_layers=1", "model.hidden_size=32", "model.num_heads=2", "model.context_length=32"),
]


@pytest.mark.slow
def test_a_run_from_training_to_analysis(run_tool, tmp_path: Path) -> None:
    trained = run_tool(PROJECT / "train.py", *TINY, "--name", "masked")
    assert trained.returncode == 0, trained.stderr
    assert "loss <= " in trained.stdout and "(standard error 0." in trained.stdout
    rows = query_experiments("SELECT * FROM experiments WHERE split = 'val'").dropna(axis=1)
    assert {"bits_per_byte_bound", "loss_standard_error"} <= {*rows.columns}
    run = load_run("masked", "last")
    assert isinstance(run.model, MaskedDecoder)
    assert run.evaluate()["loss"] == pytest.approx(rows["loss"].iloc[0], rel=1e-5)
    ranked = run_tool("tools/query_experiments.py", "--best", "loss")
    assert "upper bounds (<=), ranked after the others: masked" in ranked.stdout + ranked.stderr

    between = ("--prompt", "Once", "--suffix", " end.", "--max-new-tokens", "8", "--steps", "3")
    sampled = run_tool(PROJECT / "sample.py", "masked", *between)
    assert sampled.returncode == 0 and sampled.stdout.startswith("Once"), sampled.stderr
    page = tmp_path / "order.html"
    analysed = run_tool(
        "tools/analyze.py",
        "unmasking",
        "--name",
        "masked",
        "--max-new-tokens",
        "20",
        "--output",
        page,
    )
    assert analysed.returncode == 0, analysed.stderr
    assert '"steps":[-1,' in page.read_text()
    refused = run_tool(PROJECT / "evaluate.py", "masked", "--full-report")
    assert refused.returncode == 2 and "predict the next token" in refused.stderr


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(
    fork_server: ForkServer, run_tool, tmp_path: Path
) -> None:
    assert run_tool(PROJECT / "train.py", *TINY, "--name", "whole").returncode == 0
    kill = {"count": 1, "signal": signal.SIGKILL, "change": "step_3", "reads": False}
    with (tmp_path / "log").open("w+") as log:
        streams = {"stdin": log, "stdout": log, "stderr": log}
        arguments = (*TINY, "--name", "cut")
        cut = fork_server.start(PROJECT / "train.py", *arguments, **streams, strikes=[kill])
        assert cut.wait() == -signal.SIGKILL
    resumed = run_tool(PROJECT / "train.py", "--name", "cut", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    whole, cut_short = (
        load_file(get_runs_dir() / name / "checkpoints" / "step_6" / "model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(cut_short[name], expected) for name, expected in whole.items())


@pytest.mark.slow
def test_the_bound_of_a_deterministic_text_goes_to_0() -> None:
    torch.manual_seed(0)

    class Cycle:
        """Rows that count upwards, modulo 8."""

        def batch(self, index: int) -> torch.Tensor:
            starts = torch.randint(0, 8, (16, 1), generator=torch.Generator().manual_seed(index))
            return (starts + torch.arange(16)) % 8

    shape = {"preset": "llama", "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    model = MaskedDecoder(8, **shape, context_length=16)
    data = Cycle()
    objective = MaskedDiffusion(8, draws=8)
    experiment = Experiment(model, data, [data.batch(10**6)], objective)
    training = TrainingConfig(max_steps=500, device="cpu", precision="fp32", compile=False)
    metrics = Trainer(experiment, training, optimizer=OptimizerConfig(lr=3e-3)).fit()
    assert 0 <= metrics["loss"] < 0.05
    given = torch.tensor([[3, 4]])
    found = model.generate(given, 9, suffix=torch.tensor([[6, 7]]), temperature=0, steps=5)
    assert found[0].tolist() == [(3 + i) % 8 for i in range(13)]
