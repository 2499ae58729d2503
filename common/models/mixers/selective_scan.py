"""The recurrence of Mamba: a vector of states per channel, read in the direction of the token."""

from __future__ import annotations

import torch

from common.models.mixers.base import at_least_fp32
from common.models.mixers.elementwise_scan import elementwise_scan

_STATES_OF_BLOCK = 2**20  # numbers of the states that one block of tokens holds: 4 MiB in fp32


def selective_scan(
    inputs: torch.Tensor,
    step: torch.Tensor,
    rates: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    begins: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """h_t = exp(-step_t * rates) * h_{t-1} + step_t * inputs_t * b_t; y_t = c_t^T h_t (Gu and Dao 2023, algorithm 2).

    Args:
        inputs, step: (batch, time, channels).
        rates: (N, channels), at least 0.
        b, c: (batch, time, N).
        begins: (batch, time) bool, True where a document starts: h is zero before the token.
        state: (batch, N, channels) before the first token; None: zeros.
    Returns: y, (batch, time, channels) in fp32 or better, and the state after the last token.
    """
    inputs, step, rates, b, c = map(at_least_fp32, (inputs, step, rates, b, c))
    if state is None:
        state = inputs.new_zeros(inputs.shape[0], *rates.shape)
    added = step * inputs
    with torch.autocast(inputs.device.type, enabled=False):
        if inputs.device.type == "cpu":
            result: tuple[torch.Tensor, ...] = _scan_blocks(added, step, rates, b, c, begins, state)
            return result[0], result[1]
        decay = _decay(step, rates, begins)
        hidden = elementwise_scan(decay, added[:, :, None] * b[..., None], state)
        return (c[:, :, None] @ hidden)[:, :, 0], hidden[:, -1]


def _decay(step: torch.Tensor, rates: torch.Tensor, begins: torch.Tensor | None) -> torch.Tensor:
    """(batch, time, N, channels)"""
    decay = torch.exp(-step[:, :, None] * rates)
    return decay if begins is None else decay.masked_fill_(begins[..., None, None], 0)


def _block_size(step: torch.Tensor, rates: torch.Tensor) -> int:
    return max(1, _STATES_OF_BLOCK // (step.shape[0] * rates.numel()))


def _states_of_block(
    added: torch.Tensor,
    step: torch.Tensor,
    rates: torch.Tensor,
    b: torch.Tensor,
    begins: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decay and state of each token, (batch, time, N, channels)."""
    decay = _decay(step, rates, begins)
    hidden = added[:, :, None] * b[..., None]
    for now, factor in zip(hidden.unbind(1), decay.unbind(1), strict=True):
        now.addcmul_(factor, state)
        state = now
    return decay, hidden


# Blocks of tokens whose states stay in the cache, where decays and states for all tokens are N times the
# size of the inputs. The backward pass computes them again, from the state before each block.
@torch.library.custom_op("research::selective_scan", mutates_args=())
def _scan_blocks(
    added: torch.Tensor,
    step: torch.Tensor,
    rates: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    begins: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, the state after the last token, and the states before each block, (blocks, batch, N, channels)."""
    time, size = step.shape[1], _block_size(step, rates)
    output, before = added.new_empty(added.shape), []
    for start in range(0, time, size):
        part = slice(start, start + size)
        before.append(state)
        of_part = None if begins is None else begins[:, part]
        _, hidden = _states_of_block(
            added[:, part], step[:, part], rates, b[:, part], of_part, state
        )
        output[:, part] = (c[:, part, None] @ hidden)[:, :, 0]
        state = hidden[:, -1]
    return output, state.clone(memory_format=torch.contiguous_format), torch.stack(before)


@_scan_blocks.register_fake
def _(
    added: torch.Tensor,
    step: torch.Tensor,
    rates: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    begins: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    blocks = -(-step.shape[1] // _block_size(step, rates))
    states = state.new_empty(blocks, *state.shape)
    return added.new_empty(added.shape), state.new_empty(state.shape), states


@torch.library.custom_op("research::selective_scan_backward", mutates_args=())
def _scan_blocks_backward(
    added: torch.Tensor,
    step: torch.Tensor,
    rates: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    begins: torch.Tensor | None,
    before: torch.Tensor,
    to_output: torch.Tensor,
    to_state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of added, step, rates, b, c and state, from the last block to the first."""
    time, size = step.shape[1], _block_size(step, rates)
    to_added, to_step = added.new_empty(added.shape), step.new_empty(step.shape)
    to_b, to_c, to_rates = b.new_empty(b.shape), c.new_empty(c.shape), rates.new_zeros(rates.shape)
    to_state = to_state.clone(memory_format=torch.contiguous_format)
    for index in reversed(range(len(before))):
        part = slice(index * size, min((index + 1) * size, time))
        of_part = None if begins is None else begins[:, part]
        decay, hidden = _states_of_block(
            added[:, part], step[:, part], rates, b[:, part], of_part, before[index]
        )
        upstream = to_output[:, part]
        to_c[:, part] = (hidden * upstream[:, :, None]).sum(dim=3)
        to_hidden = c[:, part, :, None] * upstream[:, :, None]
        later = to_state
        for now, factor in zip(
            reversed(to_hidden.unbind(1)), reversed(decay.unbind(1)), strict=True
        ):
            now += later
            later = factor * now
        to_state = later
        to_b[:, part] = (to_hidden * added[:, part, None]).sum(dim=3)
        to_added[:, part] = (b[:, part, None] @ to_hidden)[:, :, 0]
        # d exp(-step * rates): to_hidden * h_{t-1} * decay * -rates, and * -step.
        to_hidden[:, 1:] *= hidden[:, :-1]
        to_hidden[:, 0] *= before[index]
        to_hidden *= decay
        to_step[:, part] = (to_hidden * rates).sum(dim=2).neg_()
        to_rates -= to_hidden.mul_(step[:, part, None]).sum(dim=(0, 1))
    return to_added, to_step, to_rates, to_b, to_c, to_state


@_scan_blocks_backward.register_fake
def _(
    added: torch.Tensor,
    step: torch.Tensor,
    rates: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    begins: torch.Tensor | None,
    before: torch.Tensor,
    to_output: torch.Tensor,
    to_state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        added.new_empty(added.shape),
        step.new_empty(step.shape),
        rates.new_empty(rates.shape),
        b.new_empty(b.shape),
        c.new_empty(c.shape),
        to_state.new_empty(to_state.shape),
    )


def _keep_for_backward(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[torch.Tensor, ...],
    output: tuple[torch.Tensor, ...],
) -> None:
    ctx.save_for_backward(*inputs[:6], output[2])


def _blocks_backward(
    ctx: torch.autograd.function.FunctionCtx,
    to_output: torch.Tensor,
    to_state: torch.Tensor,
    _: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    saved = ctx.saved_tensors  # type: ignore[attr-defined]  # FunctionCtx is typed without it
    added, step, rates, b, c, state = _scan_blocks_backward(*saved, to_output, to_state)
    return added, step, rates, b, c, None, state


_scan_blocks.register_autograd(_blocks_backward, setup_context=_keep_for_backward)
