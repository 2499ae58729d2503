"""GPT-NeoX (Black et al. 2022), the architecture of Pythia (Biderman et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from common.models.config import DecoderConfig
from common.models.hub.families.base import Family, Rows
from common.models.hub.families.gpt2 import ACTIVATIONS, ACTIVATIONS_READ
from common.models.hub.keys import Keys
from common.models.hub.rope import read_rope, rope_keys, write_scaling


class GPTNeoX(Family):
    """Parallel residual, RoPE on a part of each head, queries, keys and values interleaved per head."""

    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "mlp"})
    divides_width = True
    root = "gpt_neox."
    head = "embed_out"
    names: ClassVar[Mapping[str, str]] = {
        "token_embedding": "gpt_neox.embed_in",
        "final_norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
        "mixer_norm": "gpt_neox.layers.*.input_layernorm",
        "mixer.output": "gpt_neox.layers.*.attention.dense",
        "feedforward_norm": "gpt_neox.layers.*.post_attention_layernorm",
        "feedforward.input": "gpt_neox.layers.*.mlp.dense_h_to_4h",
        "feedforward.output": "gpt_neox.layers.*.mlp.dense_4h_to_h",
    }

    def layouts(self) -> Mapping[str, Any]:
        return {"mixer.query_key_value": _interleaved}

    def arguments(self, keys: Keys) -> dict[str, Any]:
        keys.expect("attention_bias", True)
        rope = rope_keys(keys)
        fraction = rope.optional_number("partial_rotary_factor", keys.number("rotary_pct", 0.25))
        theta = keys.number("rotary_emb_base", 10_000.0)
        activation = keys.choice("hidden_act", "gelu", ACTIVATIONS_READ)
        return {
            "preset": "gpt2",
            "positions": "rope",
            "context_length": keys.integer("max_position_embeddings", 2048),
            "num_layers": keys.integer("num_hidden_layers"),
            "hidden_size": keys.integer("hidden_size"),
            "num_heads": keys.integer("num_attention_heads"),
            "activation": ACTIVATIONS_READ[activation],
            "intermediate_size": keys.integer("intermediate_size"),
            "norm_eps": keys.number("layer_norm_eps", 1e-5),
            "tie_embeddings": keys.flag("tie_word_embeddings", False),
            "parallel_residual": keys.flag("use_parallel_residual", True),
            "rope_fraction": fraction,
            **read_rope(keys, theta, rope=rope, partial=True),
        }

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "max_position_embeddings": config.context_length,
            "num_hidden_layers": config.num_layers,
            "hidden_size": config.hidden_size,
            "num_attention_heads": config.num_heads,
            "hidden_act": ACTIVATIONS[config.activation],
            "intermediate_size": settings["intermediate_size"],
            "layer_norm_eps": settings["norm_eps"],
            "tie_word_embeddings": config.tie_embeddings,
            "use_parallel_residual": config.parallel_residual,
            "rotary_pct": config.rope_fraction,
            "rotary_emb_base": config.rope_theta,
            "rope_scaling": write_scaling(config.rope_scaling),
            **dict.fromkeys(("hidden_dropout", "attention_dropout"), config.dropout),
        }


def _interleaved(config: DecoderConfig, count: int) -> list[Rows]:
    """Their rows are (heads, 3, head size), ours (3, heads, head size)."""
    heads, size = config.num_heads, config.size_of_heads

    def order() -> list[int]:
        return [
            (head * 3 + part) * size + row
            for part in range(3)
            for head in range(heads)
            for row in range(size)
        ]

    return [Rows("gpt_neox.layers.*.attention.query_key_value", count, order=order)]
