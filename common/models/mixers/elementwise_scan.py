"""The linear recurrence of a vector: h_t = decay_t * h_{t-1} + inputs_t."""

from __future__ import annotations

import torch

from common.models.mixers.base import at_least_fp32


def elementwise_scan(
    decay: torch.Tensor, inputs: torch.Tensor, initial: torch.Tensor | None = None
) -> torch.Tensor:
    """h_t = decay_t * h_{t-1} + inputs_t, elementwise, along the second dimension.

    Decays may have any sign. A decay of 0 resets the state.

    Args:
        decay, inputs: (batch, time, ...) of one shape.
        initial: (batch, ...), h before the first token; None: zeros.
    Returns: (batch, time, ...), h after each token.
    """
    decay, inputs = at_least_fp32(decay), at_least_fp32(inputs)
    if initial is not None:
        first = torch.addcmul(inputs[:, :1], decay[:, :1], initial[:, None])
        inputs = torch.cat([first, inputs[:, 1:]], dim=1)
    if inputs.device.type == "cpu":
        hidden: torch.Tensor = _scan_in_order(decay, inputs)
        return hidden
    return _scan_in_blocks(decay, inputs)


# An opaque operator: torch.compile would unroll the loop over tokens.
@torch.library.custom_op("research::elementwise_scan", mutates_args=())
def _scan_in_order(decay: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """One in-place multiply-add per token, the fastest form on a CPU."""
    output = inputs.clone(memory_format=torch.contiguous_format)
    steps = output.unbind(1)
    for previous, step, factor in zip(steps, steps[1:], decay.unbind(1)[1:], strict=False):
        step.addcmul_(factor, previous)
    return output


@_scan_in_order.register_fake
def _(decay: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(inputs, memory_format=torch.contiguous_format)


def _keep_for_backward(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
) -> None:
    ctx.save_for_backward(inputs[0], output)


def _scan_backward(
    ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same recurrence, from the last token to the first."""
    decay, output = ctx.saved_tensors  # type: ignore[attr-defined]  # FunctionCtx is typed without it
    to_decay, to_inputs = _scan_in_order_backward(decay, output, gradient)
    return to_decay, to_inputs


@torch.library.custom_op("research::elementwise_scan_backward", mutates_args=())
def _scan_in_order_backward(
    decay: torch.Tensor, output: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    to_inputs = gradient.clone(memory_format=torch.contiguous_format)
    steps, factors = to_inputs.unbind(1), decay.unbind(1)
    for index in range(len(steps) - 2, -1, -1):
        steps[index].addcmul_(factors[index + 1], steps[index + 1])
    to_decay = torch.zeros_like(output)
    torch.mul(to_inputs[:, 1:], output[:, :-1], out=to_decay[:, 1:])
    return to_decay, to_inputs


@_scan_in_order_backward.register_fake
def _(
    decay: torch.Tensor, output: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(output), torch.empty_like(output)


_scan_in_order.register_autograd(_scan_backward, setup_context=_keep_for_backward)


def _scan_in_blocks(decay: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Two levels of sqrt(time) steps, within all blocks and across blocks: few large kernels for GPUs."""
    time = inputs.shape[1]
    size = max(1, round(time**0.5))
    missing = -time % size
    if missing:
        tail = (*decay.shape[:1], missing, *decay.shape[2:])
        decay = torch.cat([decay, decay.new_zeros(tail)], dim=1)
        inputs = torch.cat([inputs, inputs.new_zeros(tail)], dim=1)
    blocks = (inputs.shape[0], -1, size, *inputs.shape[2:])
    decay, inputs = decay.reshape(blocks), inputs.reshape(blocks)
    products, outputs = [decay[:, :, 0]], [inputs[:, :, 0]]
    for index in range(1, size):
        products.append(products[-1] * decay[:, :, index])
        outputs.append(torch.addcmul(inputs[:, :, index], decay[:, :, index], outputs[-1]))
    product, output = torch.stack(products, dim=2), torch.stack(outputs, dim=2)
    before = [torch.zeros_like(output[:, 0, 0])]
    for index in range(output.shape[1] - 1):
        before.append(torch.addcmul(output[:, index, -1], product[:, index, -1], before[-1]))
    carried = torch.stack(before, dim=1)[:, :, None]
    return torch.addcmul(output, product, carried).flatten(1, 2)[:, :time]
