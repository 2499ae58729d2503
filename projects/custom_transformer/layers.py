"""Hand-written forward and backward of every layer, without autograd.

Notation: x is a layer's input, y its output, dx means dL/dx for the scalar loss L. Tokens are rows:
n = batch x time tokens, c = hidden size, h heads of d = c / h, v words. A linear map y = x W^T has

    dx = dy W        dW = dy^T x                                                       (1)

because dL/dx_i = sum_j dL/dy_j W_ji and dL/dW_ji = sum over rows of dy_j x_i.

Inputs of the backward pass are saved by the forward pass or, if cheap, recomputed: normalised
inputs, squared activations and attention weights are never saved.
"""

from __future__ import annotations

import math

import torch

Tensor = torch.Tensor
EPSILON = 1e-6
CHUNK_LOGITS = 1 << 21  # logits that exist at once in the loss (8 MB in fp32)


# Embedding: x_i = E[token_i] + P[position_i]


def embedding_forward(input_ids: Tensor, tokens: Tensor, positions: Tensor, start: int) -> Tensor:
    """input_ids (batch, time) int64, E (v, c), P (context, c) -> x (n, c); `start` is the first position."""
    batch, time = input_ids.shape
    x = tokens[input_ids.flatten()].view(batch, time, -1)
    x += positions[start : start + time]
    return x.view(batch * time, -1)


def embedding_backward(dx: Tensor, input_ids: Tensor, dtokens: Tensor, dpositions: Tensor) -> None:
    """Add to dE (v, c) and dP (context, c) the gradients of each row's uses."""
    batch, time = input_ids.shape
    dtokens.index_add_(0, input_ids.flatten(), dx)
    dpositions[:time] += dx.view(batch, time, -1).sum(dim=0)


# RMSNorm (Zhang and Sennrich 2019, eq. 4): y = g * x * r,  r = (mean(x^2) + eps)^(-1/2)


