"""llama.cpp's architectures: the Decoders that each computes, its keys, and its layout of the tensors.

The layouts are those of llama.cpp's own conversion (conversion/*.py), the limits those of its code (src/models/*.cpp).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from common.models.config import DecoderConfig
from common.models.mixers.rope import rope_frequencies
from common.models.rope_scaling import LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling

if TYPE_CHECKING:
    from gguf import GGUFWriter

Named = tuple[str, torch.Tensor]
Settings = Mapping[str, Any]  # see common.models.hub.config.settings


class Architecture:
    """Base: attention with RoPE on halves of each head."""

    name: ClassVar[str]
    windows: ClassVar[bool] = False  # whether it computes local attention
    adjacent: ClassVar[bool] = (
        False  # whether it rotates pairs (2i, 2i + 1), a Decoder (i, i + d/2)
    )
    scalings: ClassVar[frozenset[str]] = frozenset({"linear", "yarn"})  # of RoPE
    ties: ClassVar[bool] = (
        True  # whether the output matrix may be absent, and is then the embedding
    )
    normalizes: ClassVar[bool] = True  # whether the weights of a token's experts sum to 1

    def limits(self, config: DecoderConfig, found: Settings) -> Iterator[str]:
        """What it does not compute of the Decoder of `config`, whose resolved settings are `found`."""
        if "local_attention" in config.mixers and not self.windows:
            yield "windows (local_attention)"
        scaling = config.rope_scaling
        if scaling is not None and scaling.type not in self.scalings:
            yield f"rope_scaling.type={scaling.type}"
        if isinstance(scaling, YarnScaling) and not scaling.truncate:
            yield "YaRN with truncate=false"
        if found.get("activation") == "relu_squared":
            yield "activation=relu_squared"
        if "moe" in config.feedforward_kinds:
            yield from self.limits_of_experts(config, found)

    def limits_of_experts(self, config: DecoderConfig, found: Settings) -> Iterator[str]:
        """The part of `limits` about experts."""
        if set(config.feedforward_kinds) != {"moe"}:
            yield "dense layers beside experts"
        if found["moe.normalize"] != self.normalizes:
            yield f"moe.normalize={str(not self.normalizes).lower()}"

    def add_keys(self, writer: GGUFWriter, config: DecoderConfig, found: Settings) -> None:
        """Write the sizes and options."""
        writer.add_context_length(config.context_length)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_layers)
        has_experts = "moe" in config.feedforward_kinds
        dense = found["intermediate_size"]
        writer.add_feed_forward_length(dense or (found["moe.expert_size"] if has_experts else 0))
        if config.norm == "layernorm":
            writer.add_layer_norm_eps(found["norm_eps"])
        else:
            writer.add_layer_norm_rms_eps(found["norm_eps"])
        self.add_mixers(writer, config)
        if has_experts:
            self.add_experts(writer, found)

    def add_mixers(self, writer: GGUFWriter, config: DecoderConfig) -> None:
        """Write the keys of attention."""
        writer.add_head_count(config.num_heads)
        writer.add_head_count_kv(config.num_kv_heads or config.num_heads)
        writer.add_key_length(config.size_of_heads)
        writer.add_value_length(config.size_of_heads)
        if config.positions == "rope":
            self.add_rope(writer, config, config.rope_size)
        if self.windows and (windows := _windows(config)):
            writer.add_sliding_window(windows[0])
            writer.add_sliding_window_pattern(windows[1])
            writer.add_rope_freq_base_swa(_local_theta(config))

    def add_rope(self, writer: GGUFWriter, config: DecoderConfig, size: int) -> None:
        """Write the keys of RoPE on `size` dimensions of each head."""
        import gguf

        writer.add_rope_dimension_count(size)
        writer.add_rope_freq_base(config.rope_theta)
        match config.rope_scaling:
            case LinearScaling() as scaling:
                writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
                writer.add_rope_scaling_factor(scaling.factor)
            case YarnScaling() as scaling:
                writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
                writer.add_rope_scaling_factor(scaling.factor)
                writer.add_rope_scaling_orig_ctx_len(scaling.original_context_length)
                writer.add_rope_scaling_yarn_beta_fast(scaling.fast_turns)
                writer.add_rope_scaling_yarn_beta_slow(scaling.slow_turns)
                self.add_yarn_factors(writer, scaling)

    def add_yarn_factors(self, writer: GGUFWriter, scaling: YarnScaling) -> None:
        """llama.cpp multiplies rotated queries and keys by its default and by this factor."""
        writer.add_rope_scaling_attn_factors(scaling.table_factor() / scaling.magnitude())

    def add_experts(self, writer: GGUFWriter, found: Settings) -> None:
        """Write the keys of experts."""
        writer.add_expert_count(found["moe.num_experts"])
        writer.add_expert_used_count(found["moe.top_k"])
        writer.add_expert_feed_forward_length(found["moe.expert_size"])

    def convert(self, name: str, tensor: torch.Tensor, config: DecoderConfig) -> Iterator[Named]:
        """A tensor of transformers in llama.cpp's layout, still under transformers' name or names."""
        if config.norm == "zero_centered_rmsnorm" and name.endswith("norm.weight"):
            tensor = tensor + 1  # llama.cpp multiplies by the weight itself
        if self.adjacent and (projection := re.search(r"\.(q|k)_proj\.", name)):
            kv_heads = config.num_kv_heads or config.num_heads
            tensor = interleave(tensor, config.num_heads if projection[1] == "q" else kv_heads)
        yield name, tensor

    def extra(self, config: DecoderConfig) -> Iterator[Named]:
        """Tensors under llama.cpp's names that transformers computes."""
        return iter(())


