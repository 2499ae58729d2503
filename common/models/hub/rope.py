"""The keys of config.json about RoPE: `rope_theta` and `rope_scaling` (transformers 4), or `rope_parameters` (5)."""

from __future__ import annotations

import math
from typing import Any

from common.models.config import DecoderConfig
from common.models.hub.keys import Keys
from common.models.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)

_KNOWN = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor"),
    *("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    *("beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"),
    *("short_factor", "long_factor"),
}


def read_rope(
    keys: Keys,
    theta: float,
    *,
    rope: Keys | None = None,
    types: tuple[str, ...] = ("default", "linear", "llama3", "yarn"),
    partial: bool = False,
) -> dict[str, Any]:
    """The arguments `rope_theta` and `rope_scaling` of a Decoder.

    Args:
        theta: the family's default.
        rope: the object with the RoPE of some layers; None: the one of all layers.
        types: the values of `rope_type` that the family knows.
        partial: whether the family reads `partial_rotary_factor` itself.
    """
    rope = rope or rope_keys(keys)
    for key in rope.values:
        if key not in _KNOWN:
            raise rope.refuse(key)
    if not partial:
        rope.expect("partial_rotary_factor", 1)
    kind = "type" if rope.get("rope_type") is None else "rope_type"
    read = {"rope_theta": rope.number("rope_theta", keys.number("rope_theta", theta))}
    match rope.choice(kind, "default", types):
        case "linear":
            scaling: dict[str, Any] | None = {"type": "linear", "factor": rope.number("factor")}
        case "llama3":
            scaling = {
                "type": "llama3",
                "factor": rope.number("factor"),
                "low_frequency_factor": rope.number("low_freq_factor"),
                "high_frequency_factor": rope.number("high_freq_factor"),
                "original_context_length": _original_length(keys, rope),
            }
        case "yarn":
            scaling = _read_yarn(keys, rope)
        case "longrope" | "su":  # of Phi-3, which adds its lists
            scaling = {"type": "longrope"}
        case _:
            scaling = None
    return read | {"rope_scaling": scaling}


def rope_keys(keys: Keys) -> Keys:
    """If both are present, transformers reads rope_scaling."""
    rope = keys.inner("rope_scaling" if keys.get("rope_scaling") else "rope_parameters")
    keys.read.add("rope_parameters")
    return rope


def _original_length(keys: Keys, rope: Keys) -> int:
    longest = keys.integer("max_position_embeddings")
    return rope.integer("original_max_position_embeddings", longest)


def _read_yarn(keys: Keys, rope: Keys) -> dict[str, Any]:
    original = _original_length(keys, rope)
    longest = keys.integer("max_position_embeddings")
    return {
        "type": "yarn",
        "factor": rope.number("factor", longest / original),
        "original_context_length": original,
        "fast_turns": rope.number("beta_fast", 32.0),
        "slow_turns": rope.number("beta_slow", 1.0),
        "truncate": rope.flag("truncate", True),
        "attention_factor": rope.optional_number("attention_factor"),
        "mscale": rope.optional_number("mscale"),
        "mscale_all": rope.optional_number("mscale_all_dim"),
    }


def read_longrope(keys: Keys, rope: Keys, original: int, rotated: int) -> dict[str, Any]:
    """LongRoPE, with `rotated` dimensions of each head."""
    factor = rope.optional_number("factor") or keys.integer("max_position_embeddings") / original
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(max(original, 2)))
    return {
        "type": "longrope",
        "short_factors": rope.numbers("short_factor", rotated // 2),
        "long_factors": rope.numbers("long_factor", rotated // 2),
        "original_context_length": original,
        "attention_factor": rope.number("attention_factor", usual),
    }


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, which both versions read."""
    return {"rope_theta": config.rope_theta, "rope_scaling": write_scaling(config.rope_scaling)}


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The object `rope_scaling`."""
    match scaling:
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_context_length,
            }
        case YarnScaling():
            written = {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_context_length,
                "beta_fast": scaling.fast_turns,
                "beta_slow": scaling.slow_turns,
                "truncate": scaling.truncate,
                "attention_factor": scaling.attention_factor,
                "mscale": scaling.mscale,
                "mscale_all_dim": scaling.mscale_all,
            }
            return {key: value for key, value in written.items() if value is not None}
        case LongRopeScaling():
            return {
                "rope_type": "longrope",
                "short_factor": scaling.short_factors,
                "long_factor": scaling.long_factors,
                "attention_factor": scaling.attention_factor,
                "original_max_position_embeddings": scaling.original_context_length,
            }
        case None:
            return None
