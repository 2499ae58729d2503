"""Mamba-2 (Dao and Gu 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from common.models.config import DecoderConfig
from common.models.hub.families.base import Family
from common.models.hub.keys import Keys

_LAYER = "backbone.layers.*"
_CONTEXT_LENGTH = 8192  # the file has none, and the state no limit


class Mamba2(Family):
    """Mixers without feed-forward layers."""

    model_type = "mamba2"
    architecture = "Mamba2ForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"mamba2", "none"})
    required: ClassVar[frozenset[str]] = frozenset({"mamba2", "none"})
    root = "backbone."
    # Initialisation, chunks of the kernel, and the dtype of the residual stream.
    unread: ClassVar[frozenset[str]] = frozenset(
        {"time_step_rank", "time_step_min", "time_step_max", "time_step_floor"}
        | {"residual_in_fp32", "chunk_size"}
    )
    free: ClassVar[frozenset[str]] = frozenset({"context_length"})
    fewest_tensors = 8
    names: ClassVar[Mapping[str, str]] = {
        "token_embedding": "backbone.embeddings",
        "final_norm": "backbone.norm_f",
        "head": "lm_head",
        "mixer_norm": f"{_LAYER}.norm",
        "mixer.input": f"{_LAYER}.mixer.in_proj",
        "mixer.convolution": f"{_LAYER}.mixer.conv1d",
        "mixer.step_bias": f"{_LAYER}.mixer.dt_bias",
        "mixer.log_rates": f"{_LAYER}.mixer.A_log",
        "mixer.skip": f"{_LAYER}.mixer.D",
        "mixer.norm_weight": f"{_LAYER}.mixer.norm.weight",
        "mixer.output": f"{_LAYER}.mixer.out_proj",
    }

    def arguments(self, keys: Keys) -> dict[str, Any]:
        keys.choice("hidden_act", "silu", ["silu"])
        keys.expect("rescale_prenorm_residual", False)  # transformers 5 rescales loaded weights
        hidden_size, head_size = keys.integer("hidden_size"), keys.integer("head_dim", 64)
        expansion = keys.number("expand", 2)
        heads = keys.integer("num_heads", 128)
        if hidden_size * expansion != heads * head_size:
            raise keys.refuse("num_heads", "expected expand * hidden_size / head_dim")
        least, most = _step_limits(keys)
        options = {
            "expansion": expansion,
            "state_size": keys.integer("state_size", 128),
            "head_size": head_size,
            "num_groups": keys.integer("n_groups", 8),
            "kernel_size": keys.integer("conv_kernel", 4, least=2),
            "convolution_bias": keys.flag("use_conv_bias", True),
            "min_step": least,
            "max_step": most,
        }
        return {
            "context_length": _CONTEXT_LENGTH,
            "num_layers": keys.integer("num_hidden_layers"),
            "hidden_size": hidden_size,
            "mixer": "mamba2",
            "options": {"mamba2": options},
            "feedforward": "none",
            "positions": "none",
            "norm": "rmsnorm",
            "norm_eps": keys.number("layer_norm_epsilon", 1e-5),
            "bias": keys.flag("use_bias", False),
            "tie_embeddings": keys.flag("tie_word_embeddings", False),
        }

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        options = config.options_of("mamba2")
        most = math.inf if options.max_step is None else options.max_step
        return {
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_layers,
            "expand": int(options.expansion),
            "num_heads": round(config.hidden_size * options.expansion) // options.head_size,
            "head_dim": options.head_size,
            "state_size": options.state_size,
            "n_groups": options.num_groups,
            "conv_kernel": options.kernel_size,
            "use_conv_bias": options.convolution_bias,
            "use_bias": config.bias,
            "time_step_limit": [options.min_step, _written(most)],
            "layer_norm_epsilon": settings["norm_eps"],
            "tie_word_embeddings": config.tie_embeddings,
        }


def _step_limits(keys: Keys) -> tuple[float, float | None]:
    """`time_step_limit`: two numbers; the second may be infinite."""
    limits = keys.get("time_step_limit")
    if limits is None:
        return 0.0, None
    if not isinstance(limits, list) or len(limits) != 2:
        raise keys.refuse("time_step_limit", "expected two numbers")
    least, most = limits
    if most == _written(math.inf):
        most = math.inf
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in (least, most)):
        raise keys.refuse("time_step_limit", "expected two numbers")
    if not 0 <= least < most:
        raise keys.refuse("time_step_limit", "expected two numbers from 0, in order")
    return float(least), None if most == math.inf else float(most)


def _written(limit: float) -> Any:
    """transformers 5 writes infinity, which JSON lacks, as an object."""
    return {"__float__": "Infinity"} if limit == math.inf else limit
