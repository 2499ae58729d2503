"""Qwen3-Next (Qwen team 2025): three layers of Gated DeltaNet, one of gated attention, and experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from common.models.config import DecoderConfig
from common.models.hub.families.base import Layout, Rows, shortest_pattern
from common.models.hub.families.llama import Llama
from common.models.hub.families.mixture import Qwen3MoE
from common.models.hub.keys import Keys
from common.models.hub.rope import read_rope, rope_keys

_KINDS = {"linear_attention": "gated_delta_net", "full_attention": "attention"}
_ATTENTION, _DELTA = "model.layers.*.self_attn", "model.layers.*.linear_attn"
_SHARED = "model.layers.*.mlp.shared_expert"


class Qwen3Next(Qwen3MoE):
    """Zero-centered norms, RoPE on a quarter of each head, a gated shared expert."""

    model_type = "qwen3_next"
    architecture = "Qwen3NextForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "gated_delta_net", "swiglu", "moe"})
    required: ClassVar[frozenset[str]] = frozenset({"attention", "moe"})
    head_dim: ClassVar[int | None] = 256
    experts_per_token: ClassVar[int] = 10
    normalize: ClassVar[bool] = True
    names: ClassVar[Mapping[str, str]] = {
        **Llama.names,
        "gated_delta_net.convolution": f"{_DELTA}.conv1d",
        "gated_delta_net.norm": f"{_DELTA}.norm",
        "gated_delta_net.step_bias": f"{_DELTA}.dt_bias",
        "gated_delta_net.log_rates": f"{_DELTA}.A_log",
        "gated_delta_net.output": f"{_DELTA}.out_proj",
        "feedforward.shared.output": f"{_SHARED}.down_proj",
        "feedforward.shared_gate": f"{_SHARED}_gate",
    }

    def is_other_task(self, name: str, config: DecoderConfig) -> bool:
        return name.startswith("mtp.")  # layers that predict further tokens

    def layouts(self) -> Mapping[str, Layout]:
        def halves(config: DecoderConfig, count: int) -> list[Rows]:
            return [Rows(f"{_SHARED}.{name}_proj", count // 2) for name in ("gate", "up")]

        return {
            **super().layouts(),
            "attention.query_key_value": _queries_keys_values,
            "attention.gate": lambda config, count: [_half_of_queries(config, second=True)],
            "gated_delta_net.input": _delta_input,
            "feedforward.shared.input": halves,
        }

    def arguments(self, keys: Keys) -> dict[str, Any]:
        keys.expect("attention_bias", False)
        arguments = super().arguments(keys) | {
            "norm": "zero_centered_rmsnorm",
            "attention_gate": True,
        }
        shared = {
            "num_shared": 1,
            "shared_size": keys.integer("shared_expert_intermediate_size", 512),
            "shared_gate": True,
        }
        if "moe" in arguments["options"]:
            arguments["options"]["moe"] |= shared
        return arguments

    def rope(self, keys: Keys) -> dict[str, Any]:
        rope = rope_keys(keys)
        usual = keys.number("partial_rotary_factor", 0.25)
        fraction = rope.number("partial_rotary_factor", usual)
        return {"rope_fraction": fraction} | read_rope(
            keys, self.rope_theta, rope=rope, partial=True
        )

    def mixers(self, keys: Keys, num_layers: int) -> dict[str, Any]:
        interval = keys.integer("full_attention_interval", 4)
        kinds = keys.names("layer_types", num_layers, _KINDS) or [
            "linear_attention" if (layer + 1) % interval else "full_attention"
            for layer in range(num_layers)
        ]
        delta = {
            "key_size": keys.integer("linear_key_head_dim", 128),
            "value_size": keys.integer("linear_value_head_dim", 128),
            "num_key_heads": keys.integer("linear_num_key_heads", 16),
            "num_value_heads": keys.integer("linear_num_value_heads", 32),
            "kernel_size": keys.integer("linear_conv_kernel_dim", 4, least=2),
        }
        if delta["num_value_heads"] % delta["num_key_heads"]:
            raise keys.refuse("linear_num_value_heads", "no multiple of linear_num_key_heads")
        if "full_attention" not in kinds:
            raise keys.refuse("layer_types", "without full_attention: not supported")
        mixers = {"layers": shortest_pattern([_KINDS[kind] for kind in kinds])}
        if "linear_attention" not in kinds:
            return mixers
        return mixers | {"options": {"gated_delta_net": delta}}

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        types = {ours: theirs for theirs, ours in _KINDS.items()}
        written = super().config(config, settings) | {
            "layer_types": [types[mixer] for mixer in config.mixers],
            "partial_rotary_factor": config.rope_fraction,
            "shared_expert_intermediate_size": settings["moe.shared_size"],
        }
        if "gated_delta_net" in config.mixers:
            written |= {
                "linear_key_head_dim": settings["gated_delta_net.key_size"],
                "linear_value_head_dim": settings["gated_delta_net.value_size"],
                "linear_num_key_heads": settings["gated_delta_net.num_key_heads"],
                "linear_num_value_heads": settings["gated_delta_net.num_value_heads"],
                "linear_conv_kernel_dim": settings["gated_delta_net.kernel_size"],
            }
        return written


def _half_of_queries(config: DecoderConfig, second: bool) -> Rows:
    """Their rows are (heads, queries and gate, head size)."""
    heads, size = config.num_heads, config.size_of_heads

    def order() -> list[int]:
        return [(2 * head + second) * size + row for head in range(heads) for row in range(size)]

    return Rows(f"{_ATTENTION}.q_proj", heads * size, total=2 * heads * size, order=order)


def _queries_keys_values(config: DecoderConfig, count: int) -> list[Rows]:
    size = (config.num_kv_heads or config.num_heads) * config.size_of_heads
    others = [Rows(f"{_ATTENTION}.{name}_proj", size) for name in "kv"]
    return [_half_of_queries(config, second=False), *others]


def _delta_input(config: DecoderConfig, count: int) -> list[Rows]:
    """Ours: all queries, keys, values, gates, then betas and decays; theirs: the same per key head, in two
    tensors."""
    options = config.options_of("gated_delta_net")
    key_heads = options.num_key_heads or config.num_heads
    key_size = options.key_size or config.size_of_heads
    value_size = options.value_size or key_size
    shared = (options.num_value_heads or key_heads) // key_heads  # value heads of a key head
    sizes = [key_size, key_size, shared * value_size, shared * value_size]
    scalars = 2 * key_heads * shared

    def of_each_head(sizes: list[int]) -> list[int]:
        block, order = sum(sizes), list[int]()
        for part, size in enumerate(sizes):
            start = sum(sizes[:part])
            order += [
                head * block + start + row for head in range(key_heads) for row in range(size)
            ]
        return order

    return [
        Rows(f"{_DELTA}.in_proj_qkvz", count - scalars, order=lambda: of_each_head(sizes)),
        Rows(f"{_DELTA}.in_proj_ba", scalars, order=lambda: of_each_head([shared, shared])),
    ]
