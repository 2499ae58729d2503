"""Convert the weights of a Decoder to names and layout of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from apps.export.families import Family
from common.models.config import DecoderConfig
from common.models.decoder import Decoder
from common.models.mixers.rope import rope_frequencies


def gguf_tensors(model: Decoder, family: Family) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor); matrices are (out, in) as in `nn.Linear`.

    GPT-2 needs no transpose: only the Conv1D of its original code is (in, out).
    """
    yield "token_embd.weight", model.token_embedding.weight
    if model.position_embedding is not None:
        yield "position_embd.weight", model.position_embedding.weight
    if model.config.rope_scaling is not None:
        yield "rope_freqs.weight", _rope_divisors(model.config)
    for index, block in enumerate(model.blocks):
        for name, tensor in _block_tensors(block, family):
            yield f"blk.{index}.{name}", tensor
    yield from _affine("output_norm", model.final_norm, family)
    if model.head is not None:  # without it, llama.cpp uses the embedding
        yield "output.weight", model.head.weight


def _block_tensors(block: Any, family: Family) -> Iterator[tuple[str, torch.Tensor]]:
    attention, feedforward = block.mixer, block.feedforward
    yield from _affine("attn_norm", block.mixer_norm, family)
    if family == "gpt2":
        yield from _affine("attn_qkv", attention.query_key_value, family)
    else:
        yield from _split_projections(attention, family)
    if family == "qwen3":
        yield "attn_q_norm.weight", attention.query_norm.weight
        yield "attn_k_norm.weight", attention.key_norm.weight
    yield from _affine("attn_output", attention.output, family)
    yield from _affine("ffn_norm", block.feedforward_norm, family)
    if family != "gpt2":
        yield from _affine("ffn_gate", feedforward.gate, family)
    yield from _affine("ffn_up", feedforward.input, family)
    yield from _affine("ffn_down", feedforward.output, family)


def _rope_divisors(config: DecoderConfig) -> torch.Tensor:
    """(head size / 2,) float32: divisors of the plain RoPE frequencies."""
    plain = rope_frequencies(config.size_of_heads, config.rope_theta, None)
    return (
        plain / rope_frequencies(config.size_of_heads, config.rope_theta, config.rope_scaling)
    ).float()


def _affine(
    name: str, module: nn.Linear | nn.LayerNorm | nn.RMSNorm | Any, family: Family
) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{name}.weight", module.weight
    bias = getattr(module, "bias", None)
    if family == "gpt2" and bias is None:  # required by loaders; zero has no effect
        bias = module.weight.new_zeros(module.weight.shape[0])
    if bias is not None:
        yield f"{name}.bias", bias


def _split_projections(attention: Any, family: Family) -> Iterator[tuple[str, torch.Tensor]]:
    """Split the fused (q + k + v, hidden) matrix and bias into three."""
    heads = {"q": attention.num_heads, "k": attention.num_kv_heads, "v": attention.num_kv_heads}
    sizes = [number * attention.head_size for number in heads.values()]
    for kind in ("weight", "bias"):
        fused = getattr(attention.query_key_value, kind)
        if fused is None:
            continue
        for (name, number), part in zip(heads.items(), fused.split(sizes), strict=True):
            if family == "llama" and name != "v":
                part = interleave_rotary(part, number)
            yield f"attn_{name}.{kind}", part


def interleave_rotary(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Permute rows from RoPE on halves to RoPE on neighbours: row i + d/2 goes next to row i.
    llama.cpp rotates pairs (2i, 2i + 1) for the architecture `llama`, like the first release of
    Llama, and pairs (i, i + d/2) for Qwen.

    Attention sums over rows of queries and keys, so any order works if it is the same in both.

    rows: (num_heads * d, ...), of a projection's weight or bias; returns the same shape.
    """
    halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])  # (heads, half, d/2, ...)
    return halves.transpose(1, 2).flatten(0, 2)
