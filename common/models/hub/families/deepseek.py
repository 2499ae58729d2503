"""DeepSeek-V2 and V3 (DeepSeek-AI 2024, "DeepSeek-V2", "DeepSeek-V3"): latent attention and many small experts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from common.models.config import DecoderConfig
from common.models.hub.families.base import Layout, Rows
from common.models.hub.families.llama import Llama, WithoutBiases
from common.models.hub.families.mixture import QWEN_EXPERTS, with_experts
from common.models.hub.keys import Keys
from common.models.hub.rope import read_rope

_ATTENTION = "model.layers.*.self_attn"
_SHARED = "model.layers.*.mlp.shared_experts"
_INNER_EPS = 1e-6  # of the norms inside latent attention, whatever rms_norm_eps is


class DeepseekV2(WithoutBiases):
    """Softmax scores; a group of experts scores as its best one."""

    model_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"latent_attention", "swiglu", "moe"})
    required: ClassVar[frozenset[str]] = frozenset({"latent_attention", "moe"})
    # aux_loss_alpha and seq_aux belong to training, ep_size to several devices.
    unread: ClassVar[frozenset[str]] = frozenset({"aux_loss_alpha", "seq_aux", "ep_size"})
    scores: ClassVar[str] = "softmax"
    num_shared: ClassVar[int] = 2
    first_dense: ClassVar[int] = 0
    scale: ClassVar[float] = 1.0
    names: ClassVar[Mapping[str, str]] = {
        **Llama.names,
        "mixer.query.0": f"{_ATTENTION}.q_a_proj",
        "mixer.query.1": f"{_ATTENTION}.q_a_layernorm",
        "mixer.norm": f"{_ATTENTION}.kv_a_layernorm",
        "mixer.expand": f"{_ATTENTION}.kv_b_proj",
        "feedforward.shared.output": f"{_SHARED}.down_proj",
    }

    def layouts(self) -> Mapping[str, Layout]:
        def halves(config: DecoderConfig, count: int) -> list[Rows]:
            return [Rows(f"{_SHARED}.{name}_proj", count // 2) for name in ("gate", "up")]

        return {
            **QWEN_EXPERTS,
            "mixer.query": lambda config, count: [_queries(config, count, "q_proj")],
            "mixer.query.2": lambda config, count: [_queries(config, count, "q_b_proj")],
            "mixer.compress": _compressed,
            "feedforward.shared.input": halves,
        }

    def arguments(self, keys: Keys) -> dict[str, Any]:
        key_size, rope_size = keys.integer("qk_nope_head_dim"), keys.integer("qk_rope_head_dim")
        keys.expect("head_dim", rope_size)
        keys.expect("qk_head_dim", key_size + rope_size)
        keys.expect("num_key_value_heads", keys.integer("num_attention_heads"))
        keys.expect("rms_norm_eps", _INNER_EPS)
        keys.expect("moe_layer_freq", 1)
        keys.expect("scoring_func", self.scores)
        arguments = super().arguments(keys)
        del arguments["num_kv_heads"]
        latent = {
            "latent_size": keys.integer("kv_lora_rank", 512),
            "rope_size": rope_size,
            "query_latent_size": keys.optional_integer("q_lora_rank", 1536),
            "value_size": keys.integer("v_head_dim", 128),
        }
        first_dense = keys.integer("first_k_dense_replace", self.first_dense, least=0)
        num_layers = arguments["num_layers"]
        kinds = ["swiglu" if layer < first_dense else "moe" for layer in range(num_layers)]
        arguments |= {
            "mixer": "latent_attention",
            "head_size": key_size,
            "options": {"latent_attention": latent},
        }
        return with_experts(arguments, self.experts(keys), kinds)

    def experts(self, keys: Keys) -> dict[str, Any]:
        """Options of `moe`."""
        method = keys.choice("topk_method", "greedy", ["greedy", "group_limited_greedy"])
        keys.expect("norm_topk_prob", False)  # transformers ignores it
        num_groups, top_groups = keys.optional_integer("n_group"), keys.optional_integer(
            "topk_group"
        )
        if method == "greedy":
            num_groups = top_groups = 1
        return self._common(keys) | {
            "num_groups": num_groups or 1,
            "top_groups": top_groups or 1,
            "group_score": "max",
            "normalize": False,
        }

    def _common(self, keys: Keys) -> dict[str, Any]:
        keys.expect("num_experts", keys.integer("n_routed_experts"))
        keys.expect("num_local_experts", keys.integer("n_routed_experts"))
        return {
            "num_experts": keys.integer("n_routed_experts"),
            "top_k": keys.integer("num_experts_per_tok", 8),
            "num_shared": keys.integer("n_shared_experts", self.num_shared),
            "expert_size": keys.integer("moe_intermediate_size"),
            "scores": self.scores,
            "scale": keys.number("routed_scaling_factor", self.scale),
        }

    def rope(self, keys: Keys) -> dict[str, Any]:
        return read_rope(keys, self.rope_theta, types=("default", "yarn"))

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        latent = config.options_of("latent_attention")
        kinds = config.feedforward_kinds
        written = super().config(config, settings)
        del written["head_dim"]
        return written | {
            "num_key_value_heads": config.num_heads,
            "qk_nope_head_dim": config.size_of_heads,
            "qk_rope_head_dim": latent.rope_size,
            "v_head_dim": latent.value_size or config.size_of_heads,
            "kv_lora_rank": latent.latent_size,
            "q_lora_rank": latent.query_latent_size,
            "first_k_dense_replace": kinds.index("moe") if "moe" in kinds else len(kinds),
            "n_routed_experts": settings["moe.num_experts"],
            "num_experts_per_tok": settings["moe.top_k"],
            "n_shared_experts": settings["moe.num_shared"],
            "moe_intermediate_size": settings["moe.expert_size"],
            "intermediate_size": settings["intermediate_size"] or settings["moe.expert_size"],
            "routed_scaling_factor": settings["moe.scale"],
            "n_group": settings["moe.num_groups"],
            "topk_group": settings["moe.top_groups"],
            **self.written_method(settings),
        }

    def written_method(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """How experts are chosen."""
        greedy = settings["moe.num_groups"] == 1
        return {"topk_method": "greedy" if greedy else "group_limited_greedy"}


class DeepseekV3(DeepseekV2):
    """Sigmoid scores, balanced by a bias; a group scores as its best two. The layers that predict further tokens
    are skipped."""

    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    unread: ClassVar[frozenset[str]] = DeepseekV2.unread | {
        "num_nextn_predict_layers",
        "num_mtp_layers",
    }
    scores: ClassVar[str] = "sigmoid"
    num_shared: ClassVar[int] = 1
    first_dense: ClassVar[int] = 3
    scale: ClassVar[float] = 2.5
    names: ClassVar[Mapping[str, str]] = {
        **DeepseekV2.names,
        "feedforward.bias": "model.layers.*.mlp.gate.e_score_correction_bias",
    }

    def is_other_task(self, name: str, config: DecoderConfig) -> bool:
        layer = re.match(r"model\.layers\.(\d{1,9})\.", name)
        return layer is not None and int(layer[1]) >= config.num_layers

    def experts(self, keys: Keys) -> dict[str, Any]:
        keys.expect("topk_method", "noaux_tc")
        keys.expect("rope_interleave", True)
        return self._common(keys) | {
            "num_groups": keys.integer("n_group", 8),
            "top_groups": keys.integer("topk_group", 4),
            "normalize": keys.flag("norm_topk_prob", True),
            "balance": "bias",
        }

    def written_method(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": settings["moe.normalize"],
            "num_nextn_predict_layers": 0,
        }


def _queries(config: DecoderConfig, count: int, name: str) -> Rows:
    """(heads, key size + rope size); theirs rotate neighbours, ours halves."""
    rope_size = config.options_of("latent_attention").rope_size
    size = config.size_of_heads + rope_size

    def order() -> list[int]:
        kept = list(range(config.size_of_heads))
        of_head = kept + [config.size_of_heads + row for row in _halves(rope_size)]
        return [head * size + row for head in range(config.num_heads) for row in of_head]

    return Rows(f"{_ATTENTION}.{name}", count, order=order)


def _compressed(config: DecoderConfig, count: int) -> list[Rows]:
    """The latent, then the part of the keys that all heads share."""
    options = config.options_of("latent_attention")

    def order() -> list[int]:
        latent = options.latent_size
        return [*range(latent), *(latent + row for row in _halves(options.rope_size))]

    return [Rows(f"{_ATTENTION}.kv_a_proj_with_mqa", count, order=order)]


def _halves(size: int) -> list[int]:
    """Even rows, then odd ones."""
    return [*range(0, size, 2), *range(1, size, 2)]
