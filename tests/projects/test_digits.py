"""Digits: another task than text, through every command: trained, killed, resumed, ranked and evaluated."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import MissingPackageError
from common.utils import query_experiments
from common.utils.paths import REPOSITORY_ROOT, get_runs_dir
from projects.digits.train import Config, build
from tests.fork_server import ForkServer
from tests.torchrun import fork_processes

SCRIPT = REPOSITORY_ROOT / "projects" / "digits" / "train.py"
SHORT = (
    *("--config", "configs/cnn.yaml", "training.max_steps=200", "training.eval_every_steps=50"),
    *("training.device=cpu", "training.precision=fp32", "training.compile=false"),
)


def final_weights(name: str) -> dict[str, torch.Tensor]:
    return load_file(get_runs_dir() / name / "checkpoints" / "step_200" / "model.safetensors")


@pytest.mark.slow
def test_a_cnn_reads_digits_is_resumed_bit_for_bit_ranked_and_evaluated(
    fork_server: ForkServer, run_tool, tmp_path: Path
) -> None:
    whole = run_tool(SCRIPT, *SHORT, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    accuracy = re.search(r"accuracy (\S+)% \(360 images\)", whole.stdout)
    assert accuracy is not None and float(accuracy[1]) >= 97

    assert query_experiments("SELECT tokens FROM runs WHERE tokens IS NOT NULL").empty, "images"

    kill = {"count": 1, "signal": signal.SIGKILL, "change": "step_150", "reads": False}
    with (tmp_path / "log").open("w+") as log:
        arguments = (*SHORT, "--name", "cut")
        cut = fork_server.start(
            SCRIPT, *arguments, stdin=log, stdout=log, stderr=log, strikes=[kill]
        )
        assert cut.wait() == -signal.SIGKILL
    assert not (get_runs_dir() / "cut" / "checkpoints" / "step_200").exists()
    resumed = run_tool(SCRIPT, "--name", "cut", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    weights = final_weights("cut")
    for name, expected in final_weights("whole").items():
        assert torch.equal(weights[name], expected), name

    ranked = run_tool("tools/query_experiments.py", "--best", "accuracy", "--format", "csv")
    assert ranked.returncode == 0 and {"whole", "cut"} <= set(re.findall(r"\w+", ranked.stdout))
    evaluate = "projects/digits/evaluate.py"
    evaluated = run_tool(evaluate, "whole", "--checkpoint", "last")
    assert f"accuracy {accuracy[1]}% (360 images)" in evaluated.stdout, evaluated.stderr
    for script, *more in (
        (evaluate, "--data", "x.txt"),
        (evaluate, "--full-report"),
        (evaluate, "--split", "train"),
        ("projects/baseline/sample.py", "--prompt", "7"),
    ):
        refused = run_tool(script, "whole", *more)
        assert refused.returncode == 2 and refused.stdout == "", refused.stdout
        assert refused.stderr.startswith("error [usage]: 'whole' ")
        assert refused.stderr.count("error [") == 1 and "Traceback" not in refused.stderr


@pytest.mark.slow
def test_two_processes_train_as_one_does(fork_server: ForkServer, run_tool) -> None:
    short = (*SHORT, "training.max_steps=20", "training.eval_every_steps=20")
    assert run_tool(SCRIPT, *short, "model.dropout=0", "--name", "one").returncode == 0
    for strategy in ("ddp", "fsdp"):
        several = (*short, "model.dropout=0", f"training.distributed={strategy}")
        code, output = fork_processes(fork_server, 2, SCRIPT, *several, "--name", strategy)
        assert code == 0, output
    rows = query_experiments(
        "SELECT experiment_name, loss, accuracy FROM experiments WHERE split = 'val' AND step = 20"
    ).set_index("experiment_name")
    for strategy in ("ddp", "fsdp"):
        assert rows.loc[strategy, "loss"] == pytest.approx(rows.loc["one", "loss"], rel=1e-4)
        assert rows.loc[strategy, "accuracy"] == pytest.approx(
            rows.loc["one", "accuracy"], abs=0.01
        )


def test_the_test_images_are_the_same_for_every_seed() -> None:
    first, other = (list(build(Config(seed=seed)).val_data or ()) for seed in (0, 1))
    assert torch.equal(first[0][0], other[0][0]) and len(first[0][0]) == 360


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackageError, match=r"sklearn is not installed .*\.\[digits\]"):
        build(Config())
