"""Schemas of `model.rope_scaling`: RoPE in contexts longer than in pretraining. Imports no torch."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from common.config import Config


class LinearScaling(Config):
    """All frequencies are divided by `factor` (Chen et al. 2023, "Position Interpolation")."""

    type: Literal["linear"] = "linear"
    factor: float = Field(gt=0)


class Llama3Scaling(Config):
    """Scaling of Llama 3.1.

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
    def _low_is_lower(self) -> Llama3Scaling:
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError("low_frequency_factor must be below high_frequency_factor")
        return self


class YarnScaling(Config):
    """YaRN (Peng et al. 2023, arXiv 2309.00071, section 3): frequencies with fewer than `slow_turns` turns in the
    original context are divided by `factor`, those with more than `fast_turns` are kept.

    `attention_factor` multiplies rotated queries and keys; by default it follows from `factor` (eq. 22). With
    both `mscale` and `mscale_all` it is their ratio, as in DeepSeek-V2, whose latent attention also
    multiplies its scores by the square of the second.
    """

    type: Literal["yarn"] = "yarn"
    factor: float = Field(gt=0)
    original_context_length: int = Field(gt=0)
    fast_turns: float = Field(32.0, gt=0)
    slow_turns: float = Field(1.0, gt=0)
    truncate: bool = True  # round the borders between kept and divided frequencies outwards
    attention_factor: float | None = Field(None, gt=0)
    mscale: float | None = Field(None, gt=0)
    mscale_all: float | None = Field(None, gt=0)

    def magnitude(self, scale: float = 1.0) -> float:
        """0.1 * scale * ln(factor) + 1, or 1 for a factor below 1 (eq. 22)."""
        return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0

    def table_factor(self) -> float:
        """The factor of cosines and sines."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all:
            return self.magnitude(self.mscale) / self.magnitude(self.mscale_all)
        return self.magnitude()


class LongRopeScaling(Config):
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): each frequency has its own divisor, of `long_factors` in texts
    longer than `original_context_length` tokens, else of `short_factors`.

    `attention_factor` multiplies rotated queries and keys.
    """

    type: Literal["longrope"] = "longrope"
    short_factors: list[float]
    long_factors: list[float]
    original_context_length: int = Field(gt=0)
    attention_factor: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _factors_fit(self) -> LongRopeScaling:
        factors = [*self.short_factors, *self.long_factors]
        if len(self.short_factors) != len(self.long_factors) or not all(f > 0 for f in factors):
            raise ValueError("short_factors and long_factors must be equally many positive numbers")
        return self


def _type_of(value: Any) -> str:
    """Earlier versions had one type."""
    if isinstance(value, dict):
        return str(value.get("type", "llama3"))
    return str(getattr(value, "type", "llama3"))


RopeScaling = Annotated[
    Annotated[LinearScaling, Tag("linear")]
    | Annotated[Llama3Scaling, Tag("llama3")]
    | Annotated[YarnScaling, Tag("yarn")]
    | Annotated[LongRopeScaling, Tag("longrope")],
    Discriminator(_type_of),
]
