"""The linear recurrence of a matrix per head, updated by outer products and by reads of itself.

The sums over a chunk of tokens are matrix products, and so are their gradients, which are written by
hand: autograd over the same formulas takes twice the time, for the decays between all pairs of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from common.models.mixers.base import at_least_fp32

_CHUNK = 32  # tokens; the fastest of 16 to 128 for heads of 64


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
    """S = diag(exp(log_decay_t)) S_{t-1}; S_t = S + write_t (read_t^T S) + key_t value_t^T; o_t = query_t^T S_t.

    Without `read` and `write` this is linear attention with decay (RetNet, Mamba-2, GLA, mLSTM); with
    read = key and write = -beta * key the gated delta rule (Yang et al. 2024, "Gated Delta Networks",
    eq. 10). Computed chunk by chunk: within a chunk as masked matrix products, from chunk to chunk by
    the state (Dao and Gu 2024, "Transformers are SSMs", section 6; Yang et al. 2024, "Parallelizing
    Linear Transformers with the Delta Rule", section 3).

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
    query, key, value, log_decay = map(at_least_fp32, (query, key, value, log_decay))
    if read is not None and write is not None:
        read, write = at_least_fp32(read), at_least_fp32(write)
    batch, time, heads, size = query.shape
    if state is None:
        state = query.new_zeros(batch, heads, size, value.shape[3])
    if time == 1:
        return _matrix_step(query, key, value, log_decay, read, write, state)
    if log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    with torch.autocast(value.device.type, enabled=False):
        results: tuple[torch.Tensor, ...] = _matrix_chunks(
            query, key, value, log_decay, read, write, state, documents, min(chunk, time)
        )
    return results[0], results[1]


def matrix_scan_flops(
    num_heads: int, key_size: int, value_size: int, *, reads: bool = False
) -> int:
    """FLOPs of the recurrence per token: 2 K V for each outer product and for each product with S."""
    return (8 if reads else 4) * num_heads * key_size * value_size


def _matrix_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    read: torch.Tensor | None,
    write: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence for one token, without matrix products: autocast leaves it alone."""
    decay = log_decay[:, 0, :, :, None] if log_decay.ndim == 4 else log_decay[:, 0, :, None, None]
    new = state * decay.exp()
    if read is not None and write is not None:
        seen = (read[:, 0, :, :, None] * new).sum(dim=2, keepdim=True)
        new = torch.addcmul(new, write[:, 0, :, :, None], seen)
    new = torch.addcmul(new, key[:, 0, :, :, None], value[:, 0, :, None])
    return (query[:, 0, :, :, None] * new).sum(dim=2)[:, None], new


class _Chunks:
    """The decays between tokens of a chunk, and between them and the states at its ends.

    Tensors in chunks are (batch, heads, chunks, parts, chunk, ...): the first part belongs to query and
    key, the second, if any, to read and write.
    """

    def __init__(
        self,
        log_decay: torch.Tensor,
        documents: torch.Tensor | None,
        chunk: int,
        between: torch.Tensor | None = None,
    ) -> None:
        self.time, self.chunk = log_decay.shape[1], chunk
        self.by_row = log_decay.shape[3] > 1  # one decay per row of the state
        # From before the chunk through each token, (batch, heads, chunks, 1, chunk, K or 1).
        self.total = self.split([log_decay]).cumsum(dim=4)
        last = self.total[..., -1:, :]
        self.left_factor = self.since_start = self.total.exp()
        self.until_end = (last - self.total).exp()
        self.whole = last.squeeze(3).exp().mT  # (batch, heads, chunks, K or 1, 1)
        ones = torch.ones(chunk, chunk, dtype=torch.bool, device=log_decay.device)
        self.attended = ones.tril()  # by row i, column j
        if documents is not None:
            missing = -self.time % chunk
            documents = torch.cat([documents, documents[:, -1:].expand(-1, missing)], dim=1)
            documents = documents.view(len(documents), 1, -1, chunk)
            ends = documents[..., -1:]
            previous = torch.cat([documents[:, :, :1, :1], ends[:, :, :-1]], dim=2)
            same = documents[..., :, None] == documents[..., None, :]
            self.attended = (same & self.attended)[:, :, :, None, :, None]
            self.since_start = self.since_start * (documents == previous)[:, :, :, None, :, None]
            self.until_end = self.until_end * (documents == ends)[:, :, :, None, :, None]
            self.whole = self.whole * (ends == previous)[..., None]
        else:
            self.attended = self.attended[:, None]
        if self.by_row:
            self.right_factor = (-self.total).exp()
            self.between = self.total.new_empty(0)
        elif between is not None:
            self.between = between
        else:
            # Mask before exp: differences of other pairs are positive and could overflow.
            total = self.total.squeeze(5)[..., None, None]
            differences = total - total.movedim(4, 6)
            self.between = differences.masked_fill_(~self.attended, -torch.inf).exp_()

    def split(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """(batch, time, heads, size) each -> (batch, heads, chunks, parts, chunk, size), zeros at the end."""
        batch, _, heads, size = parts[0].shape
        complete, rest = divmod(self.time, self.chunk)
        shape = (batch, heads, complete + bool(rest), len(parts), self.chunk, size)
        chunks = parts[0].new_zeros(shape) if rest else parts[0].new_empty(shape)
        for index, part in enumerate(parts):
            if complete:
                whole = part[:, : complete * self.chunk]
                whole = whole.view(batch, complete, self.chunk, heads, size)
                chunks[:, :, :complete, index] = whole.permute(0, 3, 1, 2, 4)
            if rest:
                chunks[:, :, complete, index, :rest] = part[:, -rest:].transpose(1, 2)
        return chunks

    def join(self, chunks: torch.Tensor) -> torch.Tensor:
        """(batch, heads, chunks, chunk, size) -> (batch, time, heads, size)"""
        joined = chunks.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, : self.time]
        return joined.clone(
            memory_format=torch.contiguous_format
        )  # an operator may not return views

    def rows(self, left: torch.Tensor) -> torch.Tensor:
        return left * self.left_factor if self.by_row else left

    def since(self, left: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Decay from before the chunk; `rows` do already where no document ends."""
        same = self.by_row and self.since_start is self.left_factor
        return rows if same else left * self.since_start

    def columns(self, right: torch.Tensor) -> torch.Tensor:
        return right * self.right_factor if self.by_row else right

    def decayed_(self, scores: torch.Tensor) -> torch.Tensor:
        """Decay products of rows and columns from j to i, and mask those of j > i; a read: of j >= i.

        scores: (batch, heads, chunks, parts * chunk, parts * chunk).
        """
        sizes = (scores.shape[-1] // self.chunk, self.chunk)
        by_part = scores.view(*scores.shape[:3], *sizes, *sizes)  # ..., part, row, part, column
        if self.by_row:
            by_part.masked_fill_(~self.attended, 0)
        else:
            by_part.mul_(self.between)
        if sizes[0] > 1:
            by_part[:, :, :, 1].diagonal(dim1=3, dim2=5).zero_()
        return scores


def _flat(chunks: torch.Tensor) -> torch.Tensor:
    """(batch, heads, chunks, parts, chunk, size) -> (batch, heads, chunks, parts * chunk, size)"""
    return chunks.flatten(3, 4)


# An opaque operator: torch.compile would unroll the loop over chunks. All but the first two results are
# kept for the backward pass: the scores, the state before each chunk, what its tokens add (values, and
# what they read), the inverse of the triangular system of the reads, and the decays between tokens.
@torch.library.custom_op("research::matrix_scan", mutates_args=())
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
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]:
    """Every chunk at once, except for the loop that hands the state on.

    In a chunk with the state S before it, the tokens read U = A S + M V + W U: a token also reads what the
    tokens before it wrote, so that W is strictly lower triangular.
    """
    chunks = _Chunks(log_decay, documents, chunk)
    left = chunks.split([query] if read is None else [query, read])
    right = chunks.split([key] if write is None else [key, write])
    rows = chunks.rows(left)
    scores = chunks.decayed_(_flat(rows) @ _flat(chunks.columns(right)).mT)
    added = chunks.split([value] if read is None else [value, value])
    left, right = chunks.since(left, rows), right * chunks.until_end
    gained = right[:, :, :, 0].mT @ added[:, :, :, 0]
    states = torch.empty_like(gained)
    inverse = known = scores.new_empty(0, 0)
    if read is not None:
        known = scores[..., chunk:, :chunk] @ added[:, :, :, 0]
        identity = torch.eye(chunk, dtype=scores.dtype, device=scores.device)
        inverse = torch.linalg.solve_triangular(
            -scores[..., chunk:, chunk:],
            identity.expand(*states.shape[:3], -1, -1),
            upper=False,
            unitriangular=True,
        )
    for index in range(states.shape[2]):
        states[:, :, index] = state
        state = torch.addcmul(gained[:, :, index], chunks.whole[:, :, index], state)
        if read is not None:
            seen = known[:, :, index] + left[:, :, index, 1] @ states[:, :, index]
            seen = inverse[:, :, index] @ seen
            added[:, :, index, 1] = seen
            state = state + right[:, :, index, 1].mT @ seen
    output = left[:, :, :, 0] @ states + scores[..., :chunk, :] @ _flat(added)
    final = state.contiguous()
    return chunks.join(output), final, scores, states, added, inverse, chunks.between


@_matrix_chunks.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    read: torch.Tensor | None,
    write: torch.Tensor | None,
    state: torch.Tensor,
    documents: torch.Tensor | None,
    chunk: int,
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]:
    batch, time, heads, size = value.shape
    leading = (batch, heads, -(-time // chunk))
    parts = 1 if read is None else 2
    inverse = (0, 0) if read is None else (*leading, chunk, chunk)
    between = (0,) if log_decay.shape[3] > 1 else (*leading, 1, chunk, 1, chunk)
    return (
        value.new_empty(value.shape),
        state.new_empty(state.shape),
        value.new_empty(*leading, parts * chunk, parts * chunk),
        value.new_empty(*leading, query.shape[3], size),
        value.new_empty(*leading, parts, chunk, size),
        value.new_empty(inverse).mT,  # as LAPACK returns it
        value.new_empty(between),
    )


@torch.library.custom_op("research::matrix_scan_backward", mutates_args=())
def _matrix_chunks_backward(
    query: torch.Tensor,
    key: torch.Tensor,
    log_decay: torch.Tensor,
    read: torch.Tensor | None,
    write: torch.Tensor | None,
    documents: torch.Tensor | None,
    scores: torch.Tensor,
    states: torch.Tensor,
    added: torch.Tensor,
    inverse: torch.Tensor,
    between: torch.Tensor,
    to_output: torch.Tensor,
    to_state: torch.Tensor,
    chunk: int,
) -> list[torch.Tensor]:
    """Gradients of query, key, value, log_decay, state and, if there are any, read and write.

    The reads' gradient solves the transposed system; with it the reads are rows like the queries. A
    decay's gradient follows from those of the rows and columns that it scales: the sum over all later
    tokens of row times gradient minus column times gradient.
    """
    chunks = _Chunks(log_decay, documents, chunk, between)
    left = chunks.split([query] if read is None else [query, read])
    right = chunks.split([key] if write is None else [key, write])
    rows = chunks.rows(left)
    left_decayed, right_decayed = chunks.since(left, rows), right * chunks.until_end
    to_rows = chunks.split([to_output] if read is None else [to_output, to_output])
    gained = left_decayed[:, :, :, 0].mT @ to_rows[:, :, :, 0]
    wanted = scores[..., :chunk, chunk:].mT @ to_rows[:, :, :, 0] if read is not None else gained
    to_states = torch.empty_like(states)  # of the state after each chunk
    for index in reversed(range(states.shape[2])):
        to_states[:, :, index] = to_state
        to_state = torch.addcmul(gained[:, :, index], chunks.whole[:, :, index], to_state)
        if read is not None:
            seen = wanted[:, :, index] + right_decayed[:, :, index, 1] @ to_states[:, :, index]
            seen = inverse[:, :, index].mT @ seen
            to_rows[:, :, index, 1] = seen
            to_state = to_state + left_decayed[:, :, index, 1].mT @ seen
    to_value = scores[..., :chunk].mT @ _flat(to_rows) + right_decayed[:, :, :, 0] @ to_states
    to_scores = chunks.decayed_(_flat(to_rows) @ _flat(added).mT)
    to_left = chunks.rows((to_scores @ _flat(chunks.columns(right))).view_as(left))
    to_right = chunks.columns((to_scores.mT @ _flat(rows)).view_as(right))
    from_end = (_flat(added) @ to_states.mT).view_as(right).mul_(chunks.until_end)
    to_left.addcmul_((_flat(to_rows) @ states.mT).view_as(left), chunks.since_start)
    to_right += from_end

    to_total = (left * to_left).sub_(right * to_right).sum(dim=3)
    to_last = (right * from_end).sum(dim=(3, 4)) + (chunks.whole * to_states * states).sum(dim=4)
    if not chunks.by_row:
        to_total, to_last = to_total.sum(4, keepdim=True), to_last.sum(3, keepdim=True)
    to_total[:, :, :, -1] += to_last
    to_log_decay = to_total.flip(3).cumsum(dim=3).flip(3)
    gradients = [to_left[:, :, :, 0], to_right[:, :, :, 0], to_value, to_log_decay]
    if read is not None:
        gradients += [to_left[:, :, :, 1], to_right[:, :, :, 1]]
    joined = [chunks.join(gradient) for gradient in gradients]
    return [*joined[:4], to_state.contiguous(), *joined[4:]]


@_matrix_chunks_backward.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    log_decay: torch.Tensor,
    read: torch.Tensor | None,
    write: torch.Tensor | None,
    documents: torch.Tensor | None,
    scores: torch.Tensor,
    states: torch.Tensor,
    added: torch.Tensor,
    inverse: torch.Tensor,
    between: torch.Tensor,
    to_output: torch.Tensor,
    to_state: torch.Tensor,
    chunk: int,
) -> list[torch.Tensor]:
    like = [query, key, to_output, log_decay, to_state]
    like += [] if read is None or write is None else [read, write]
    return [x.new_empty(x.shape) for x in like]


def _keep_for_backward(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[torch.Tensor, ...],
    output: tuple[torch.Tensor, ...],
) -> None:
    query, key, _, log_decay, read, write, _, documents, chunk = inputs
    kept = (query, key, log_decay, read, write, documents)
    ctx.save_for_backward(*kept, *output[2:])
    ctx.chunk = chunk  # type: ignore[attr-defined]  # FunctionCtx takes any attribute


def _chunks_backward(
    ctx: torch.autograd.function.FunctionCtx,
    to_output: torch.Tensor,
    to_state: torch.Tensor,
    *_: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    saved = ctx.saved_tensors  # type: ignore[attr-defined]  # FunctionCtx is typed without it
    with torch.autocast(to_output.device.type, enabled=False):
        gradients = _matrix_chunks_backward(*saved, to_output, to_state, ctx.chunk)  # type: ignore[attr-defined]  # as above
    query, key, value, log_decay, state, *of_reads = gradients
    read, write = of_reads or (None, None)
    return query, key, value, log_decay, read, write, state, None, None


_matrix_chunks.register_autograd(_chunks_backward, setup_context=_keep_for_backward)