def rms_norm_forward(x: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """x (n, c), g (c) -> y (n, c) and r (n, 1)"""
    inverse_rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    inverse_rms = inverse_rms.div_(x.shape[-1]).add_(EPSILON).rsqrt_()
    return (x * inverse_rms).mul_(gain), inverse_rms


def rms_norm_backward(
    dy: Tensor, x: Tensor, gain: Tensor, inverse_rms: Tensor
) -> tuple[Tensor, Tensor]:
    """dy (n, c) -> dx (n, c) and dg (c). Overwrites dy.

    With z = x r, dg = sum over rows of dy * z. With u = g * dy, which is what reaches z, and
    dr/dx_k = -r^3 x_k / c,

        dx = r u + (sum_j u_j x_j) dr/dx = r (u - z (u . z) / c)
    """
    z = x * inverse_rms
    product = dy * z
    dgain = product.sum(dim=0)
    projection = torch.mv(product, gain).div_(-x.shape[-1])[:, None]  # -(u . z) / c
    return dy.mul_(gain).addcmul_(z, projection).mul_(inverse_rms), dgain


# Attention (Vaswani et al. 2017, eq. 1), causal: P = softmax(Q K^T / sqrt(d)),  O = P V


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """Q (b h, t, d), K (b h, s, d) -> P (b h, t, s); query i sees the first s - t + i + 1 keys."""
    time, seen = query.shape[1], key.shape[1]
    future = torch.full((time, seen), -math.inf, dtype=query.dtype, device=query.device)
    scores = torch.baddbmm(
        future.triu_(seen - time + 1), query, key.transpose(1, 2), alpha=query.shape[2] ** -0.5
    )
    return torch.softmax(scores, dim=-1)


def attention_forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """-> O (b h, t, d)"""
    return torch.bmm(attention_weights(query, key), value)


def attention_backward(
    doutput: Tensor, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dO (b h, t, d) -> dQ, dK, dV. P is recomputed rather than saved.

    O = P V gives dV = P^T dO and dP = dO V^T. A row p = softmax(s) has dp_i/ds_j = p_i (1[i=j] - p_j):

        dS_ij = P_ij (dP_ij - sum_k dP_ik P_ik)

    and S = Q K^T / sqrt(d) gives dQ = dS K / sqrt(d), dK = dS^T Q / sqrt(d). Hidden scores have
    P = 0, so their dS is 0.
    """
    weights = attention_weights(query, key)
    dvalue = torch.bmm(weights.transpose(1, 2), doutput)
    dscores = torch.bmm(doutput, value.transpose(1, 2)).mul_(weights)
    # sum_k dP_ik P_ik is the row sum of dscores here.
    dscores.addcmul_(weights, dscores.sum(dim=-1, keepdim=True), value=-1)
    dscores.mul_(query.shape[2] ** -0.5)
    return torch.bmm(dscores, key), torch.bmm(dscores.transpose(1, 2), query), dvalue


def split_heads(x: Tensor, batch: int, heads: int, parts: int = 3) -> Tensor:
    """(n, parts c) -> (parts, b h, t, d): Q, K and V stacked, or with 1 part the outputs O"""
    time, size = x.shape[0] // batch, x.shape[1] // (parts * heads)
    apart = x.view(batch, time, parts, heads, size).permute(2, 0, 3, 1, 4)
    return apart.reshape(parts, batch * heads, time, size)


def join_heads(heads_apart: Tensor, batch: int) -> Tensor:
    """(parts, b h, t, d) -> (n, parts c): the inverse of `split_heads`"""
    parts, rows, time, size = heads_apart.shape
    heads = rows // batch
    apart = heads_apart.view(parts, batch, heads, time, size).permute(1, 3, 0, 2, 4)
    return apart.reshape(batch * time, parts * heads * size)


# MLP with squared ReLU (So et al. 2021, "Primer"): y = a W2^T,  a = z^2,  z = max(0, x W1^T)


def mlp_forward(x: Tensor, weight1: Tensor, weight2: Tensor) -> tuple[Tensor, Tensor]:
    """x (n, c), W1 (4c, c), W2 (c, 4c) -> y (n, c) and z (n, 4c)"""
    z = torch.mm(x, weight1.t()).relu_()
    return torch.mm(z.square(), weight2.t()), z


def mlp_backward(
    dy: Tensor, x: Tensor, z: Tensor, weight1: Tensor, weight2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dy (n, c) -> dx, dW1, dW2.

    da = dy W2 by (1). a = max(0, u)^2 has da/du = 2 max(0, u) = 2 z, so du = 2 z da: where u < 0 it
    is 0 of itself, and u need not be kept.
    """
    dweight2 = torch.mm(dy.t(), z.square())
    du = torch.mm(dy, weight2).mul_(z).mul_(2)
    return torch.mm(du, weight1), torch.mm(du.t(), x), dweight2


# Softmax cross-entropy on logits X E^T, with the embedding E as output matrix (tied)


def cross_entropy(x: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
    """Sum over rows of -log softmax(x E^T)[target]: x (n, c), E (v, c), targets (n) -> scalar"""
    total = x.new_zeros(())
    for start, end in _chunks(len(x), len(tokens)):
        logits = torch.mm(x[start:end], tokens.t())
        chosen = logits.gather(1, targets[start:end, None])
        total += (logits.logsumexp(dim=1, keepdim=True) - chosen).sum()
    return total


def cross_entropy_with_gradients(
    x: Tensor, tokens: Tensor, targets: Tensor, dtokens: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of `cross_entropy` and its gradient dx (n, c); adds to dE (v, c).

    With l = x E^T and p = softmax(l), L = log sum_k exp(l_k) - l_target has dL/dl_k = p_k - 1[k =
    target]; (1) turns that into dx and dE. Computed by chunks in the forward pass: the logits of a
    chunk give loss and gradient and are freed, so (n, v) logits never exist.
    """
    total, dx = x.new_zeros(()), torch.empty_like(x)
    for start, end in _chunks(len(x), len(tokens)):
        logits = torch.mm(x[start:end], tokens.t())
        index = targets[start:end, None]
        chosen = logits.gather(1, index)
        log_sum = logits.logsumexp(dim=1, keepdim=True)
        total += (log_sum - chosen).sum()
        dlogits = logits.sub_(log_sum).exp_()
        dlogits.scatter_add_(1, index, torch.full_like(chosen, -1))
        torch.mm(dlogits, tokens, out=dx[start:end])
        dtokens.addmm_(dlogits.t(), x[start:end])
    return total, dx


def _chunks(rows: int, words: int) -> list[tuple[int, int]]:
    size = max(1, CHUNK_LOGITS // words)
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]