def interleave(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Permute rows from RoPE on halves to RoPE on neighbours: row i + d/2 goes next to row i.

    Attention sums over rows of queries and keys, so any order works if it is the same in both.

    rows: (num_heads * d, ...), of a projection's weight or bias; returns the same shape.
    """
    halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])  # (heads, half, d/2, ...)
    return halves.transpose(1, 2).flatten(0, 2)


def _windows(config: DecoderConfig) -> tuple[int, list[bool]] | None:
    """The window, and which layers have it; None without any."""
    if "local_attention" not in config.mixers:
        return None
    window: int = config.options_of("local_attention").window
    return window, [mixer == "local_attention" for mixer in config.mixers]


def _local_theta(config: DecoderConfig) -> float:
    theta: float | None = config.options_of("local_attention").rope_theta
    return theta or config.rope_theta


class GPT2(Architecture):
    """Only transformers' Conv1D is (in, out)."""

    name = "gpt2"

    def convert(self, name: str, tensor: torch.Tensor, config: DecoderConfig) -> Iterator[Named]:
        transposed = re.search(r"\.c_(attn|proj|fc)\.weight$", name)
        yield name, tensor.T if transposed else tensor


class GPTNeoX(Architecture):
    """Queries, keys and values are not interleaved."""

    name = "gptneox"
    ties = False

    def add_mixers(self, writer: GGUFWriter, config: DecoderConfig) -> None:
        super().add_mixers(writer, config)
        writer.add_parallel_residual(config.parallel_residual)

    def convert(self, name: str, tensor: torch.Tensor, config: DecoderConfig) -> Iterator[Named]:
        if ".query_key_value." in name:
            of_heads = tensor.reshape(config.num_heads, 3, config.size_of_heads, *tensor.shape[1:])
            tensor = of_heads.transpose(0, 1).flatten(0, 2)
        yield name, tensor


class Llama(Architecture):
    """Also Mistral and Mixtral."""

    name = "llama"
    adjacent = True
    scalings: ClassVar[frozenset[str]] = frozenset({"linear", "yarn", "llama3"})

    def extra(self, config: DecoderConfig) -> Iterator[Named]:
        if isinstance(config.rope_scaling, Llama3Scaling):
            size, theta = config.rope_size, config.rope_theta
            scaled = rope_frequencies(size, theta, config.rope_scaling)
            yield "rope_freqs.weight", rope_frequencies(size, theta, None) / scaled


class SmolLM3(Architecture):
    """Every fourth layer has no positions."""

    name = "smollm3"
    adjacent = True

    def limits(self, config: DecoderConfig, found: Settings) -> Iterator[str]:
        yield from super().limits(config, found)
        kinds = ["nope_attention" if i % 4 == 3 else "attention" for i in range(config.num_layers)]
        if config.mixers != kinds:
            yield "other layers without positions than every fourth"
        if config.bias:
            yield "biases"


class Qwen2(Architecture):
    """Qwen2 and Qwen2.5."""

    name = "qwen2"


class Qwen3(Architecture):
    """Qwen3 without experts."""

    name = "qwen3"


class Qwen3MoE(Architecture):
    """Qwen3 with experts."""

    name = "qwen3moe"


class OLMo2(Architecture):
    """OLMo 2 and 3. Layers with a window have the same RoPE as the others, but not scaled."""

    name = "olmo2"
    windows = True
    ties = False

    def limits(self, config: DecoderConfig, found: Settings) -> Iterator[str]:
        yield from super().limits(config, found)
        if _windows(config) and _local_theta(config) != config.rope_theta:
            yield "another rope_theta in layers with a window"


class OLMoE(Architecture):
    """The weights of experts are not normalised."""

    name = "olmoe"
    ties = False
    normalizes = False

    def limits(self, config: DecoderConfig, found: Settings) -> Iterator[str]:
        yield from super().limits(config, found)
        if found["num_kv_heads"] != config.num_heads:
            yield "num_kv_heads below num_heads"


class Phi3(Architecture):
    """Projections are fused, as in transformers."""

    name = "phi3"
    scalings: ClassVar[frozenset[str]] = frozenset({"longrope"})

    def limits(self, config: DecoderConfig, found: Settings) -> Iterator[str]:
        yield from super().limits(config, found)
        # It chooses the factors by its own context, a Decoder by the text.
        original = getattr(config.rope_scaling, "original_context_length", config.context_length)
        if config.context_length > original:
            yield "contexts beyond the original one of LongRoPE (load it with that context_length)"

    def add_rope(self, writer: GGUFWriter, config: DecoderConfig, size: int) -> None:
        import gguf

        super().add_rope(writer, config, size)
        if isinstance(config.rope_scaling, LongRopeScaling):
            writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
            writer.add_rope_scaling_orig_ctx_len(config.rope_scaling.original_context_length)
            writer.add_rope_scaling_attn_factors(config.rope_scaling.attention_factor)

    def extra(self, config: DecoderConfig) -> Iterator[Named]:
        if isinstance(config.rope_scaling, LongRopeScaling):
            factors = torch.tensor(config.rope_scaling.short_factors)
            yield "rope_factors_short.weight", factors
            yield "rope_factors_long.weight", factors  # for a context rounded up to 256 tokens


class Gemma2(Architecture):
    """The scale of scores is not in the file: queries are multiplied by the quotient."""

    name = "gemma2"
    windows = True
    wide_scale: ClassVar[int] = 46  # layers of the size with the scale 1 / sqrt(width / heads)
    scaled: ClassVar[str] = ".q_proj.weight"

    def limits(self, config: DecoderConfig, found: Settings) -> Iterator[str]:
        yield from super().limits(config, found)
        if config.attention_soft_cap is None or config.logits_soft_cap is None:
            yield "scores or logits without a soft cap"
        if not config.tie_embeddings:
            yield "tie_embeddings=false"

    def add_mixers(self, writer: GGUFWriter, config: DecoderConfig) -> None:
        super().add_mixers(writer, config)
        if not _windows(config):  # by default it has some
            writer.add_sliding_window(config.context_length)
            writer.add_sliding_window_pattern([False] * config.num_layers)
        if config.attention_soft_cap is not None:
            writer.add_attn_logit_softcapping(config.attention_soft_cap)
        if config.logits_soft_cap is not None:
            writer.add_final_logit_softcapping(config.logits_soft_cap)

    def convert(self, name: str, tensor: torch.Tensor, config: DecoderConfig) -> Iterator[Named]:
        ((name, tensor),) = super().convert(name, tensor, config)
        if name.endswith(self.scaled) and config.attention_scale is not None:
            wide = config.hidden_size // config.num_heads
            size = wide if config.num_layers == self.wide_scale else config.size_of_heads
            tensor = tensor * (config.attention_scale * math.sqrt(size))
        yield name, tensor


class Gemma3(Gemma2):
    """Queries are normalised: the weights of their norm are multiplied."""

    name = "gemma3"
    wide_scale = 62
    scaled = ".q_norm.weight"

    def limits(self, config: DecoderConfig, found: Settings) -> Iterator[str]:
        yield from Architecture.limits(self, config, found)
