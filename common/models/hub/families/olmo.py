"""OLMo 2 and 3 (OLMo team 2024, "2 OLMo 2 Furious"; 2025, "Olmo 3")."""

from __future__ import annotations

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
from common.models.hub.keys import Keys
from common.models.hub.rope import read_rope, write_scaling


class OLMo2(WithoutBiases):
    """The norms follow the sublayers, and those of queries and keys span all heads."""

    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    norm_eps: ClassVar[float] = 1e-5
    has_head_dim: ClassVar[bool] = False
    names: ClassVar[Mapping[str, str]] = {
        **{ours: theirs for ours, theirs in Llama.names.items() if not ours.endswith("_norm")},
        "final_norm": "model.norm",
        "mixer.query_norm": "model.layers.*.self_attn.q_norm",
        "mixer.key_norm": "model.layers.*.self_attn.k_norm",
        "mixer_output_norm": "model.layers.*.post_attention_layernorm",
        "feedforward_output_norm": "model.layers.*.post_feedforward_layernorm",
    }

    def arguments(self, keys: Keys) -> dict[str, Any]:
        return super().arguments(keys) | {"norm_placement": "reordered", "qk_norm": "projection"}


class OLMo3(OLMo2):
    """OLMo 2 with windows in three of four layers, whose RoPE is not scaled."""

    model_type = "olmo3"
    architecture = "Olmo3ForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "local_attention", "swiglu"})
    rope_theta: ClassVar[float] = 500_000.0

    def rope(self, keys: Keys) -> dict[str, Any]:
        full, sliding = rope_of_layer_types(keys)
        if full is None or sliding is None:
            # transformers 5 gives the sliding layers its default whatever the file says.
            keys.expect("rope_theta", self.rope_theta)
            scaled = keys.inner("rope_scaling")
            return read_rope(keys, self.rope_theta, rope=scaled)
        read = read_rope(keys, self.rope_theta, rope=full)
        of_windows = read_rope(keys, self.rope_theta, rope=sliding, types=("default",))
        if of_windows["rope_theta"] != read["rope_theta"]:
            read["window_rope_theta"] = of_windows["rope_theta"]
        return read

    def mixers(self, keys: Keys, num_layers: int) -> dict[str, Any]:
        kinds = keys.names("layer_types", num_layers, ("full_attention", "sliding_attention"))
        if kinds is None:
            kinds = [
                "full_attention" if layer % 4 == 3 else "sliding_attention"
                for layer in range(num_layers)
            ]
        window = keys.integer("sliding_window", 4096)
        return windows_with_own_rope(window, kinds, keys.integer("max_position_embeddings"))

    def arguments(self, keys: Keys) -> dict[str, Any]:
        return with_window_rope(super().arguments(keys))

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        return super().config(config, settings) | {
            "sliding_window": written_window(config) or config.context_length,
            "layer_types": written_layer_types(config),
        }

    def written_rope(self, config: DecoderConfig) -> dict[str, Any]:
        return {"rope_parameters": written_rope_of_layer_types(config)}


def rope_of_layer_types(keys: Keys) -> tuple[Keys | None, Keys | None]:
    """`rope_parameters` of the full and of the sliding layers, if the file has them (transformers 5)."""
    both = keys.inner("rope_parameters")
    if not both.values:
        return None, None
    for key in both.values:
        if key not in ("full_attention", "sliding_attention"):
            raise both.refuse(key)
    return both.inner("full_attention"), both.inner("sliding_attention")


def windows_with_own_rope(window: int, kinds: list[str], longest: int) -> dict[str, Any]:
    """Arguments for layers of some `layer_types` whose sliding layers have a RoPE of their own, so that a
    window longer than the context still differs."""
    read = read_windows(min(window, longest - 1), kinds, longest)
    if read:
        read["options"]["local_attention"] |= {"window": window, "rope_scaling": False}
    return read


def with_window_rope(arguments: dict[str, Any]) -> dict[str, Any]:
    """Move `window_rope_theta` to the options of the local layers."""
    theta = arguments.pop("window_rope_theta", None)
    if theta is not None and "options" in arguments:
        arguments["options"]["local_attention"]["rope_theta"] = theta
    return arguments


def written_rope_of_layer_types(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `rope_of_layer_types`."""
    full = {"rope_theta": config.rope_theta, **(write_scaling(config.rope_scaling) or {})}
    theta = config.rope_theta
    if "local_attention" in config.mixers:
        theta = config.options_of("local_attention").rope_theta or theta
    return {
        "full_attention": {"rope_type": "default", **full},
        "sliding_attention": {"rope_type": "default", "rope_theta": theta},
    }
