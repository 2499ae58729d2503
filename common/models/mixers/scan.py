"""Two linear recurrences that carry all parallel recurrent mixers.

The state of `elementwise_scan` is a vector, that of `matrix_scan` a matrix per head, updated by outer
products. Both compute in fp32 or better, also under autocast, and reset at document boundaries.
"""

from __future__ import annotations

import torch

_CHUNK = 64  # tokens; the fastest of 16 to 128 for heads of 64


def at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    """Cast to fp32, unless x is float64: sums over a whole text need it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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


def matrix_scan(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    read: torch.Tensor | None = None,
    write: torch.Tensor | None = None,
    *,
    state: torch.Tensor | None = None,
    documents: torch.Tensor | None = None,
    chunk: int = _CHUNK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S_t = diag(exp(log_decay_t)) S_{t-1} + write_t (read_t^T S_{t-1}) + key_t value_t^T; o_t = q_t^T S_t.

    Without `read` and `write` this is linear attention with decay (RetNet, Mamba-2, GLA, mLSTM); with
    read = key and write = -beta * decay * key the gated delta rule (Yang et al. 2024, "Gated Delta
    Networks", eq. 10). Computed chunk by chunk: within a chunk as masked matrix products, from chunk to
    chunk by the state (Dao and Gu 2024, "Transformers are SSMs", section 6; Yang et al. 2024,
    "Parallelizing Linear Transformers with the Delta Rule", section 3).

    Args:
        query, key, read, write: (batch, time, heads, K).
        value: (batch, time, heads, V).
        log_decay: (batch, time, heads), or (batch, time, heads, K) for a decay per row of S. The latter
            may not sum to less than -80 within a chunk, or fp32 overflows.
        state: (batch, heads, K, V) before the first token; None: zeros.
        documents: (batch, time) int64, the document of each token; S is zero where one begins. `state`
            belongs to the document of the first token.
    Returns: (batch, time, heads, V) in fp32 or better, and the state after the last token.
    """
    with torch.autocast(value.device.type, enabled=False):
        query, key, value = at_least_fp32(query), at_least_fp32(key), at_least_fp32(value)
        log_decay = at_least_fp32(log_decay)
        if read is not None and write is not None:
            read, write = at_least_fp32(read), at_least_fp32(write)
        if state is None:
            batch, _, heads, size = query.shape
            state = query.new_zeros(batch, heads, size, value.shape[3])
        if query.shape[1] == 1:
            return _matrix_step(query, key, value, log_decay, read, write, state)
        return _matrix_chunks(query, key, value, log_decay, read, write, state, documents, chunk)


