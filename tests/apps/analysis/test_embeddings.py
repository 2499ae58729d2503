"""PCA against the eigenvectors of the covariance, neighbours against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from apps.analysis.embeddings import embedding_table, neighbours, project
from common.errors import ModelError
from common.models import Decoder
from projects.custom_transformer.model import CustomTransformer
from projects.speedrun.model import NeuralNGram

VECTORS = np.random.default_rng(3).normal(size=(40, 6)) * [5, 3, 1, 1, 0.5, 0.1] + 7


def test_the_axes_are_the_leading_eigenvectors_of_the_covariance() -> None:
    found = project(VECTORS)
    values, axes = np.linalg.eigh(np.cov(VECTORS.T))
    for column, axis in enumerate((axes[:, -1], axes[:, -2])):
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        expected = (VECTORS - VECTORS.mean(axis=0)) @ axis
        np.testing.assert_allclose(found.points[:, column], expected, atol=1e-9)
    np.testing.assert_allclose(found.explained, values[::-1][:2] / values.sum(), atol=1e-12)


def test_the_signs_do_not_depend_on_the_order_of_the_vectors() -> None:
    order = np.random.default_rng(0).permutation(len(VECTORS))
    np.testing.assert_allclose(
        project(VECTORS[order]).points, project(VECTORS).points[order], atol=1e-9
    )


def test_vectors_that_are_all_the_same_lie_in_one_place() -> None:
    found = project(np.ones((4, 3)))
    assert (found.points == 0).all() and (found.explained == 0).all()
    with pytest.raises(ModelError, match="need at least two"):
        project(np.ones((4, 1)))


def test_neighbours_by_cosine() -> None:
    vectors = VECTORS.copy()
    vectors[5] = 0
    order, cosines = neighbours(vectors, 2, 40)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        norms = math.hypot(*a) * math.hypot(*b)
        return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0

    expected = {i: cosine(vectors[2], v) for i, v in enumerate(vectors) if i != 2}
    assert order.tolist() == sorted(expected, key=lambda i: -expected[i])
    assert cosines == pytest.approx([expected[i] for i in order])
    assert len(neighbours(vectors, 2, 3)[0]) == 3
    assert (neighbours(vectors, 5, 3)[1] == 0).all()


def test_the_table_of_every_model_that_has_one() -> None:
    decoder = Decoder(11, hidden_size=8, num_heads=2, num_layers=1)
    assert np.array_equal(
        embedding_table(decoder), decoder.token_embedding.weight.detach().double()
    )
    custom = CustomTransformer(11, num_layers=1, num_heads=2, hidden_size=8, context_length=16)
    table = embedding_table(custom)
    assert table.shape == (11, 8) and table.dtype == np.float64
    table += 1  # a copy: the model stays as it is
    assert not torch.equal(custom.token_embedding.double(), torch.from_numpy(table))
    with pytest.raises(ModelError, match="NeuralNGram has no `token_embedding`"):
        embedding_table(NeuralNGram(11, hidden_size=8, intermediate_size=8))
