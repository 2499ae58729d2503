"""What an earlier version wrote loads, resumes and is queried: a store, runs and checkpoints.

`fixtures/before_objectives.tar.gz` holds the assets of two trainings of that version over the text in it:
`whole` ended at step 40, `cut` was interrupted at step 26 of the same. On the CPU that wrote them the
resumed run is bit-equal to the whole one; on others, sums differ in the last digits.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from common.training import load_run
from common.utils import query_experiments

FIXTURE = Path(__file__).parent / "fixtures" / "before_objectives.tar.gz"
LOSSES = "SELECT step, split, loss FROM experiments WHERE experiment_name = '{}' ORDER BY ALL"


@pytest.fixture(autouse=True)
def earlier(assets_dir: Path) -> None:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(assets_dir, filter="data")


def test_a_store_is_listed_ranked_and_queried(run_tool: Any) -> None:
    listed = run_tool("tools/query_experiments.py", "--list", "--format", "csv").stdout
    assert "whole,finished,baseline" in listed and "cut,interrupted,baseline" in listed
    best = run_tool("tools/query_experiments.py", "--best", "loss", "--format", "csv").stdout
    assert best.splitlines()[1].startswith("1,whole,2.326")
    assert len(query_experiments(LOSSES.format("whole"))) == 20 + 4


def test_a_run_is_loaded_and_evaluates_to_the_loss_that_was_stored() -> None:
    run = load_run("whole", "last")
    rows = query_experiments(LOSSES.format("whole") + "")
    stored = rows[(rows["split"] == "val") & (rows["step"] == 40)]["loss"].iloc[0]
    assert run.evaluate()["loss"] == pytest.approx(stored, rel=1e-6)
    assert run.checkpoint.name == "step_40" and run.model.num_parameters() == 3904


def test_an_interrupted_run_is_resumed_to_the_end_of_the_whole_one(run_tool: Any) -> None:
    result = run_tool(
        "projects/baseline/train.py", "--name", "cut", "--resume", env={"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert "resumed  step=26" in result.stderr
    resumed, whole = (query_experiments(LOSSES.format(name)) for name in ("cut", "whole"))
    assert resumed[["step", "split"]].equals(whole[["step", "split"]])
    assert resumed["loss"].to_numpy() == pytest.approx(whole["loss"].to_numpy(), rel=1e-4)
    weights = [load_run(name, "last").model.state_dict() for name in ("cut", "whole")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)