def _matrix_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    read: torch.Tensor | None,
    write: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence for one token."""
    decay = log_decay[:, 0].exp()
    new = state * (decay[..., None, None] if decay.ndim == 2 else decay[..., None])
    if read is not None and write is not None:
        seen = torch.einsum("bhk,bhkv->bhv", read[:, 0], state)
        new = new + write[:, 0, :, :, None] * seen[:, :, None]
    new = new + key[:, 0, :, :, None] * value[:, 0, :, None]
    return torch.einsum("bhk,bhkv->bhv", query[:, 0], new)[:, None], new


class _Chunks:
    """Splits (batch, time, heads, ...) into (batch, heads, chunks, chunk, ...), and decays between tokens."""

    def __init__(self, log_decay: torch.Tensor, documents: torch.Tensor | None, chunk: int) -> None:
        self.time = log_decay.shape[1]
        self.chunk = min(chunk, self.time)
        log_decay = self.split(log_decay)
        self.by_row = log_decay.ndim == 5  # one decay per row of the state
        self.total = log_decay.cumsum(dim=3)  # log decay from before the chunk through each token
        self.until = self.total - log_decay  # the same, excluding the token itself
        ones = torch.ones(self.chunk, self.chunk, dtype=torch.bool, device=log_decay.device)
        self.visible = ones.tril()
        self.from_before = self.to_end = self.whole = None
        if documents is not None:
            documents = self.split(documents[:, :, None], of_padding=documents[:, -1:, None])
            last = documents[..., -1:]
            previous = torch.cat([documents[:, :, :1, :1], last[:, :, :-1]], dim=2)
            self.visible = (documents[..., None] == documents[..., None, :]) & self.visible
            self.from_before, self.to_end = documents == previous, documents == last
            self.whole = previous == last

    def split(self, x: torch.Tensor, of_padding: torch.Tensor | None = None) -> torch.Tensor:
        missing = -self.time % self.chunk
        if missing:
            tail = torch.zeros_like(x[:, :1]) if of_padding is None else of_padding
            x = torch.cat([x, tail.expand(-1, missing, *x.shape[2:])], dim=1)
        return x.reshape(x.shape[0], -1, self.chunk, *x.shape[2:]).movedim(3, 1)

    def join(self, x: torch.Tensor) -> torch.Tensor:
        return x.movedim(1, 3).flatten(1, 2)[:, : self.time]

    def within(
        self, left: torch.Tensor, right: torch.Tensor, *, strictly: bool = False
    ) -> torch.Tensor:
        """left_i^T diag(the decay from j to i) right_j for j <= i; `strictly`: to i - 1, for j < i."""
        total = self.until if strictly else self.total
        visible = self.visible.tril(-1) if strictly else self.visible
        if self.by_row:
            scores = (left * total.exp()) @ (right * (-self.total).exp()).mT
            return scores.masked_fill(~visible, 0)
        # Mask before exp: differences of invisible pairs are positive and could overflow.
        decay = (total[..., :, None] - self.total[..., None, :]).masked_fill(~visible, -torch.inf)
        return left @ right.mT * decay.exp()

    def since_before(self, left: torch.Tensor, *, strictly: bool = False) -> torch.Tensor:
        """left_i^T diag(the decay from before the chunk to i)."""
        return self._decayed(left, self.until if strictly else self.total, self.from_before)

    def until_end(self, right: torch.Tensor) -> torch.Tensor:
        """diag(the decay from j to the end of the chunk) right_j."""
        last = self.total[:, :, :, -1:]
        return self._decayed(right, last - self.total, self.to_end)

    def of_state(self) -> torch.Tensor:
        """(batch, heads, chunks, K or 1, 1): the decay over each chunk."""
        decay = self.total[:, :, :, -1].exp()
        decay = decay[..., None] if self.by_row else decay[..., None, None]
        return decay if self.whole is None else decay * self.whole[..., None]

    def _decayed(
        self, x: torch.Tensor, log_decay: torch.Tensor, same: torch.Tensor | None
    ) -> torch.Tensor:
        decay = log_decay.exp() if self.by_row else log_decay.exp()[..., None]
        return x * (decay if same is None else decay * same[..., None])


def _matrix_chunks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    read: torch.Tensor | None,
    write: torch.Tensor | None,
    state: torch.Tensor,
    documents: torch.Tensor | None,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every chunk at once, but for the loop that hands the state on.

    In a chunk with the state S before it, what the tokens read is seen = X S + Y: a triangular system,
    since a token reads what the tokens before it have written.
    """
    chunks = _Chunks(log_decay, documents, chunk)
    query, key, value = chunks.split(query), chunks.split(key), chunks.split(value)
    gained = chunks.until_end(key).mT @ value
    decay = chunks.of_state()
    delta = read is not None and write is not None
    if read is not None and write is not None:
        read, write = chunks.split(read), chunks.split(write)
        known = chunks.within(read, key, strictly=True) @ value
        right = torch.cat([chunks.since_before(read, strictly=True), known], dim=-1)
        mixed = -chunks.within(read, write, strictly=True)
        solved = torch.linalg.solve_triangular(mixed, right, upper=False, unitriangular=True)
        from_state, from_tokens = solved.split([read.shape[-1], value.shape[-1]], dim=-1)
        written = chunks.until_end(write).mT
    states, all_seen = [], []
    for index in range(query.shape[2]):
        states.append(state)
        state = torch.addcmul(gained[:, :, index], decay[:, :, index], state)
        if delta:
            seen = from_tokens[:, :, index] + from_state[:, :, index] @ states[-1]
            state = state + written[:, :, index] @ seen
            all_seen.append(seen)
    output = chunks.since_before(query) @ torch.stack(states, dim=2)
    output = output + chunks.within(query, key) @ value
    if write is not None and delta:
        output = output + chunks.within(query, write) @ torch.stack(all_seen, dim=2)
    return chunks.join(output), state
