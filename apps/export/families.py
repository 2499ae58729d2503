"""Match a Decoder to a published architecture that other programs support."""

from __future__ import annotations

from typing import Any, Literal

from common.errors import ModelError
from common.models.base import BaseLanguageModel
from common.models.config import DecoderConfig
from common.models.decoder import Decoder

Family = Literal["gpt2", "llama", "qwen2", "qwen3"]

# Fixed options of GPT-2 (Radford et al. 2019), and of Llama (Touvron et al. 2023) and Qwen.
_GPT2: dict[str, Any] = {
    "mixer": "attention",
    "positions": "learned",
    "norm": "layernorm",
    "feedforward": "mlp",
    "activation": "gelu_tanh",
    "qk_norm": False,
}
_LLAMA: dict[str, Any] = {
    "mixer": "attention",
    "positions": "rope",
    "norm": "rmsnorm",
    "feedforward": "swiglu",
}
# Options stored as numbers in the file, or without effect outside of training.
_FREE = {
    *("preset", "context_length", "num_layers", "hidden_size", "num_heads", "num_kv_heads"),
    *("rope_theta", "intermediate_size", "tie_embeddings", "dropout", "bias", "qkv_bias"),
    *("head_size", "norm_eps"),
}


def family_of(model: BaseLanguageModel) -> Family:
    """Return the family with exactly the formulas of `model`. Raises ModelError with the reason if there is none."""
    if not isinstance(model, Decoder):
        raise _refusal(f"a {type(model).__name__} is not a Decoder")
    config = model.config
    fixed = _GPT2 if config.positions == "learned" else _LLAMA
    for option, value in fixed.items():
        if getattr(config, option) != value:
            raise _refusal(f"{option}={getattr(config, option)} is in none of them")
    _check_unknown_options(config, known={*fixed, *_FREE, "activation", "qk_norm", "rope_scaling"})
    attention: Any = model.blocks[0].mixer
    if fixed is _GPT2:
        if attention.num_kv_heads != attention.num_heads:
            raise _refusal("GPT-2 has no grouped-query attention (num_kv_heads)")
        if attention.num_heads * attention.head_size != config.hidden_size:
            raise _refusal("in GPT-2 the sizes of the heads sum to hidden_size")
        return "gpt2"
    if attention.output.bias is not None:
        raise _refusal("with RMSNorm and SwiGLU, none has biases everywhere (bias=true)")
    biased = attention.query_key_value.bias is not None
    if biased and config.qk_norm:
        raise _refusal("none has both qk_norm and biases of queries and keys")
    family: Family = "qwen2" if biased else "qwen3" if config.qk_norm else "llama"
    if config.rope_scaling is not None and family != "llama":
        raise _refusal("only Llama has a rope_scaling")
    return family


def _check_unknown_options(config: DecoderConfig, known: set[str]) -> None:
    """Refuse options unknown to this file, which would otherwise be lost silently."""
    for name, field in DecoderConfig.model_fields.items():
        if name not in known and getattr(config, name) != field.get_default(
            call_default_factory=True
        ):
            raise _refusal(f"{name}={getattr(config, name)} is not supported")


def _refusal(reason: str) -> ModelError:
    return ModelError(
        f"this model matches no family that can be exported: {reason}",
        "supported: GPT-2, Llama, Qwen2 and Qwen3, as in the presets; ONNX supports any model",
    )
