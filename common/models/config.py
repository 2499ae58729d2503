"""Configuration of a Decoder. Imports no torch, so that a wrong key is reported at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from common.config import Config

_LLAMA: dict[str, Any] = {
    "positions": "rope",
    "norm": "rmsnorm",
    "feedforward": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"
    "gpt2": {},
    # Touvron et al. 2023, "Llama 2": RoPE, RMSNorm, SwiGLU, no biases
    "llama": _LLAMA,
    # Qwen team 2024, "Qwen2 Technical Report": Llama with biases on queries, keys and values
    "qwen2": {**_LLAMA, "qkv_bias": True},
    # Qwen team 2025, "Qwen3 Technical Report": norms of queries and keys instead of those biases
    "qwen3": {**_LLAMA, "qk_norm": True},
    # Karpathy 2015, "The Unreasonable Effectiveness of Recurrent Neural Networks", with residuals
    "char_lstm": {
        "mixer": "lstm",
        "positions": "none",
        "feedforward": "none",
        "num_layers": 2,
        "tie_embeddings": False,
    },
}


class ModelConfig(Config):
    """Keys of every model configuration; a project's own model extends it."""

    context_length: int = Field(256, ge=2)  # tokens


class RopeScaling(Config):
    """RoPE scaling of Llama 3.1 to contexts longer than in pretraining.

    Frequencies with more than `high_frequency_factor` turns in the original context are kept, those
    with fewer than `low_frequency_factor` are divided by `factor`, with linear interpolation
    between.
    """

    type: Literal["llama3"] = "llama3"
    factor: float = Field(gt=0)
    low_frequency_factor: float = Field(1.0, gt=0)
    high_frequency_factor: float = Field(4.0, gt=0)
    original_context_length: int = Field(gt=0)

    @model_validator(mode="after")
    def _low_is_lower(self) -> RopeScaling:
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError("low_frequency_factor must be below high_frequency_factor")
        return self


class DecoderConfig(ModelConfig):
    """A preset sets defaults; explicit keys override them."""

    preset: Literal["gpt2", "llama", "qwen2", "qwen3", "char_lstm"] = "gpt2"
    num_layers: int = Field(4, gt=0)
    hidden_size: int = Field(128, gt=0)
    mixer: Literal["attention", "lstm"] = "attention"
    num_heads: int = Field(4, gt=0)
    num_kv_heads: int | None = Field(None, gt=0)  # fewer than num_heads: grouped-query attention
    head_size: int | None = Field(None, gt=0)  # default: hidden_size / num_heads
    qk_norm: bool = False
    positions: Literal["learned", "rope", "none"] = "learned"
    rope_theta: float = Field(10_000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    feedforward: Literal["mlp", "swiglu", "none"] = "mlp"
    activation: Literal["gelu_tanh", "gelu", "relu_squared"] = "gelu_tanh"  # of the mlp
    intermediate_size: int | None = Field(None, gt=0)  # default: 4x hidden (mlp), 8/3x (swiglu)
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float | None = Field(None, gt=0)  # default: 1e-5 (layernorm), 1e-6 (rmsnorm)
    bias: bool = True
    qkv_bias: bool | None = None  # of queries, keys and values; default: as `bias`
    tie_embeddings: bool = True
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("preset", "gpt2") in PRESETS:
            return PRESETS[values.get("preset", "gpt2")] | values
        return values

    @model_validator(mode="after")
    def _shapes_fit(self) -> DecoderConfig:
        if self.mixer == "attention":
            if self.head_size is None and self.hidden_size % self.num_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
                )
            if self.num_heads % (self.num_kv_heads or self.num_heads):
                raise ValueError(
                    f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
                )
            if self.positions == "rope" and self.size_of_heads % 2:
                raise ValueError("rope needs an even head_size")
        elif self.positions == "rope":
            raise ValueError("rope rotates queries and keys: it needs mixer=attention")
        if self.rope_scaling is not None and self.positions != "rope":
            raise ValueError("rope_scaling needs positions=rope")
        return self

    @property
    def size_of_heads(self) -> int:
        """`head_size`, by default hidden_size / num_heads."""
        return self.head_size or self.hidden_size // self.num_heads
