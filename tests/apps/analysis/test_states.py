"""States against a loop over the model, influences against autograd through that loop."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from apps.analysis.states import Influence, States, measure_states, state_tensors
from common.errors import DataError, ModelError, UsageError
from common.models import Decoder
from common.models.mixers.attention import KeyValueCache
from common.models.mixers.base import Mixer, Positions
from common.models.mixers.convolution import GatedConvolution
from common.models.mixers.state import Past, RecurrentState
from common.models.registry import MIXERS
from projects.custom_transformer.model import CustomTransformer

IDS = np.random.default_rng(0).integers(0, 11, 21)
CACHES = ("attention", "nope_attention", "local_attention", "latent_attention")
RECURRENT = [name for name in MIXERS if name not in CACHES]


def model_of(layers: str, **shape: Any) -> Decoder:
    torch.manual_seed(2)
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_size": 16, "context_length": 32}
    model = Decoder(11, layers=layers, **{**sizes, "positions": "none", **shape})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def loop(model: Decoder, embeddings: torch.Tensor) -> tuple[list[Any], torch.Tensor]:
    """States after the text, with their gradient, and the last hidden output: mixers and feed-forward layers
    token by token, attention over the whole text."""
    states = [mixer.new_state(1, embeddings.shape[1]) for mixer in model.mixers]
    x = embeddings
    for index, block in enumerate(model.blocks):
        normed = block.mixer_norm(x)  # type: ignore[operator]  # nn.Module
        if isinstance(states[index], KeyValueCache):
            mixed = model.mixers[index](normed, Positions())
        else:
            steps = [
                model.mixers[index](normed[:, t : t + 1], Positions(t), states[index])
                for t in range(x.shape[1])
            ]
            mixed = torch.cat(steps, dim=1)
        x = x + mixed
        if block.feedforward is not None:
            x = x + block.feedforward(block.feedforward_norm(x), Positions())  # type: ignore[operator]  # nn.Module
    return states, model.final_norm(x)[0, -1]


@pytest.mark.parametrize("name", RECURRENT)
@torch.no_grad()
def test_norms_and_changes_are_those_of_a_loop(name: str) -> None:
    model = model_of(name)
    found = measure_states(model, IDS)
    cache = model.new_cache(1, len(IDS))
    assert cache is not None
    before = [{k: v.clone() for k, v in state_tensors(s).items()} for s in cache.layers]
    names = [(c.layer, c.tensor) for c in found.curves]
    assert names == [(i, key) for i in (0, 1) for key in before[i]] and names
    for t, token in enumerate(IDS):
        model(torch.tensor([[token]]), cache=cache)
        for curve in found.curves:
            after = state_tensors(cache.layers[curve.layer])[curve.tensor].double()
            earlier = before[curve.layer][curve.tensor].double()
            known = np.isfinite(curve.changes[t]).all()  # not from -infinity or to zeros
            assert known or not earlier.isfinite().all() or (curve.norms[t] == 0).any()
            assert curve.size == after.numel() and len(curve.groups) == curve.norms.shape[1]
            norm = float(np.sqrt((curve.norms[t] ** 2).sum()))
            assert norm == pytest.approx(float(after.norm()), rel=1e-5)
            change = np.sqrt(((curve.changes[t] * curve.norms[t]) ** 2).sum())
            if known:
                assert change == pytest.approx(float((after - earlier).norm()), rel=1e-3)
        before = [{k: v.clone() for k, v in state_tensors(s).items()} for s in cache.layers]


def test_a_head_has_a_curve_and_channels_without_heads_are_grouped() -> None:
    found = measure_states(model_of("gated_delta_net gru"), IDS)
    heads, window, channels = found.curves
    assert heads.groups == ["head 0", "head 1"] and heads.tensor == "hidden"
    assert window.tensor == "inputs.past" and window.groups[0].startswith("channels 0 to ")
    assert channels.groups == [f"channels {2 * i} to {2 * i + 1}" for i in range(8)]
    model = model_of("gated_delta_net gru")
    cache = model.new_cache(1, len(IDS))
    assert cache is not None
    with torch.no_grad():
        model(torch.from_numpy(IDS[None]), cache=cache)
    delta, gru = cache.layers
    expected = [float(head.norm()) for head in delta.hidden[0]]
    np.testing.assert_allclose(heads.norms[-1], expected, rtol=1e-4)
    expected = [float(part.norm()) for part in gru.hidden[0, 0].view(8, 2)]
    np.testing.assert_allclose(channels.norms[-1], expected, rtol=1e-4)


def jacobian_norms(target: torch.Tensor, embeddings: torch.Tensor, signs: bool) -> np.ndarray:
    """Frobenius norms by the embedding of each token: with the eight fixed sign vectors, or exact."""
    directions = torch.eye(len(target))
    if signs:
        generator = torch.Generator().manual_seed(0)
        directions = torch.randint(0, 2, (8, len(target)), generator=generator) * 2.0 - 1
        directions /= np.sqrt(8)
    rows = [
        torch.autograd.grad(target @ each, embeddings, retain_graph=True)[0] for each in directions
    ]
    squares = sum(row[0].double().square().sum(dim=-1) for row in rows)
    return np.sqrt(squares.numpy())  # type: ignore[union-attr, no-any-return]  # a sum of tensors


@pytest.mark.parametrize("layers", [*RECURRENT, "gru attention", "attention mamba2"])
def test_influences_are_those_of_autograd_through_the_loop(layers: str) -> None:
    model = model_of(layers)
    found = measure_states(model, IDS)
    embeddings = model.token_embedding(torch.from_numpy(IDS)[None]).detach().requires_grad_()
    states, last = loop(model, embeddings)
    *of_layers, prediction = found.influences
    for influence, state in zip(of_layers, states, strict=True):
        assert influence.of == ("output" if isinstance(state, KeyValueCache) else "state")
        if influence.of == "state":
            tensors = state_tensors(state)
            kept = [v.flatten() for k, v in tensors.items() if not k.endswith("past")]
            target = torch.cat(kept or [v.flatten() for v in tensors.values()])
            expected = jacobian_norms(target, embeddings, signs=True)
            np.testing.assert_allclose(
                influence.norms, expected, rtol=1e-3, atol=1e-5 * expected.max()
            )
    expected = jacobian_norms(last, embeddings, signs=True)
    np.testing.assert_allclose(prediction.norms, expected, rtol=1e-3, atol=1e-5 * expected.max())
    exact = jacobian_norms(last, embeddings, signs=False)
    assert 0.7 < np.median(prediction.norms[exact > 0] / exact[exact > 0]) < 1.4


def test_a_norm_of_few_components_is_exact() -> None:
    model = model_of("min_gru", options={"min_gru": {"expansion": 0.5}}, num_layers=1)
    influence, _ = measure_states(model, IDS).influences
    embeddings = model.token_embedding(torch.from_numpy(IDS)[None]).detach().requires_grad_()
    (state,), _ = loop(model, embeddings)
    expected = jacobian_norms(state.hidden.flatten(), embeddings, signs=False)
    np.testing.assert_allclose(influence.norms, expected, rtol=1e-4, atol=1e-6 * expected.max())


class Average(Mixer):
    """S_t = a S_{t-1} + x_t, in a state of its own class that it changes in place."""

    def __init__(self, config: Any, options: Any, layer: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def new_state(self, batch_size: int, max_length: int) -> Any:
        Sum = namedtuple("Sum", "total count")
        state: list[Any] = [Sum(torch.zeros(batch_size, 16), torch.tensor(0)), "a note"]
        return state

    def forward(self, x: torch.Tensor, where: Positions, state: Any = None) -> torch.Tensor:
        total, outputs = state[0].total if state else torch.zeros_like(x[:, 0]), []
        for token in x.unbind(1):
            total = self.decay * total + token
            outputs.append(total)
        if state and x.shape[1] == 1:
            state[0].total.copy_(total)
        elif state:
            state[0] = state[0]._replace(total=total)
        return torch.stack(outputs, dim=1) * self.scale

    decay = 0.5


def test_a_known_decay_gives_known_influences() -> None:
    model = model_of(f"{__name__}:Average", num_layers=1, norm="layernorm")
    model.blocks[0].mixer_norm = nn.Identity()
    found = measure_states(model, IDS)
    (curve,) = found.curves
    assert curve.tensor == "0.total" and curve.size == 16
    back = np.arange(len(IDS))
    # The Jacobian by a token d before the last is 0.5^d times the identity, of any directions.
    np.testing.assert_allclose(found.influences[0].norms[::-1], 4 * 0.5**back, rtol=1e-5)
    assert found.influences[0].tokens_with(0.5) == 1 and found.influences[0].tokens_with(0.9) == 4
    total = np.zeros(16)
    table = model.token_embedding.weight.detach().numpy()
    for t, token in enumerate(IDS):
        before, total = total, 0.5 * total + table[token]
        assert np.linalg.norm(curve.norms[t]) == pytest.approx(np.linalg.norm(total), rel=1e-5)
        expected = np.linalg.norm((total - before)[:2]) / np.linalg.norm(total[:2])
        assert curve.changes[t, 0] == pytest.approx(expected, rel=1e-4)


class Wrong(Average):
    """Forgets faster when it computes a token alone."""

    def forward(self, x: torch.Tensor, where: Positions, state: Any = None) -> torch.Tensor:
        self.decay = 0.3 if x.shape[1] == 1 else 0.5
        return super().forward(x, where, state)


def test_a_mixer_whose_two_forms_differ_is_refused() -> None:
    with pytest.raises(ModelError, match="differ from the parallel form by"):
        measure_states(model_of(f"{__name__}:Wrong", num_layers=1), IDS)


class Growing(Average):
    """Keeps all tokens, in a cache of its own."""

    def forward(self, x: torch.Tensor, where: Positions, state: Any = None) -> torch.Tensor:
        if state:
            state[0] = state[0]._replace(total=torch.cat([state[0].total, x[:, :, 0]], dim=1))
        return x


class Stateless(GatedConvolution):
    def new_state(self, batch_size: int, max_length: int) -> Any:
        return None


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (
            "attention local_attention",
            "no recurrent layer: its layers mix tokens by attention, local",
        ),
        (f"{__name__}:Growing", "Growing, whose cache grows with the text"),
        (f"gru {__name__}:Stateless", "Stateless computes whole texts only"),
    ],
)
def test_models_without_recurrent_layers_are_refused_by_name(layers: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as error:
        measure_states(model_of(layers), IDS)
    assert error.value.hint


def test_what_else_is_refused() -> None:
    custom = CustomTransformer(11, num_layers=1, num_heads=2, hidden_size=8, context_length=16)
    with pytest.raises(UsageError, match="CustomTransformer has no mixers"):
        measure_states(custom, IDS)
    with pytest.raises(DataError, match="at least two tokens, got 1"):
        measure_states(model_of("gru"), IDS[:1])
    with pytest.raises(ModelError, match="21 tokens are more than the model's context of 8"):
        measure_states(model_of("gru", positions="learned", context_length=8), IDS)
    broken = model_of("gru")
    with torch.no_grad():
        broken.token_embedding.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        measure_states(broken, IDS)


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("mamba attention").train()
    model.end_of_text = 3
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, again = measure_states(model, IDS), measure_states(model, IDS)
    assert model.training and model.end_of_text == 3
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert same(first, again)


def same(first: States, again: States) -> bool:
    pairs = zip(first.influences, again.influences, strict=True)
    return all(np.array_equal(a.norms, b.norms) for a, b in pairs)


def test_tensors_of_any_state_are_found_by_their_path() -> None:
    @dataclass
    class Holder:
        count: int
        parts: dict[str, Any]

    class Plain:
        def __init__(self) -> None:
            self.memory = torch.zeros(1, 2)

    state = RecurrentState(torch.zeros(1, 3), Past(torch.zeros(1, 2, 3)))
    assert list(state_tensors(state)) == ["hidden", "inputs.past"]
    nested = Holder(3, {"a": [state, Plain()], "b": None, "c": torch.zeros(1, dtype=torch.int64)})
    assert list(state_tensors(nested)) == [
        "parts.a.0.hidden",
        "parts.a.0.inputs.past",
        "parts.a.1.memory",
    ]
    assert list(state_tensors(torch.zeros(1, 2))) == ["state"] and state_tensors(None) == {}


def test_the_number_of_tokens_with_a_share_of_the_influence() -> None:
    influence = Influence(0, "gru", "state", np.array([1.0, 0.0, 2.0, 3.0, 4.0]))
    counts = [influence.tokens_with(share) for share in (0.3, 0.5, 0.7, 0.9, 0.91)]
    assert counts == [1, 2, 2, 3, 5]
