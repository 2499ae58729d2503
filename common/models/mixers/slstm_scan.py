"""The recurrence of sLSTM: a loop over the tokens, because its gates see its last output.

The time goes into starting operators: 10 per token, and 9 for the gradient, which is written by hand.
Autograd over the equations of the paper takes twice as long for a layer of 256 on 8 x 256 tokens and 5 times on
1 x 2,048 with two threads, 1.7 and 4.3 times with one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from common.utils.threads import one_thread


def slstm_scan(
    gates: torch.Tensor,
    cells: torch.Tensor,
    bias: torch.Tensor,
    recurrent: torch.Tensor,
    hidden: torch.Tensor,
    average: torch.Tensor,
    log_normaliser: torch.Tensor,
    begins: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """h_t = sigmoid(o_t) c_t / n_t, c_t = f_t c_{t-1} + i_t tanh(z_t), n_t = f_t n_{t-1} + i_t (Beck et al. 2024, eq. 8 to 17).

    The input gate i is an exponential, so that c and n can overflow. The paper scales both by a running
    maximum, which cancels in c / n. Here the loop carries the average a = c / n and log n:
    a_t = a_{t-1} + w_t (tanh(z_t) - a_{t-1}) with w_t = i_t / n_t.

    Args:
        gates: (batch, time, 2, heads, size) in fp32 or better, what x adds to log i and logit f.
        cells: the same for z and logit o.
        bias: (heads, 4 * size), added to these four.
        recurrent: (heads, size, 4 * size); h_{t-1} @ recurrent is added to them.
        hidden, average, log_normaliser: (heads, batch, size), h, a and log n before the first token.
        begins: (batch, time) bool, True where a document starts: h and n are zero before the token.
    Returns: h, (time, heads, batch, size), and a and log n after the last token.
    """
    with torch.autocast(gates.device.type, enabled=False):
        results: tuple[torch.Tensor, ...] = _scan(
            gates, cells, bias, recurrent, hidden, average, log_normaliser, begins
        )
    return results[0], results[1], results[2]


def _masks(begins: torch.Tensor | None, time: int) -> list[torch.Tensor | None]:
    """For each token (batch, 1) bool, the rows in which a document starts, or None if there are none."""
    if begins is None:
        return [None] * time
    masks = zip(begins[..., None].unbind(1), begins.any(dim=0).tolist(), strict=True)
    return [mask if some else None for mask, some in masks]


def _four(totals: torch.Tensor) -> torch.Tensor:
    """(time, heads, batch, 4 * size) -> (4, time, heads, batch, size)"""
    return totals.view(*totals.shape[:3], 4, -1).movedim(3, 0)


# An opaque operator: torch.compile would unroll the loop. The last two results are kept for the backward
# pass: a of each token, and its w, logit f, tanh(z) and sigmoid(o).
@torch.library.custom_op("research::slstm_scan", mutates_args=())
def _scan(
    gates: torch.Tensor,
    cells: torch.Tensor,
    bias: torch.Tensor,
    recurrent: torch.Tensor,
    hidden: torch.Tensor,
    average: torch.Tensor,
    log_normaliser: torch.Tensor,
    begins: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, time, _, heads, size = gates.shape
    totals = gates.new_empty(time, heads, batch, 4 * size)
    four, biases = _four(totals), _four(bias[None, :, None])
    for part, of_x in enumerate((gates, cells)):
        pair = slice(2 * part, 2 * part + 2)
        torch.add(of_x.permute(2, 1, 3, 0, 4), biases[pair], out=four[pair])
    outputs, averages = (gates.new_empty(time, *hidden.shape) for _ in range(2))
    by_token = (x.unbind(0) for x in (totals, *four, outputs, averages))
    with one_thread():
        for mask, *token in zip(_masks(begins, time), *by_token, strict=True):
            total, update, forget, candidate, out, new_hidden, new_average = token
            if mask is not None:
                hidden = hidden.masked_fill(mask, 0)
                log_normaliser = log_normaliser.masked_fill(mask, -torch.inf)
            total.baddbmm_(hidden, recurrent)
            kept = F.logsigmoid(forget).add_(log_normaliser)
            log_normaliser = torch.logaddexp(kept, update)
            update.sub_(kept).sigmoid_()  # w
            average = torch.lerp(average, candidate.tanh_(), update, out=new_average)
            hidden = torch.mul(out.sigmoid_(), average, out=new_hidden)
    return outputs, average.clone(), log_normaliser, averages, totals


@_scan.register_fake
def _(
    gates: torch.Tensor,
    cells: torch.Tensor,
    bias: torch.Tensor,
    recurrent: torch.Tensor,
    hidden: torch.Tensor,
    average: torch.Tensor,
    log_normaliser: torch.Tensor,
    begins: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, time, _, heads, size = gates.shape
    shape = (time, heads, batch, size)
    outputs, averages = gates.new_empty(shape), gates.new_empty(shape)
    last = gates.new_empty(shape[1:]), gates.new_empty(shape[1:])
    return outputs, *last, averages, gates.new_empty(*shape[:3], 4 * size)


@torch.library.custom_op("research::slstm_scan_backward", mutates_args=())
def _scan_backward(
    recurrent: torch.Tensor,
    hidden: torch.Tensor,
    average: torch.Tensor,
    begins: torch.Tensor | None,
    outputs: torch.Tensor,
    averages: torch.Tensor,
    totals: torch.Tensor,
    to_outputs: torch.Tensor,
    to_average: torch.Tensor,
    to_log: torch.Tensor,
) -> list[torch.Tensor]:
    """Gradients of all arguments of `_scan` but the last.

    The derivatives that the chain rule multiplies are computed for all tokens at once, before the loop.
    """
    time = len(totals)
    update, forget, candidate, out = _four(totals)
    kept = 1 - update
    derivatives = (
        out,  # of h by a
        (1 - out).mul_(outputs),  # of h by logit o
        candidate.square().neg_().add_(1).mul_(update),  # of a by z
        candidate.sub(torch.cat([average[None], averages[:-1]]))
        .mul_(update)
        .mul_(kept),  # by log i
        kept,  # of a by a before
        update,  # of log n by log i
        torch.sigmoid(-forget),  # of log f by logit f
    )
    to_hiddens = torch.cat([torch.zeros_like(hidden)[None], to_outputs])  # from h before the first
    to_totals = torch.empty_like(totals)
    to_average, to_log = to_average.clone(), to_log.clone()
    transposed = recurrent.mT.contiguous()
    tensors = (to_hiddens[1:], to_hiddens[:-1], to_totals, *_four(to_totals), *derivatives)
    by_token = (x.unbind(0) for x in tensors)
    tokens = list(zip(_masks(begins, time), *by_token, strict=True))
    with one_thread():
        for mask, to_hidden, to_previous, to_total, *token in reversed(tokens):
            to_update, to_forget, to_candidate, to_out, *of_token = token
            h_a, h_o, a_z, a_i, a_a, n_i, f_f = of_token
            torch.mul(to_hidden, h_o, out=to_out)
            to_average.addcmul_(to_hidden, h_a)
            torch.mul(to_average, a_z, out=to_candidate)
            torch.mul(to_average, a_i, out=to_update).addcmul_(to_log, n_i)
            to_average.mul_(a_a)
            to_log.sub_(to_update)
            torch.mul(to_log, f_f, out=to_forget)
            seen = to_total if mask is None else to_total.masked_fill(mask, 0)
            to_previous.baddbmm_(seen, transposed)
    hiddens = torch.cat([hidden[None], outputs[:-1]])
    if begins is not None:
        hiddens.masked_fill_(begins.T[:, None, :, None], 0)
    to_recurrent = torch.einsum("thbi,thbo->hio", hiddens, to_totals)
    pairs = _four(to_totals).permute(3, 1, 0, 2, 4).split_with_sizes([2, 2], dim=2)
    to_gates, to_cells = (pair.clone(memory_format=torch.contiguous_format) for pair in pairs)
    to_bias = to_totals.sum(dim=0).sum(dim=1)  # both at once take ten times as long
    return [to_gates, to_cells, to_bias, to_recurrent, to_hiddens[0].clone(), to_average, to_log]


@_scan_backward.register_fake
def _(
    recurrent: torch.Tensor,
    hidden: torch.Tensor,
    average: torch.Tensor,
    begins: torch.Tensor | None,
    outputs: torch.Tensor,
    averages: torch.Tensor,
    totals: torch.Tensor,
    to_outputs: torch.Tensor,
    to_average: torch.Tensor,
    to_log: torch.Tensor,
) -> list[torch.Tensor]:
    time, heads, batch, size = outputs.shape
    state = (heads, batch, size)
    pair = (batch, time, 2, heads, size)
    shapes = (pair, pair, (heads, 4 * size), (heads, size, 4 * size), state, state, state)
    return [totals.new_empty(shape) for shape in shapes]


def _keep_for_backward(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[torch.Tensor, ...],
    output: tuple[torch.Tensor, ...],
) -> None:
    _, _, _, recurrent, hidden, average, _, begins = inputs
    outputs, _, _, averages, totals = output
    ctx.save_for_backward(recurrent, hidden, average, begins, outputs, averages, totals)


def _scan_gradients(
    ctx: torch.autograd.function.FunctionCtx,
    to_outputs: torch.Tensor,
    to_average: torch.Tensor,
    to_log: torch.Tensor,
    *_: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    saved = ctx.saved_tensors  # type: ignore[attr-defined]  # FunctionCtx is typed without it
    with torch.autocast(to_outputs.device.type, enabled=False):
        return *_scan_backward(*saved, to_outputs, to_average, to_log), None


_scan.register_autograd(_scan_gradients, setup_context=_keep_for_backward)
