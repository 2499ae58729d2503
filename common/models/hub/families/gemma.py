"""Gemma 2 and 3 (Gemma team 2024, "Gemma 2", section 2; 2025, "Gemma 3", section 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from common.models.config import DecoderConfig
from common.models.hub.families.llama import (
    Llama,
    WithoutBiases,
    read_windows,
    written_layer_types,
    written_window,
)
from common.models.hub.families.olmo import (
    rope_of_layer_types,
    windows_with_own_rope,
    with_window_rope,
    written_rope_of_layer_types,
)
from common.models.hub.keys import Keys
from common.models.hub.rope import read_rope

_LAYER_TYPES = ("full_attention", "sliding_attention")


class Gemma2(WithoutBiases):
    """Norms before and after each sublayer, GEGLU, scaled embeddings, soft caps, a window in every other layer."""

    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "local_attention", "geglu"})
    activation: ClassVar[str] = "gelu_pytorch_tanh"
    activation_key: ClassVar[str] = "hidden_activation"
    tied: ClassVar[bool] = True
    head_dim: ClassVar[int | None] = 256
    caps: ClassVar[tuple[float | None, float | None]] = (50.0, 30.0)  # of scores and of logits
    unread: ClassVar[frozenset[str]] = frozenset({"hidden_act"})  # of earlier versions
    names: ClassVar[Mapping[str, str]] = {
        **Llama.names,
        "mixer_output_norm": "model.layers.*.post_attention_layernorm",
        "feedforward_norm": "model.layers.*.pre_feedforward_layernorm",
        "feedforward_output_norm": "model.layers.*.post_feedforward_layernorm",
    }

    def arguments(self, keys: Keys) -> dict[str, Any]:
        arguments = super().arguments(keys)
        size = keys.integer("query_pre_attn_scalar", 256)
        return arguments | {
            "norm": "zero_centered_rmsnorm",
            "norm_placement": "sandwich",
            "feedforward": "geglu",
            "embedding_scale": math.sqrt(arguments["hidden_size"]),
            "attention_scale": None if size == arguments["head_size"] else 1 / math.sqrt(size),
            "attention_soft_cap": keys.optional_number("attn_logit_softcapping", self.caps[0]),
            "logits_soft_cap": keys.optional_number("final_logit_softcapping", self.caps[1]),
        }

    def mixers(self, keys: Keys, num_layers: int) -> dict[str, Any]:
        window = keys.integer("sliding_window", 4096)
        kinds = _kinds(keys, num_layers, full_every=2)
        return read_windows(window, kinds, keys.integer("max_position_embeddings"))

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        scale = config.attention_scale
        return super().config(config, settings) | {
            "query_pre_attn_scalar": round(scale**-2) if scale else config.size_of_heads,
            "attn_logit_softcapping": config.attention_soft_cap,
            "final_logit_softcapping": config.logits_soft_cap,
            "sliding_window": written_window(config) or config.context_length,
            "layer_types": written_layer_types(config),
        }


class Gemma3(Gemma2):
    """Norms of queries and keys instead of the caps, and another RoPE in the five of six layers with a window."""

    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    rope_theta: ClassVar[float] = 1_000_000.0
    caps: ClassVar[tuple[float | None, float | None]] = (None, None)

    def arguments(self, keys: Keys) -> dict[str, Any]:
        keys.expect("use_bidirectional_attention", False)
        keys.expect("attn_logit_softcapping")  # transformers ignores it
        return with_window_rope(super().arguments(keys) | {"qk_norm": True})

    def rope(self, keys: Keys) -> dict[str, Any]:
        full, sliding = rope_of_layer_types(keys)
        theta = keys.number("rope_local_base_freq", 10_000.0)
        read = read_rope(keys, self.rope_theta, rope=full or keys.inner("rope_scaling"))
        if sliding is not None:
            theta = sliding.number("rope_theta", theta)
            for key in sliding.values:
                if key != "rope_theta":
                    sliding.expect(key, "default")
        return read | {"window_rope_theta": theta}

    def mixers(self, keys: Keys, num_layers: int) -> dict[str, Any]:
        pattern = keys.integer("_sliding_window_pattern", 6)
        kinds = _kinds(keys, num_layers, keys.integer("sliding_window_pattern", pattern))
        window = keys.integer("sliding_window", 4096)
        return windows_with_own_rope(window, kinds, keys.integer("max_position_embeddings"))

    def written_rope(self, config: DecoderConfig) -> dict[str, Any]:
        return {"rope_parameters": written_rope_of_layer_types(config)}


def _kinds(keys: Keys, num_layers: int, full_every: int) -> list[str]:
    return keys.names("layer_types", num_layers, _LAYER_TYPES) or [
        "sliding_attention" if (layer + 1) % full_every else "full_attention"
        for layer in range(num_layers)
    ]
