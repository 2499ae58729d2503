"""Mixers with the weights of their peers in transformers compute the same outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.base import Mixer, Positions
from common.models.registry import mixer_class

pytestmark = pytest.mark.slow  # transformers takes seconds to import
HIDDEN, TIME = 32, 160


def ours(name: str, options: dict[str, Any], **shape: Any) -> Mixer:
    cls = mixer_class(name)
    config = DecoderConfig(hidden_size=HIDDEN, positions="none", **shape)
    return cls(config, cls.Options(**options), 0)


def randomise(module: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


@torch.no_grad()
def copy(mine: Mixer, weights: dict[str, torch.Tensor]) -> None:
    missing, unexpected = mine.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"log_decay"}, (missing, unexpected)


def assert_equal(mine: Mixer, theirs: Any) -> None:
    """Outputs and gradients of the inputs, to 1e-4 of the largest."""
    x = torch.randn(2, TIME, HIDDEN)
    results = []
    for function in (lambda x: mine(x, Positions()), theirs):
        leaf = x.clone().requires_grad_()
        output = function(leaf)
        output = output[0] if isinstance(output, tuple) else output
        (gradient,) = torch.autograd.grad(output.square().mean(), leaf)
        results.append((output.detach(), gradient))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_mamba() -> None:
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    config = MambaConfig(hidden_size=HIDDEN, state_size=8, num_hidden_layers=1)
    theirs = MambaMixer(config, layer_idx=0)
    randomise(theirs)
    mine = ours("mamba", {"state_size": 8}, bias=False)
    names = {
        "in_proj": "input",
        "conv1d": "convolution",
        "x_proj": "parameters_of_x",
        "dt_proj": "step",
        "A_log": "log_rates",
        "D": "skip",
        "out_proj": "output",
    }
    copy(mine, renamed(theirs, names))
    assert_equal(mine, theirs)


def renamed(module: nn.Module, names: dict[str, str]) -> dict[str, torch.Tensor]:
    weights = {}
    for name, tensor in module.state_dict().items():
        first, dot, rest = name.partition(".")
        weights[names[first] + dot + rest] = tensor
    return weights


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2(groups: int) -> None:
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    config = Mamba2Config(
        hidden_size=HIDDEN,
        num_heads=4,
        head_dim=16,
        state_size=8,
        n_groups=groups,
        chunk_size=32,
        num_hidden_layers=1,
        layer_norm_epsilon=1e-6,
    )
    theirs = Mamba2Mixer(config, layer_idx=0).eval()
    randomise(theirs)
    mine = ours("mamba2", {"state_size": 8, "head_size": 16, "num_groups": groups}, bias=False)
    names = {
        "in_proj": "input",
        "conv1d": "convolution",
        "dt_bias": "step_bias",
        "A_log": "log_rates",
        "D": "skip",
        "norm": "norm_weight",
        "out_proj": "output",
    }
    weights = renamed(theirs, names)
    weights["norm_weight"] = weights.pop("norm_weight.weight")
    # Theirs are the gate, x, B, C, the steps; ours the gate, x, B (keys), C (queries), the steps.
    copy(mine, weights)
    assert_equal(mine, theirs)


@pytest.mark.parametrize("value_heads", [2, 4])
def test_gated_delta_net_of_qwen3_next(value_heads: int) -> None:
    from transformers.models.qwen3_next.modeling_qwen3_next import (
        Qwen3NextConfig,
        Qwen3NextGatedDeltaNet,
    )

    heads, key_size, value_size = 2, 8, 6
    config = Qwen3NextConfig(
        hidden_size=HIDDEN,
        linear_num_key_heads=heads,
        linear_num_value_heads=value_heads,
        linear_key_head_dim=key_size,
        linear_value_head_dim=value_size,
        num_hidden_layers=1,
    )
    theirs = Qwen3NextGatedDeltaNet(config, layer_idx=0)
    randomise(theirs)
    options = {"key_size": key_size, "value_size": value_size, "num_value_heads": value_heads}
    mine = ours("gated_delta_net", options, num_heads=heads, norm_eps=config.rms_norm_eps)
    # They have the parts of a key head side by side: query, key, its values, their gates.
    shared = value_heads // heads * value_size
    sizes = [key_size, key_size, shared, shared]
    grouped = theirs.in_proj_qkvz.weight.view(heads, sum(sizes), HIDDEN)
    query, key, value, gate = (x.flatten(0, 1) for x in grouped.split(sizes, dim=1))
    pairs = theirs.in_proj_ba.weight.view(heads, -1, HIDDEN)
    beta, decay = (x.flatten(0, 1) for x in pairs.chunk(2, dim=1))
    copy(
        mine,
        {
            "input.weight": torch.cat([query, key, value, gate, beta, decay]),
            "convolution.weight": theirs.conv1d.weight,
            "step_bias": theirs.dt_bias,
            "log_rates": theirs.A_log,
            "norm.weight": theirs.norm.weight,
            "output.weight": theirs.out_proj.weight,
        },
    )
    assert_equal(mine, theirs)


def test_mlstm_of_xlstm_7b() -> None:
    from transformers.models.xlstm import modeling_xlstm

    if not hasattr(modeling_xlstm, "xLSTMLayer"):
        pytest.skip("transformers takes this layer from the package xlstm, which is installed")
    config = modeling_xlstm.xLSTMConfig(
        hidden_size=HIDDEN,
        num_heads=2,
        num_hidden_layers=1,
        qk_dim_factor=0.5,
        v_dim_factor=1.0,
        chunk_size=16,
        mode="train",
        return_last_states=True,
    )
    theirs = modeling_xlstm.xLSTMLayer(config)
    randomise(theirs)
    mine = ours("mlstm", {}, num_heads=2, bias=False, norm_eps=config.norm_eps)
    copy(
        mine,
        {
            "input.weight": torch.cat(
                [part.weight for part in (theirs.q, theirs.k, theirs.v, theirs.ogate_preact)]
            ),
            "gates.weight": torch.cat([theirs.igate_preact.weight, theirs.fgate_preact.weight]),
            "gates.bias": torch.cat([theirs.igate_preact.bias, theirs.fgate_preact.bias]),
            "norm_weight": theirs.multihead_norm.weight,
            "output.weight": theirs.out_proj.weight,
        },
    )
    assert_equal(mine, theirs)


def test_latent_attention_of_deepseek() -> None:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
        DeepseekV3Attention,
        DeepseekV3Config,
        DeepseekV3RotaryEmbedding,
    )

    config = DeepseekV3Config(
        hidden_size=HIDDEN,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=12,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=6,
        v_head_dim=5,
        num_hidden_layers=1,
        rope_interleave=False,
        max_position_embeddings=TIME,
        attn_implementation="eager",
    )
    theirs = DeepseekV3Attention(config, layer_idx=0)
    randomise(theirs)
    cosine, sine = DeepseekV3RotaryEmbedding(config)(torch.randn(1), torch.arange(TIME)[None])
    mask = torch.full((1, 1, TIME, TIME), -torch.inf).triu(1)
    options = {"latent_size": 8, "rope_size": 4, "query_latent_size": 12, "value_size": 5}
    cls = mixer_class("latent_attention")
    shape = DecoderConfig(
        hidden_size=HIDDEN,
        num_heads=2,
        head_size=6,
        layers="latent_attention",
        positions="rope",
        context_length=TIME,
        norm_eps=config.rms_norm_eps,
    )
    mine = cls(shape, cls.Options(**options), 0)
    copy(
        mine,
        {
            "query.0.weight": theirs.q_a_proj.weight,
            "query.1.weight": theirs.q_a_layernorm.weight,
            "query.2.weight": theirs.q_b_proj.weight,
            "compress.weight": theirs.kv_a_proj_with_mqa.weight,
            "norm.weight": theirs.kv_a_layernorm.weight,
            "expand.weight": theirs.kv_b_proj.weight,
            "output.weight": theirs.o_proj.weight,
        },
    )
    assert_equal(mine, lambda x: theirs(x, position_embeddings=(cosine, sine), attention_mask=mask))
