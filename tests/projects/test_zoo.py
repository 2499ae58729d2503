"""The zoo compares mixers and nothing else: equal parameters, text and schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.config import load_config
from common.models import Decoder
from common.models.registry import MIXERS
from common.utils import query_experiments
from projects.zoo.train import Config
from tests.fork_server import ForkServer
from tests.torchrun import fork_processes

PROJECT = Path(__file__).parents[2] / "projects" / "zoo"
CONFIGS = PROJECT / "configs"


def test_every_mixer_has_a_configuration() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == MIXERS.keys()


@pytest.mark.parametrize("name", MIXERS)
def test_only_the_layers_differ(name: str) -> None:
    first = load_config(CONFIGS / "attention.yaml", Config)
    config = load_config(CONFIGS / f"{name}.yaml", Config)
    assert config.model.mixers == [name] * 4
    own = {"mixer", "positions", "intermediate_size", "options"}
    for mine, theirs in ((config.model.model_dump(), first.model.model_dump()),):
        assert {k: v for k, v in mine.items() if k not in own} == {
            k: v for k, v in theirs.items() if k not in own
        }
    assert config.model_copy(update={"model": first.model}) == first
    with torch.device("meta"):
        models = [Decoder(512, **each.model.model_dump()) for each in (config, first)]
    sizes = [model.num_parameters() for model in models]
    assert abs(sizes[0] / sizes[1] - 1) < 0.01


@pytest.mark.slow
def test_fsdp_trains_a_hybrid_with_experts_as_ddp_does(fork_server: ForkServer) -> None:
    """The auxiliary loss leaves a block beside its output: FSDP must gather the weights for it too."""
    script = PROJECT / "train.py"
    short = [
        *("--config", "configs/attention.yaml", "data.num_stories=300", "data.tokenizer=char"),
        *("training.device=cpu", "training.precision=fp32", "training.compile=false"),
        *("training.max_steps=8", "training.eval_every_steps=8", "training.log_every_steps=8"),
        *("model.num_layers=5", "model.hidden_size=32", "model.context_length=64"),
        *("model.layers=mamba2 gated_delta_net slstm mamba attention", "data.document_mask=true"),
        *("model.feedforwards=moe swiglu", "model.intermediate_size=32"),
        "model.options={moe: {loss_weight: 1.0}}",
    ]
    for strategy in ("ddp", "fsdp"):
        several = (*short, f"training.distributed={strategy}", "--name", strategy)
        code, output = fork_processes(fork_server, 2, script, *several)
        assert code == 0, output
    rows = query_experiments(
        "SELECT * FROM experiments WHERE split = 'train' AND step = 8 ORDER BY experiment_name"
    ).set_index("experiment_name")
    for name in ("loss", "expert_excess_load_0", "expert_top_k_mass_2", "gradient_norm"):
        assert rows.loc["fsdp", name] == pytest.approx(rows.loc["ddp", name], rel=1e-3), name
