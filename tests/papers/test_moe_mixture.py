"""The data and the layer of Chen et al. 2022, against their description and an independent computation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from papers.moe_mixture_of_classification import mixture
from papers.moe_mixture_of_classification.mixture import (
    CLUSTERS,
    PATCHES,
    SCALE,
    SIZE,
    Mixture,
    dispatch_entropy,
    make_data,
    normalized_step,
    train,
)
from papers.moe_mixture_of_classification.reproduce import BASE, SETTINGS, VARIANTS

CONFIG: dict[str, Any] = BASE | SETTINGS[0]


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any]:
    return make_data(CONFIG | {"points": 2000}, torch.Generator().manual_seed(0))


def directions(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Features and centres (4, 50), found again from the points alone.

    The centre is what a cluster's patches have in the mean, the feature what they have in the mean
    after multiplying by the sign of the label.
    """
    patches, labels = data.patches.double().numpy(), data.labels.numpy()
    clusters = data.clusters.numpy()
    centres, features = [], []
    for cluster in range(CLUSTERS):
        mine = clusters == cluster
        mean = patches[mine].sum(axis=1).mean(axis=0)
        centres.append(mean / np.linalg.norm(mean))
        signed = (2 * labels[mine] - 1)[:, None] * patches[mine].sum(axis=1)
        mean = signed.mean(axis=0)
        features.append(mean / np.linalg.norm(mean))
    return np.array(features), np.array(centres)


def test_points_have_the_four_patches_of_the_paper(data: tuple[Any, Any]) -> None:
    training, test = data
    assert training.patches.shape == test.patches.shape == (2000, PATCHES, SIZE)
    features, centres = directions(training)
    both = np.concatenate([features, centres])
    np.testing.assert_allclose(both @ both.T, np.eye(2 * CLUSTERS), atol=0.1)  # 500 points each
    # The test split has the same directions.
    assert (np.sum(features * directions(test)[0], axis=1) > 0.98).all()


def test_lengths_and_places_of_the_patches(data: tuple[Any, Any]) -> None:
    config = CONFIG | {"points": 2000, "noise": 1e-6}  # what is not a direction vanishes
    made, _ = make_data(config, torch.Generator().manual_seed(1))
    patches = made.patches.double().numpy() / SCALE
    _, vectors = np.linalg.eigh(np.einsum("npi,npj->ij", patches, patches))
    assert np.linalg.matrix_rank(patches.reshape(-1, SIZE), tol=1e-2) == 2 * CLUSTERS
    span = vectors[:, -2 * CLUSTERS :]
    inside = np.linalg.norm(patches @ span, axis=2)
    lengths = np.sort(inside, axis=1)
    assert (lengths[:, 0] < 1e-4).all() and (lengths[:, 1] >= 0.5).all()  # one patch is noise
    assert lengths.max() <= 3.0001
    # The places are mixed: each holds the noise of a quarter of the points.
    places = np.bincount(inside.argmin(axis=1), minlength=PATCHES) / len(patches)
    np.testing.assert_allclose(places, 0.25, atol=0.05)


def test_the_feature_of_the_own_cluster_has_the_sign_of_the_label(data: tuple[Any, Any]) -> None:
    config = CONFIG | {"points": 4000, "noise": 1e-6}
    made, _ = make_data(config, torch.Generator().manual_seed(2))
    features, _ = directions(made)
    along = np.einsum("npi,ni->np", made.patches.double().numpy() / SCALE, features[made.clusters])
    strongest = np.take_along_axis(along, np.abs(along).argmax(axis=1)[:, None], axis=1)[:, 0]
    signs = 2 * made.labels.numpy() - 1
    assert (np.sign(strongest) == signs).all()
    alphas = np.abs(strongest)
    assert abs(alphas.mean() - 1.25) < 0.05 and alphas.min() > 0.4 and alphas.max() < 2.1


def test_noise_has_the_length_that_the_setting_says() -> None:
    for setting in SETTINGS[:2]:
        config = BASE | setting | {"points": 2000, "gamma_max": 0.5001}
        made, _ = make_data(config, torch.Generator().manual_seed(0))
        square = made.patches.double().square().sum(dim=(1, 2)) / SCALE**2
        # alpha^2, beta^2 and gamma^2 in the mean: 1.75, 7/3 and 0.25.
        assert float(square.mean()) - 1.75 - 7 / 3 - 0.25 == pytest.approx(
            setting["noise"] ** 2, abs=0.12
        )


