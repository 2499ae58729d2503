"""Mixers with the weights of their peers in other packages compute the same outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.base import Mixer, Positions
from common.models.registry import mixer_class
from tools.benchmarks.mixer_pairs import (
    MAMBA,
    MAMBA2,
    PEERS,
    copy_weights,
    qwen3_next_weights,
    renamed_by,
    xlstm_7b_weights,
)

pytestmark = pytest.mark.slow  # transformers takes seconds to import
HIDDEN, TIME = 32, 192


def ours(name: str, options: dict[str, Any], **shape: Any) -> Mixer:
    cls = mixer_class(name)
    config = DecoderConfig(hidden_size=HIDDEN, positions="none", **shape)
    return cls(config, cls.Options(**options), 0)


def randomise(module: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


def assert_equal(mine: Any, theirs: Any) -> None:
    """Outputs and gradients of the inputs, to 1e-4 of the largest."""
    x = torch.randn(2, TIME, HIDDEN)
    results = []
    for function in (
        (lambda x: mine(x, Positions())) if isinstance(mine, Mixer) else mine,
        theirs,
    ):
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
    copy_weights(mine, renamed_by(MAMBA)(theirs))
    assert_equal(mine, theirs)


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
    copy_weights(mine, renamed_by(MAMBA2)(theirs))
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
    copy_weights(mine, qwen3_next_weights(theirs))
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
    copy_weights(mine, xlstm_7b_weights(theirs))
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
    copy_weights(
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


@pytest.mark.parametrize("package", [name for name in PEERS if name != "transformers"])
def test_packages_that_happen_to_be_installed(package: str) -> None:
    try:
        for pair in PEERS[package](HIDDEN):
            assert_equal(pair.ours, pair.theirs)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
