"""Mixtures of experts with attention: Mixtral, OLMoE, Qwen3-MoE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from common.models.config import DecoderConfig
from common.models.hub.families.base import Layout, Rows, shortest_pattern
from common.models.hub.families.llama import Mistral, Qwen3, WithoutBiases, read_windows
from common.models.hub.keys import Keys


def experts_layouts(
    gate: str, up: str, down: str, router: str = "model.layers.*.mlp.gate"
) -> dict[str, Layout]:
    """Each expert has tensors of its own; `@` in the names is its number. Ours are stacked."""

    def inputs(config: DecoderConfig, count: int) -> list[Rows]:
        number = config.options_of("moe").num_experts
        size = count // (2 * number)
        names = [name.replace("@", str(e)) for e in range(number) for name in (gate, up)]
        return [Rows(name, size) for name in names]

    def outputs(config: DecoderConfig, count: int) -> list[Rows]:
        number = config.options_of("moe").num_experts
        return [Rows(down.replace("@", str(e)), count // number) for e in range(number)]

    return {
        "feedforward.router": lambda config, count: [Rows(router, count)],
        "feedforward.input": inputs,
        "feedforward.output": outputs,
    }


_EXPERT = "model.layers.*.mlp.experts.@"
QWEN_EXPERTS = experts_layouts(
    f"{_EXPERT}.gate_proj.weight", f"{_EXPERT}.up_proj.weight", f"{_EXPERT}.down_proj.weight"
)


def read_experts(keys: Keys, size_key: str, **more: Any) -> dict[str, Any]:
    """Options of `moe`; `num_experts` and `num_local_experts` are one key under two names."""
    key = "num_local_experts" if keys.get("num_experts") is None else "num_experts"
    if key == "num_experts" and keys.get("num_local_experts") is not None:
        keys.expect("num_local_experts", keys.get("num_experts"))
    weight = keys.get("router_aux_loss_coef")
    if isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight <= 1e30:
        more["loss_weight"] = float(weight)
    elif weight is not None:
        raise keys.refuse("router_aux_loss_coef", "expected a number from 0")
    return {
        "num_experts": keys.integer(key),
        "expert_size": keys.integer(size_key),
        **more,
    }


class Mixtral(Mistral):
    """Mistral with experts (Jiang et al. 2024)."""

    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "local_attention", "moe"})
    required: ClassVar[frozenset[str]] = frozenset({"moe"})
    norm_eps: ClassVar[float] = 1e-5
    rope_theta: ClassVar[float] = 1_000_000.0
    window: ClassVar[int | None] = None

    def layouts(self) -> Mapping[str, Layout]:
        of_expert = "model.layers.*.block_sparse_moe.experts.@."
        experts = experts_layouts(
            f"{of_expert}w1.weight",
            f"{of_expert}w3.weight",
            f"{of_expert}w2.weight",
            router="model.layers.*.block_sparse_moe.gate",
        )
        return {**super().layouts(), **experts}

    def arguments(self, keys: Keys) -> dict[str, Any]:
        experts = read_experts(
            keys, "intermediate_size", top_k=keys.integer("num_experts_per_tok", 2)
        )
        return with_experts(super().arguments(keys), experts)

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        return super().config(config, settings) | {
            "num_local_experts": settings["moe.num_experts"],
            "num_experts_per_tok": settings["moe.top_k"],
            "intermediate_size": settings["moe.expert_size"],
        }


class OLMoE(WithoutBiases):
    """Norms of queries and keys over all heads (Muennighoff et al. 2024)."""

    model_type = "olmoe"
    architecture = "OlmoeForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "moe"})
    required: ClassVar[frozenset[str]] = frozenset({"moe"})
    norm_eps: ClassVar[float] = 1e-5
    has_head_dim: ClassVar[bool] = False

    def layouts(self) -> Mapping[str, Layout]:
        return {**super().layouts(), **QWEN_EXPERTS}

    def arguments(self, keys: Keys) -> dict[str, Any]:
        experts = read_experts(
            keys,
            "intermediate_size",
            top_k=keys.integer("num_experts_per_tok", 8),
            normalize=keys.flag("norm_topk_prob", False),
        )
        return with_experts(super().arguments(keys) | {"qk_norm": "projection"}, experts)

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        return super().config(config, settings) | {
            "num_experts": settings["moe.num_experts"],
            "num_experts_per_tok": settings["moe.top_k"],
            "norm_topk_prob": settings["moe.normalize"],
            "intermediate_size": settings["moe.expert_size"],
        }


class Qwen3MoE(Qwen3):
    """Qwen3 with experts in some or all layers."""

    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "local_attention", "swiglu", "moe"})
    required: ClassVar[frozenset[str]] = frozenset({"moe"})
    head_dim: ClassVar[int | None] = None
    experts_per_token: ClassVar[int] = 8
    normalize: ClassVar[bool] = False

    def layouts(self) -> Mapping[str, Layout]:
        return {**super().layouts(), **QWEN_EXPERTS}

    def mixers(self, keys: Keys, num_layers: int) -> dict[str, Any]:
        used = keys.flag("use_sliding_window", False)
        window = keys.optional_integer("sliding_window", 4096)
        keys.read.add("max_window_layers")  # unlike Qwen3 it has one window for all layers
        longest = keys.integer("max_position_embeddings")
        kinds = ["sliding_attention"] * num_layers
        return read_windows(window if used else None, kinds, longest)

    def arguments(self, keys: Keys) -> dict[str, Any]:
        arguments = super().arguments(keys)
        experts = read_experts(
            keys,
            "moe_intermediate_size",
            top_k=keys.integer("num_experts_per_tok", self.experts_per_token),
            normalize=keys.flag("norm_topk_prob", self.normalize),
        )
        dense = keys.get("mlp_only_layers") or []
        if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
            raise keys.refuse("mlp_only_layers", "expected a list of layers")
        step = keys.integer("decoder_sparse_step", 1)
        kinds = [
            "swiglu" if layer in dense or (layer + 1) % step else "moe"
            for layer in range(arguments["num_layers"])
        ]
        return with_experts(arguments, experts, kinds)

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        dense = [i for i, kind in enumerate(config.feedforward_kinds) if kind != "moe"]
        written = super().config(config, settings)
        written.pop("layer_types", None)
        return written | {
            "num_experts": settings["moe.num_experts"],
            "num_experts_per_tok": settings["moe.top_k"],
            "norm_topk_prob": settings["moe.normalize"],
            "moe_intermediate_size": settings["moe.expert_size"],
            "intermediate_size": settings["intermediate_size"] or settings["moe.expert_size"],
            "mlp_only_layers": dense,
            "decoder_sparse_step": 1,
        }


def with_experts(
    arguments: dict[str, Any], experts: dict[str, Any], kinds: list[str] | None = None
) -> dict[str, Any]:
    """Arguments with options of `moe`, and the kind of each feed-forward layer (None: all experts)."""
    kinds = kinds or ["moe"]
    if "moe" in kinds:
        arguments["options"] = {**arguments.get("options", {}), "moe": experts}
    return arguments | {"feedforwards": shortest_pattern(kinds)}
