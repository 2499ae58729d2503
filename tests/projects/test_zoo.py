"""The zoo compares mixers and nothing else: equal parameters, text and schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.config import load_config
from common.errors import ConfigError
from common.models.registry import MIXERS
from common.utils import query_experiments
from projects.zoo.train import Config, ZooModel, build_model
from tests.fork_server import ForkServer
from tests.torchrun import fork_processes

PROJECT = Path(__file__).parents[2] / "projects" / "zoo"
CONFIGS = PROJECT / "configs"


def test_every_mixer_has_a_configuration() -> None:
    # nope_attention is attention in a model whose other layers have positions.
    compared = MIXERS.keys() - {"nope_attention"}
    assert compared <= {path.stem for path in CONFIGS.glob("*.yaml")}


@pytest.mark.parametrize("path", [*CONFIGS.glob("*.yaml")], ids=lambda path: path.stem)
def test_only_layers_and_text_differ(path: Path) -> None:
    first, config = load_config(CONFIGS / "attention.yaml", Config), load_config(path, Config)
    if path.stem in MIXERS:
        assert config.model.mixers == [path.stem] * 4
    own = {"mixer", "layers", "positions", "options"}
    assert config.model.model_dump(exclude=own) == first.model.model_dump(exclude=own)
    data = config.data.model_copy(update={"dataset": first.data.dataset})
    assert config.model_copy(update={"model": first.model, "data": data}) == first
    with torch.device("meta"):
        size = build_model(config.model, 512, longest=1024).num_parameters()
    assert abs(size / config.model.parameters - 1) < 0.01


def test_mixers_that_are_too_large_are_an_error() -> None:
    with pytest.raises(ConfigError, match="without feed-forward layers there are"):
        build_model(ZooModel(parameters=1000), 512, longest=1024)


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
