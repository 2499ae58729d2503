"""Schemas of `model.options.<name>`. Imports no torch, so that a wrong key is reported immediately."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from common.config import Config


class NoOptions(Config):
    """Layers configured by the flat keys of DecoderConfig. A layer of your own may subclass Config directly."""

    splits_width: ClassVar[bool] = False  # whether hidden_size must be a multiple of num_heads
    takes_rope: ClassVar[bool] = False  # whether positions=rope has an effect
    sees_later: ClassVar[bool] = False  # whether causal=false has an effect


class HeadsOptions(NoOptions):
    """Layers that split hidden_size into num_heads."""

    splits_width: ClassVar[bool] = True


class AttentionOptions(HeadsOptions):
    """`attention`, configured by the flat keys of DecoderConfig."""

    takes_rope: ClassVar[bool] = True
    sees_later: ClassVar[bool] = True


class NoPositionOptions(HeadsOptions):
    """`nope_attention`: attention without positions, configured by the flat keys of DecoderConfig."""

    sees_later: ClassVar[bool] = True


class WindowOptions(AttentionOptions):
    """`local_attention`: each token sees the last `window` tokens, including itself."""

    window: int = Field(256, gt=0)
    rope_theta: float | None = Field(None, gt=0)  # default: as the other layers
    rope_scaling: bool = True  # false: the frequencies of these layers are not scaled


class LatentOptions(AttentionOptions):
    """`latent_attention` (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1)."""

    latent_size: int = Field(64, gt=0)  # of keys and values; the cache holds it and ...
    rope_size: int = Field(
        16, gt=0, multiple_of=2
    )  # ... this part of the keys, shared by all heads
    query_latent_size: int | None = Field(None, gt=0)  # default: queries are not compressed
    value_size: int | None = Field(
        None, gt=0
    )  # of each head; default: as the keys without positions


class ExpansionOptions(NoOptions):
    """`min_gru` and `min_lstm`: the state is `expansion` * hidden_size wide."""

    expansion: float = Field(1.0, gt=0)


class ConvolutionOptions(NoOptions):
    """`convolution` and `gated_convolution`: layer i has dilation 2 ** (i % dilation_cycle)."""

    kernel_size: int = Field(4, gt=1)
    dilation_cycle: int = Field(8, gt=0)


class MambaOptions(NoOptions):
    """`mamba` (Gu and Dao 2023)."""

    expansion: float = Field(2.0, gt=0)
    state_size: int = Field(16, gt=0)
    kernel_size: int = Field(4, gt=1)
    step_rank: int | None = Field(
        None, gt=0
    )  # of the projection to step sizes; default: width / 16


class Mamba2Options(NoOptions):
    """`mamba2` (Dao and Gu 2024)."""

    expansion: float = Field(2.0, gt=0)
    state_size: int = Field(64, gt=0)
    head_size: int = Field(64, gt=0)
    num_groups: int = Field(1, gt=0)  # of heads that share B and C
    kernel_size: int = Field(4, gt=1)
    convolution_bias: bool = True
    min_step: float = Field(0.0, ge=0)  # steps are kept within ...
    max_step: float | None = Field(None, gt=0)  # ... these limits; default: none


class RetentionOptions(HeadsOptions):
    """`retnet` (Sun et al. 2023): values are `value_expansion` times as wide as keys."""

    value_expansion: float = Field(2.0, gt=0)


class GatedLinearOptions(HeadsOptions):
    """`gla` (Yang et al. 2023)."""

    key_expansion: float = Field(0.5, gt=0)
    gate_rank: int = Field(16, gt=0)
    gate_divisor: float = Field(16.0, gt=0)


class MLSTMOptions(HeadsOptions):
    """`mlstm` (Beck et al. 2024): keys are `key_expansion` times as wide as values."""

    key_expansion: float = Field(0.5, gt=0)
    gate_soft_cap: float = Field(15.0, gt=0, le=30)


class SLSTMOptions(HeadsOptions):
    """`slstm` (Beck et al. 2024); `kernel_size` of the convolution before the gates, 0: none."""

    kernel_size: int = Field(4, ge=0)


class DeltaOptions(HeadsOptions):
    """`delta_net` and `gated_delta_net` (Yang et al. 2024)."""

    key_size: int | None = Field(None, gt=0)  # of each head; default: width / num_heads
    value_size: int | None = Field(None, gt=0)  # of each head; default: as key_size
    num_key_heads: int | None = Field(None, gt=0)  # default: num_heads
    num_value_heads: int | None = Field(None, gt=0)  # a multiple of the key heads; default: as many
    kernel_size: int = Field(4, gt=1)
    # [0, 1], or [-1, 1] to track a state such as a parity (Grazzi et al. 2025)
    eigenvalues: Literal["positive", "signed"] = "positive"


class RWKV7Options(HeadsOptions):
    """`rwkv7` (Peng et al. 2025): ranks of the projections to decay, rate and gate."""

    decay_rank: int = Field(32, gt=0)
    rate_rank: int = Field(32, gt=0)
    gate_rank: int = Field(64, gt=0)


class MoEOptions(NoOptions):
    """The feed-forward layer `moe`, see feedforwards/moe.py."""

    num_experts: int = Field(8, gt=0)
    top_k: int = Field(2, gt=0)  # experts of each token
    num_shared: int = Field(0, ge=0)  # additional experts for every token
    shared_size: int | None = Field(
        None, gt=0
    )  # hidden units of each of them; default: as the others
    shared_gate: bool = False  # their output is multiplied by sigmoid(w x)
    # hidden units of each; default: intermediate_size, or what makes top_k of them as large as a SwiGLU
    expert_size: int | None = Field(None, gt=0)
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True  # whether the weights of a token's experts sum to 1
    scale: float = Field(1.0, gt=0)  # of the weights
    num_groups: int = Field(1, gt=0)  # experts i, i + 1, ... are one group
    top_groups: int = Field(1, gt=0)  # groups that the experts of a token come from
    group_score: Literal["top2_sum", "max"] = "top2_sum"  # of its experts' scores
    balance: Literal["loss", "bias", "none"] = "loss"
    loss_weight: float = Field(0.01, ge=0)
    bias_step: float = Field(1e-3, ge=0)

    @model_validator(mode="after")
    def _groups_fit(self) -> MoEOptions:
        if self.num_experts % self.num_groups:
            raise ValueError(f"num_experts {self.num_experts} is no multiple of num_groups")
        if self.top_groups > self.num_groups:
            raise ValueError("top_groups is more than num_groups")
        available = self.num_experts // self.num_groups * self.top_groups
        if self.top_k > available:
            raise ValueError(
                f"top_k {self.top_k} is more than the {available} experts to choose from"
            )
        return self


OPTIONS: dict[str, type[NoOptions]] = {
    "attention": AttentionOptions,
    "nope_attention": NoPositionOptions,
    "local_attention": WindowOptions,
    "latent_attention": LatentOptions,
    "lstm": NoOptions,
    "gru": NoOptions,
    "min_gru": ExpansionOptions,
    "min_lstm": ExpansionOptions,
    "convolution": ConvolutionOptions,
    "gated_convolution": ConvolutionOptions,
    "mamba": MambaOptions,
    "mamba2": Mamba2Options,
    "retnet": RetentionOptions,
    "gla": GatedLinearOptions,
    "mlstm": MLSTMOptions,
    "slstm": SLSTMOptions,
    "delta_net": DeltaOptions,
    "gated_delta_net": DeltaOptions,
    "rwkv7": RWKV7Options,
    "mlp": NoOptions,
    "swiglu": NoOptions,
    "geglu": NoOptions,
    "moe": MoEOptions,
}
