"""GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from common.models.config import DecoderConfig
from common.models.hub.families.base import Family, Rows
from common.models.hub.keys import Keys

ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu_squared": "relu2"}
ACTIVATIONS_READ = {
    **{theirs: ours for ours, theirs in ACTIVATIONS.items()},
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


class GPT2(Family):
    """Biases that a Decoder lacks are written as 0."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "mlp"})
    root = "transformer."
    free: ClassVar[frozenset[str]] = frozenset({"bias", "qkv_bias"})
    names: ClassVar[Mapping[str, str]] = {
        "token_embedding": "transformer.wte",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
        "mixer_norm": "transformer.h.*.ln_1",
        "feedforward_norm": "transformer.h.*.ln_2",
    }

    def layouts(self) -> Mapping[str, Any]:
        def of(name: str) -> Any:
            return lambda config, count: [Rows(name, count, transposed=True)]

        return {
            "position_embedding": lambda config, count: [Rows("transformer.wpe", count)],
            "mixer.query_key_value": of("transformer.h.*.attn.c_attn"),
            "mixer.output": of("transformer.h.*.attn.c_proj"),
            "feedforward.input": of("transformer.h.*.mlp.c_fc"),
            "feedforward.output": of("transformer.h.*.mlp.c_proj"),
        }

    def arguments(self, keys: Keys) -> dict[str, Any]:
        hidden_size = keys.integer("n_embd")
        activation = keys.choice("activation_function", "gelu_new", ACTIVATIONS_READ)
        return {
            "preset": "gpt2",
            "context_length": keys.integer("n_positions"),
            "num_layers": keys.integer("n_layer"),
            "hidden_size": hidden_size,
            "num_heads": keys.integer("n_head"),
            "activation": ACTIVATIONS_READ[activation],
            "intermediate_size": keys.integer("n_inner", 4 * hidden_size),
            "norm_eps": keys.number("layer_norm_epsilon", 1e-5),
            "tie_embeddings": keys.flag("tie_word_embeddings", True),
        }

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "n_positions": config.context_length,
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": settings["intermediate_size"],
            "activation_function": ACTIVATIONS[config.activation],
            "layer_norm_epsilon": settings["norm_eps"],
            "tie_word_embeddings": config.tie_embeddings,
            **dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), config.dropout),
        }
