"""Token embeddings: principal components and nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from common.errors import ModelError
from common.models.base import BaseLanguageModel
from common.training.prediction_metrics import Counts, Floats


@dataclass(frozen=True)
class Projection:
    """Projection onto the two largest principal components."""

    points: Floats  # (vectors, 2)
    explained: Floats  # (2,) fraction of the variance along each axis


def embedding_table(model: BaseLanguageModel) -> Floats:
    """The embedding of every token, (vocab_size, hidden_size) float64.

    Raises ModelError for a model without a table named `token_embedding`.
    """
    table = getattr(model, "token_embedding", None)
    weight = table.weight if isinstance(table, nn.Embedding) else table
    if not isinstance(weight, torch.Tensor) or weight.shape[:1] != (model.vocab_size,):
        raise ModelError(
            f"{type(model).__name__} has no `token_embedding` with one vector per token",
            "add one to the model, as an nn.Embedding or a (vocab_size, hidden_size) parameter",
        )
    return weight.detach().cpu().to(torch.float64, copy=True).numpy()


def project(vectors: Floats) -> Projection:
    """Principal component analysis of (vectors, size) by the SVD of the centred matrix (Jolliffe
    2002, section 3.5).

    An SVD does not determine the sign of an axis; here the largest coefficient is positive, so that
    the same vectors always give the same result. Raises ModelError for fewer than two vectors or
    dimensions.
    """
    if min(vectors.shape) < 2:
        raise ModelError(f"need at least two vectors of two dimensions, got {vectors.shape}")
    centred = vectors - vectors.mean(axis=0)
    left, singular, axes = np.linalg.svd(centred, full_matrices=False)
    largest = np.abs(axes[:2]).argmax(axis=1)
    signs = np.where(axes[[0, 1], largest] < 0, -1.0, 1.0)
    variance = singular**2
    total = variance.sum()
    explained = variance[:2] / total if total > 0 else np.zeros(2)
    return Projection(left[:, :2] * singular[:2] * signs, explained)


def neighbours(vectors: Floats, index: int, top: int) -> tuple[Counts, Floats]:
    """Return the `top` vectors with the largest cosine similarity to vector `index`, excluding
    itself, and the cosines.

    The cosine of a zero vector is 0.
    """
    norms = np.linalg.norm(vectors, axis=1)
    safe = np.where(norms > 0, norms, 1)
    cosines = (vectors @ vectors[index]) / (safe * safe[index])
    order = np.argsort(-cosines, kind="stable")
    order = order[order != index][:top]
    return order, cosines[order]