@pytest.mark.parametrize("nonlinear", [True, False])
def test_the_layer_equals_one_written_point_by_point(nonlinear: bool) -> None:
    torch.manual_seed(0)
    model = Mixture(experts=3, filters=4, nonlinear=nonlinear).double()
    torch.nn.init.normal_(model.router, std=0.3)
    for parameter in model.experts.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    patches = torch.randn(20, PATCHES, SIZE, dtype=torch.float64)
    torch.manual_seed(7)
    probabilities, chosen = model(patches)
    torch.manual_seed(7)
    noise = torch.rand(20, 3, dtype=torch.float64)
    for point in range(20):
        scores = [
            float(patches[point].sum(0) @ model.router.detach()[:, m] + noise[point, m])
            for m in range(3)
        ]
        expert = int(np.argmax(scores))
        assert int(chosen[point]) == expert
        weight, bias = (p.detach().numpy() for p in model.experts[expert].parameters())
        activations = patches[point].numpy() @ weight.T + bias
        activations = activations**3 if nonlinear else activations
        outputs = [
            scores[expert] * activations[:, half].sum() for half in (slice(0, 2), slice(2, 4))
        ]
        expected = 1 / (1 + math.exp(outputs[0] - outputs[1]))
        assert probabilities[point, 1].item() == pytest.approx(expected, abs=1e-12)


def test_a_normalized_step_has_the_length_of_the_rate_and_leaves_idle_experts_alone() -> None:
    torch.manual_seed(0)
    model = Mixture(experts=3, filters=4, nonlinear=True)
    before = [[p.detach().double().numpy().copy() for p in e.parameters()] for e in model.experts]
    gradients = [[torch.randn_like(p) for p in expert.parameters()] for expert in model.experts]
    gradients[1] = [torch.zeros_like(gradient) for gradient in gradients[1]]
    for expert, held in zip(model.experts, gradients, strict=True):
        for parameter, gradient in zip(expert.parameters(), held, strict=True):
            parameter.grad = gradient.clone()
    normalized_step(model.experts, rate=0.1)
    for index, expert in enumerate(model.experts):
        norm = sum(np.linalg.norm(g.double().numpy()) for g in gradients[index]) or 1.0
        for was, parameter, gradient in zip(
            before[index], expert.parameters(), gradients[index], strict=True
        ):
            expected = was - 0.1 * gradient.double().numpy() / norm
            np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=0, atol=1e-7)


def test_dispatch_entropy_is_that_of_clusters_given_experts() -> None:
    clusters = torch.arange(4).repeat(100)
    told_apart = clusters + 2
    assert dispatch_entropy(told_apart, clusters, 8) == 0
    assert dispatch_entropy(torch.zeros_like(clusters), clusters, 8) == pytest.approx(math.log(4))
    # Half of all points are sent alone, the other half to one expert for the other three clusters.
    halves = torch.where(clusters == 0, 0, 1)
    assert dispatch_entropy(halves, clusters, 8) == pytest.approx(0.75 * math.log(3))


def test_a_small_mixture_learns_and_is_the_same_for_the_same_seed() -> None:
    config = CONFIG | {"points": 1000, "epochs": 60, "expert": "nonlinear", "expert_rate": 3e-3}
    rows: list[int] = []
    results = train(config, 0, lambda metrics, epoch: rows.append(epoch))
    assert results["test_accuracy"] > 80 and results["epochs"] == 60
    assert rows == list(range(0, 60, 10))
    assert train(config, 0, lambda metrics, epoch: None) == results
    assert train(config, 1, lambda metrics, epoch: None) != results


def test_training_stops_at_the_floor_of_the_loss() -> None:
    config = CONFIG | {"points": 500, "epochs": 400, "expert": "nonlinear", "stop_loss": 0.7}
    assert train(config, 0, lambda metrics, epoch: None)["epochs"] < 20


def test_the_settings_are_those_of_the_table() -> None:
    assert list(VARIANTS) == [f"{k}-s{n}" for k in ("nonlinear", "linear") for n in (1, 2, 3, 4)]
    config, published = VARIANTS["linear-s4"]
    assert (config["noise"], config["gamma_max"], config["expert"]) == (2.0, 2.0, "linear")
    assert published == (93.30, 1.48)


@pytest.mark.parametrize(
    ("stop_loss", "expert_rate"),
    [(9.0, 1e-3), (0.0, 1e-3), (0.0, 0.3)],
    ids=["at no new lowest", "never", "at a leap"],
)
def test_a_training_ends_where_the_loss_stops_falling(
    monkeypatch: pytest.MonkeyPatch, stop_loss: float, expert_rate: float
) -> None:
    monkeypatch.setattr(mixture, "LOG_EVERY_EPOCHS", 1)
    config = CONFIG | {"points": 200, "epochs": 60, "expert": "nonlinear"}
    losses: list[float] = []
    results = train(
        config | {"stop_loss": stop_loss, "expert_rate": expert_rate},
        0,
        lambda metrics, epoch: losses.append(metrics["loss"]),
    )
    ends = [
        epoch
        for epoch in range(1, len(losses))
        if losses[epoch] > min(losses[:epoch])
        and (losses[epoch] <= stop_loss or losses[epoch] > min(losses[:epoch]) + 0.02)
    ]
    assert ends in ([], [len(losses) - 1])  # at the first such epoch
    assert results["epochs"] == len(losses) and (len(losses) == 60) == (ends == [])
    assert (ends == []) == (stop_loss == 0.0 and expert_rate == 1e-3)
