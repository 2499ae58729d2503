"""The network as one `torch.autograd.Function`, with forward and backward from layers.py.

Parameters are one flat tuple, in the order of `CustomTransformer.parameters()`:
E, P, then those of each block (BLOCK_PARAMETERS), then the gain of the last norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from projects.custom_transformer import layers
from projects.custom_transformer.layers import Tensor

IGNORE_INDEX = -100
BLOCK_PARAMETERS = ("norm1", "qkv", "out", "norm2", "mlp1", "mlp2")


def split_blocks(parameters: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The flat parameters of all blocks, one tuple per block."""
    size = len(BLOCK_PARAMETERS)
    return [tuple(parameters[i : i + size]) for i in range(0, len(parameters), size)]


def run_block(
    x: Tensor, block: tuple[Tensor, ...], batch: int, heads: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x (n, c) -> x (n, c) after attention and MLP, and what `run_block_backward` needs."""
    gain1, qkv_weight, out_weight, gain2, weight1, weight2 = block
    normalised, r1 = layers.rms_norm_forward(x, gain1)
    qkv = layers.split_heads(torch.mm(normalised, qkv_weight.t()), batch, heads)
    mixed = layers.join_heads(layers.attention_forward(*qkv)[None], batch)
    middle = torch.addmm(x, mixed, out_weight.t())
    normalised, r2 = layers.rms_norm_forward(middle, gain2)
    y, z = layers.mlp_forward(normalised, weight1, weight2)
    return y.add_(middle), (x, r1, qkv, mixed, middle, r2, z)


def run_block_backward(
    dx: Tensor, saved: tuple[Tensor, ...], block: tuple[Tensor, ...], batch: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """dL/d(output) (n, c) -> dL/d(input), and the gradients of the block's parameters.

    A residual y = x + f(x) has dx = dy + (df/dx)^T dy.
    """
    x, r1, qkv, mixed, middle, r2, z = saved
    gain1, qkv_weight, out_weight, gain2, weight1, weight2 = block
    normalised = (middle * r2).mul_(gain2)
    dnormalised, dweight1, dweight2 = layers.mlp_backward(dx, normalised, z, weight1, weight2)
    dbranch, dgain2 = layers.rms_norm_backward(dnormalised, middle, gain2, r2)
    dx += dbranch

    dout_weight = torch.mm(dx.t(), mixed)
    dmixed = layers.split_heads(torch.mm(dx, out_weight), batch, qkv.shape[1] // batch, parts=1)[0]
    dqkv = layers.join_heads(torch.stack(layers.attention_backward(dmixed, *qkv)), batch)
    normalised = (x * r1).mul_(gain1)
    dqkv_weight = torch.mm(dqkv.t(), normalised)
    dbranch, dgain1 = layers.rms_norm_backward(torch.mm(dqkv, qkv_weight), x, gain1, r1)
    dx += dbranch
    return dx, (dgain1, dqkv_weight, dout_weight, dgain2, dweight1, dweight2)


class Network(torch.autograd.Function):
    """(ids, labels or None, heads, keep logits, *parameters) -> (mean loss or None, logits or None)"""

    @staticmethod
    def forward(
        ctx: Any,
        input_ids: Tensor,
        labels: Tensor | None,
        heads: int,
        keep_logits: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        tokens, positions, *rest, last_gain = parameters
        batch, time = input_ids.shape
        train = any(ctx.needs_input_grad)
        x = layers.embedding_forward(input_ids, tokens, positions, start=0)
        saved = []
        for block in split_blocks(rest):
            x, kept = run_block(x, block, batch, heads)
            if train:
                saved.append(kept)
        hidden, r = layers.rms_norm_forward(x, last_gain)
        logits = torch.mm(hidden, tokens.t()).view(batch, time, -1) if keep_logits else None
        loss, dhidden, dtokens = None, None, None
        if labels is not None:
            loss, dhidden, dtokens = _loss(hidden, tokens, labels, train)
        if train:
            ctx.input_ids, ctx.parameters = input_ids, parameters
            ctx.saved = [*saved, (x, r, hidden if keep_logits else None)]
            ctx.loss_gradients = (dhidden, dtokens)
        return loss, logits

    @staticmethod
    @once_differentiable  # second-order gradients raise instead of being zero
    def backward(ctx: Any, dloss: Tensor | None, dlogits: Tensor | None) -> tuple[Any, ...]:
        if ctx.saved is None:
            raise RuntimeError("the backward pass of this loss has already been run")
        saved, ctx.saved = ctx.saved, None
        tokens, positions, *rest, last_gain = ctx.parameters
        batch = len(ctx.input_ids)
        x, r, hidden = saved.pop()
        dx, dtokens = _start(ctx.loss_gradients, dloss, dlogits, hidden, tokens, x)
        ctx.loss_gradients = None
        dx, dlast_gain = layers.rms_norm_backward(dx, x, last_gain, r)
        gradients: list[Tensor] = []
        for block in reversed(split_blocks(rest)):
            # Popped, to free the activations of a block after use.
            dx, of_block = run_block_backward(dx, saved.pop(), block, batch)
            gradients = [*of_block, *gradients]
        dpositions = torch.zeros_like(positions)
        layers.embedding_backward(dx, ctx.input_ids, dtokens, dpositions)
        return (None, None, None, None, dtokens, dpositions, *gradients, dlast_gain)


def _loss(
    hidden: Tensor, tokens: Tensor, labels: Tensor, train: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Mean next-token loss; in training also dL/d(hidden) of the labelled rows, and dL/dE."""
    # Position t predicts labels[t + 1]; the last position predicts nothing.
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()
    rows = (targets != IGNORE_INDEX).nonzero()[:, 0]
    count = max(len(rows), 1)
    if not train:
        return layers.cross_entropy(hidden[rows], tokens, targets[rows]) / count, None, None
    dtokens = torch.zeros_like(tokens)
    total, drows = layers.cross_entropy_with_gradients(hidden[rows], tokens, targets[rows], dtokens)
    dhidden = torch.zeros_like(hidden).index_copy_(0, rows, drows.div_(count))
    return total / count, dhidden, dtokens.div_(count)


def _start(
    loss_gradients: tuple[Tensor | None, Tensor | None],
    dloss: Tensor | None,
    dlogits: Tensor | None,
    hidden: Tensor | None,
    tokens: Tensor,
    x: Tensor,
) -> tuple[Tensor, Tensor]:
    """dL/d(hidden) and dL/dE from the used outputs: loss, logits, or both."""
    dhidden, dtokens = torch.zeros_like(x), torch.zeros_like(tokens)
    if dloss is not None and loss_gradients[0] is not None and loss_gradients[1] is not None:
        dhidden, dtokens = loss_gradients[0].mul_(dloss), loss_gradients[1].mul_(dloss)
    if dlogits is not None and hidden is not None:
        dlogits = dlogits.flatten(0, 1)
        dhidden.addmm_(dlogits, tokens)
        dtokens.addmm_(dlogits.t(), hidden)
    return dhidden, dtokens
