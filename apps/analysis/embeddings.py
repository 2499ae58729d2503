"""The vectors that stand for tokens: the directions in which they differ most, and their neighbours."""

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
    """Points in the plane of the two largest principal components."""

    points: Floats  # (vectors, 2)
    explained: Floats  # (2,) share of the variance along each axis


def embedding_table(model: BaseLanguageModel) -> Floats:
    """The embedding of every token, (vocab_size, hidden_size) float64.

    Raises ModelError for a model that has no such table under the name `token_embedding`.
    """
    table = getattr(model, "token_embedding", None)
    weight = table.weight if isinstance(table, nn.Embedding) else table
    if not isinstance(weight, torch.Tensor) or weight.shape[:1] != (model.vocab_size,):
        raise ModelError(
            f"{type(model).__name__} has no `token_embedding` with one vector per token",
            "name it so in the model, as an nn.Embedding or a (vocab_size, hidden_size) parameter",
        )
    return weight.detach().cpu().to(torch.float64, copy=True).numpy()


def project(vectors: Floats) -> Projection:
    """Principal component analysis of (vectors, size) by the SVD of the centred matrix (Jolliffe
    2002, section 3.5).

    An SVD leaves the sign of an axis open; here the largest of its coefficients is positive, so that
    the same vectors give the same picture everywhere. Raises ModelError for fewer than two vectors
    or dimensions.
    """
    if min(vectors.shape) < 2:
        raise ModelError(f"a plane needs two vectors of two numbers at least, got {vectors.shape}")
    centred = vectors - vectors.mean(axis=0)
    left, singular, axes = np.linalg.svd(centred, full_matrices=False)
    largest = np.abs(axes[:2]).argmax(axis=1)
    signs = np.where(axes[[0, 1], largest] < 0, -1.0, 1.0)
    variance = singular**2
    total = variance.sum()
    explained = variance[:2] / total if total > 0 else np.zeros(2)
    return Projection(left[:, :2] * singular[:2] * signs, explained)


def neighbours(vectors: Floats, index: int, top: int) -> tuple[Counts, Floats]:
    """The `top` vectors with the largest cosine to vector `index`, itself left out, and the cosines.

    A vector of zeros has no direction: its cosine is 0.
    """
    norms = np.linalg.norm(vectors, axis=1)
    safe = np.where(norms > 0, norms, 1)
    cosines = (vectors @ vectors[index]) / (safe * safe[index])
    order = np.argsort(-cosines, kind="stable")
    order = order[order != index][:top]
    return order, cosines[order]
