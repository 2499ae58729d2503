"""Magnitude pruning: set single weights to zero, or remove whole heads and neurons.

Magnitude is the baseline criterion that needs no data: the smallest weights (Han et al. 2015,
"Learning both Weights and Connections for Efficient Neural Networks", section 3), and the
structures whose weights have the smallest norm (Li et al. 2017, "Pruning Filters for Efficient
ConvNets", section 3.1). Further training best recovers the loss.

Zeros shrink neither the file nor the computation; removed structures shrink both.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn

from apps.export.config import Pruning
from common.errors import ModelError
from common.models.base import BaseLanguageModel
from common.models.decoder import Decoder
from common.models.feedforwards.dense import SwiGLU

M = TypeVar("M", bound=BaseLanguageModel)
_BLOCK = 32


def prune(model: BaseLanguageModel, how: Pruning) -> BaseLanguageModel:
    """Return a pruned copy of `model`. Raises ModelError if it has no such part."""
    if how.kind == "heads":
        return prune_heads(model, how.share)
    if how.kind == "neurons":
        return prune_neurons(model, how.share)
    return prune_weights(model, how.share, "layer" if how.kind == "magnitude" else "global")


def prune_weights(model: M, share: float, scope: Literal["layer", "global"] = "layer") -> M:
    """Return a copy of `model` with the smallest `share` of the weights of its linear layers set to zero.

    `layer` prunes the share of each matrix, `global` of all together, so that matrices with larger
    weights keep more. Embeddings, output projection, biases and norms are not pruned.
    """
    _check(model, share)
    pruned = copy.deepcopy(model)
    output = getattr(pruned, "head", None)
    layers = [m for m in pruned.modules() if type(m) is nn.Linear and m is not output]
    if not layers:
        raise ModelError("the model has no linear layers to prune")
    with torch.no_grad():
        weights = [layer.weight for layer in layers]
        if scope == "layer":
            for weight in weights:
                weight.view(-1)[_smallest(weight, share)] = 0
        else:
            together = torch.cat([weight.flatten() for weight in weights])
            together[_smallest(together, share)] = 0
            for weight in weights:
                kept, together = together[: weight.numel()], together[weight.numel() :]
                weight.copy_(kept.view_as(weight))
    return pruned


def _smallest(values: torch.Tensor, share: float) -> torch.Tensor:
    """Flat indices of the smallest `share` of `values`; ties go to the first."""
    order = values.flatten().abs().argsort(stable=True)
    return order[: round(share * values.numel())]


def prune_heads(model: BaseLanguageModel, share: float) -> Decoder:
    """Return a smaller Decoder without the `share` of attention heads with the smallest norm in each layer.

    Heads that share keys and values are removed together. Each layer loses the same number, rounded
    to nearest; at least one remains. Remaining heads keep their size.
    """
    decoder = _decoder_with(model, "attention", share)
    attention: Any = decoder.blocks[0].mixer
    groups, size = attention.num_kv_heads, attention.head_size
    kept = max(1, groups - round(share * groups))
    queries = attention.num_heads // groups
    smaller = _smaller(decoder, num_heads=kept * queries, num_kv_heads=kept, head_size=size)
    for block, target in zip(decoder.blocks, smaller.blocks, strict=True):
        mixer: Any = block.mixer
        chosen = _largest(_group_norms(mixer), kept)
        query_rows = _rows_of(chosen, queries * size)
        shared_rows = _rows_of(chosen, size)
        first_key, first_value = mixer.num_heads * size, (mixer.num_heads + groups) * size
        rows = torch.cat([query_rows, first_key + shared_rows, first_value + shared_rows])
        new: Any = target.mixer
        _copy(mixer.query_key_value, new.query_key_value, rows=rows)
        _copy(mixer.output, new.output, columns=query_rows)
    return smaller


def prune_neurons(model: BaseLanguageModel, share: float) -> Decoder:
    """Return a smaller Decoder without the `share` of feed-forward neurons with the smallest norm in each layer.

    The norm of a neuron is the product of the norms of its input weights (including a gate) and
    output weights, invariant to rescaling between the two. Large layers keep a multiple of 32
    neurons, as required by the blocks of int4 and of GGUF's q8_0.
    """
    decoder = _decoder_with(model, "feedforward", share)
    first: Any = decoder.blocks[0].feedforward
    size = first.input.out_features
    unit = _BLOCK if size % _BLOCK == 0 and size >= 32 * _BLOCK else 1
    kept = max(unit, size - unit * round(share * size / unit))
    smaller = _smaller(decoder, intermediate_size=kept)
    for block, target in zip(decoder.blocks, smaller.blocks, strict=True):
        source, new = cast(Any, block.feedforward), cast(Any, target.feedforward)
        norms = source.input.weight.norm(dim=1) * source.output.weight.norm(dim=0)
        if isinstance(source, SwiGLU):
            norms = norms * source.gate.weight.norm(dim=1)
        chosen = _largest(norms, kept)
        if isinstance(source, SwiGLU):
            _copy(source.gate, new.gate, rows=chosen)
        _copy(source.input, new.input, rows=chosen)
        _copy(source.output, new.output, columns=chosen)
    return smaller


def _decoder_with(model: BaseLanguageModel, part: str, share: float) -> Decoder:
    _check(model, share)
    if not isinstance(model, Decoder):
        raise ModelError(
            f"heads and neurons are pruned from a Decoder, not from a {type(model).__name__}",
            "prune its weights by magnitude",
        )
    config = model.config
    names = set(config.mixers if part == "attention" else config.feedforward_kinds)
    prunable = {"attention"} if part == "attention" else {"mlp", "swiglu"}
    if not names <= prunable:
        raise ModelError(
            f"this Decoder has no {part} to prune in every layer, but {', '.join(sorted(names))}",
            f"it can be pruned where every layer has {' or '.join(sorted(prunable))}",
        )
    return model


def _check(model: BaseLanguageModel, share: float) -> None:
    if not 0 < share < 1:
        raise ModelError(f"the share to prune must be between 0 and 1, got {share:g}")
    if model.quantization is not None:
        raise ModelError("a quantised model cannot be pruned", "prune it first, then quantise it")


def _smaller(decoder: Decoder, **sizes: int) -> Decoder:
    """A Decoder of other sizes with all weights of `decoder` whose shapes are unchanged."""
    smaller = Decoder(decoder.vocab_size, **{**decoder.arguments, **sizes})
    smaller.to(decoder.device, next(decoder.parameters()).dtype)
    old = decoder.state_dict()
    fitting = {
        name: old[name]
        for name, tensor in smaller.state_dict().items()
        if old[name].shape == tensor.shape
    }
    smaller.load_state_dict(fitting, strict=False)
    return smaller.train(decoder.training)


def _group_norms(attention: Any) -> torch.Tensor:
    """(kv heads,): norm of the weights of each key and value head and of its query heads, in and out."""
    heads = (attention.num_heads, attention.num_kv_heads, attention.num_kv_heads)
    groups = attention.num_kv_heads
    squares = attention.query_key_value.weight.square().sum(dim=1)
    parts = squares.split([number * attention.head_size for number in heads])
    total = sum(part.view(groups, -1).sum(dim=1) for part in parts)
    written = attention.output.weight.square().sum(dim=0).view(groups, -1).sum(dim=1)
    return (total + written).sqrt()  # type: ignore[no-any-return]  # Any above


def _largest(norms: torch.Tensor, number: int) -> torch.Tensor:
    """Indices of the `number` largest, ascending."""
    return norms.argsort(descending=True, stable=True)[:number].sort().values


def _rows_of(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """Row indices of blocks of `size` rows."""
    return (blocks[:, None] * size + torch.arange(size, device=blocks.device)).flatten()


def _copy(
    source: nn.Linear,
    target: nn.Linear,
    rows: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
) -> None:
    """Select outputs or inputs of a linear layer."""
    everything = slice(None)
    rows_kept = everything if rows is None else rows
    with torch.no_grad():
        target.weight.copy_(source.weight[rows_kept][:, everything if columns is None else columns])
        if source.bias is not None:
            target.bias.copy_(source.bias[rows_kept])
