"""Pruned models against masks on the whole model, and against NumPy in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from apps.export.prune import prune_heads, prune_neurons, prune_weights
from common.errors import ModelError
from common.models import BaseLanguageModel, Decoder
from common.models.quantization import Quantization
from common.models.quantize import quantize
from tests.apps.export.conftest import random_model

KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"preset": "gpt2"},
    "llama": {"preset": "llama"},
    "grouped": {"preset": "qwen3", "num_heads": 8, "num_kv_heads": 4, "head_size": 6},
    "biased": {"preset": "qwen2", "num_kv_heads": 4},
}
IDS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))


def linear_weights(model: BaseLanguageModel) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: module.weight.detach().double().numpy()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "head"
    }


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_the_smallest_weights_of_each_layer_are_zero(share: float) -> None:
    model = random_model(preset="llama")
    before, after = linear_weights(model), linear_weights(prune_weights(model, share))
    for name, weight in before.items():
        flat, pruned = weight.ravel(), after[name].ravel()
        number = round(share * flat.size)
        assert (pruned == 0).sum() == number
        assert np.abs(flat[pruned == 0]).max() <= np.abs(flat[pruned != 0]).min()
        assert (pruned[pruned != 0] == flat[pruned != 0]).all()


def test_globally_all_weights_compete() -> None:
    model = random_model(preset="gpt2")
    with torch.no_grad():
        model.blocks[0].mixer.output.weight.mul_(100)  # type: ignore[union-attr]
    pruned = prune_weights(model, 0.6, "global")
    before, after = linear_weights(model), linear_weights(pruned)
    flat = np.concatenate([weight.ravel() for weight in before.values()])
    kept = np.concatenate([weight.ravel() for weight in after.values()])
    assert (kept == 0).sum() == round(0.6 * flat.size)
    assert np.abs(flat[kept == 0]).max() <= np.abs(flat[kept != 0]).min()
    assert (after["blocks.0.mixer.output"] == 0).mean() < 0.02


def test_embeddings_output_and_the_model_itself_are_left_alone() -> None:
    model = random_model(preset="llama")
    original = copy.deepcopy(model).state_dict()
    pruned = prune_weights(model, 0.5)
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items())
    for name in ("token_embedding.weight", "head.weight", "final_norm.weight"):
        assert torch.equal(pruned.state_dict()[name], original[name])


@pytest.mark.parametrize("kind", KINDS)
def test_without_heads_is_as_with_heads_that_write_nothing(kind: str, tmp_path: Path) -> None:
    model = random_model(**KINDS[kind])
    pruned = prune_heads(model, 0.5)
    attention: Any = model.blocks[0].mixer
    groups, per_group = attention.num_kv_heads, attention.num_heads // attention.num_kv_heads
    assert pruned.config.num_kv_heads == groups // 2
    assert pruned.config.num_heads == attention.num_heads // 2
    assert pruned.config.size_of_heads == attention.head_size
    masked = copy.deepcopy(model)
    for block in masked.blocks:
        mixer: Any = block.mixer
        width = per_group * mixer.head_size
        for group in _smallest_groups(mixer)[: groups // 2]:
            mixer.output.weight.data[:, group * width : (group + 1) * width] = 0
    _same(pruned, masked, tmp_path)
    assert pruned.num_parameters() < model.num_parameters()


def _smallest_groups(mixer: Any) -> list[int]:
    """By the norm of all weights of a group of heads, in float64, one head after another."""
    size, queries, groups = mixer.head_size, mixer.num_heads, mixer.num_kv_heads
    inputs = mixer.query_key_value.weight.detach().double().numpy()
    outputs = mixer.output.weight.detach().double().numpy()
    squares = np.zeros(groups)
    for head in range(queries):
        rows = slice(head * size, (head + 1) * size)
        squares[head * groups // queries] += (inputs[rows] ** 2).sum() + (
            outputs[:, rows] ** 2
        ).sum()
    for group in range(groups):
        for start in (queries, queries + groups):
            rows = slice((start + group) * size, (start + group + 1) * size)
            squares[group] += (inputs[rows] ** 2).sum()
    return list(np.argsort(squares))


@pytest.mark.parametrize("kind", KINDS)
def test_without_neurons_is_as_with_neurons_that_write_nothing(kind: str, tmp_path: Path) -> None:
    model = random_model(**KINDS[kind])
    pruned = prune_neurons(model, 0.25)
    first: Any = model.blocks[0].feedforward
    removed = round(0.25 * first.input.out_features)
    assert pruned.config.intermediate_size == first.input.out_features - removed
    masked = copy.deepcopy(model)
    for block in masked.blocks:
        part: Any = block.feedforward
        norms = [
            np.prod(
                [
                    np.sqrt((vector.detach().double().numpy() ** 2).sum())
                    for vector in (
                        part.input.weight[neuron],
                        part.output.weight[:, neuron],
                        *([part.gate.weight[neuron]] if hasattr(part, "gate") else []),
                    )
                ]
            )
            for neuron in range(first.input.out_features)
        ]
        part.output.weight.data[:, np.argsort(norms)[:removed].tolist()] = 0
    _same(pruned, masked, tmp_path)


@torch.no_grad()
def _same(pruned: Decoder, masked: Decoder, folder: Path) -> None:
    expected = masked(IDS)["logits"]
    assert torch.allclose(pruned(IDS)["logits"], expected, atol=1e-4)
    path = pruned.save_checkpoint(folder / "step_1")
    loaded = BaseLanguageModel.load_checkpoint(path).eval()
    assert torch.equal(loaded(IDS)["logits"], pruned(IDS)["logits"])
    text = loaded.generate(IDS, 8, temperature=0)
    assert torch.equal(text, masked.generate(IDS, 8, temperature=0))


def test_one_head_and_one_neuron_remain() -> None:
    model = random_model()
    assert prune_heads(model, 0.99).config.num_heads == 1
    assert prune_neurons(model, 0.999).config.intermediate_size == 1  # of 128


def test_large_layers_keep_whole_blocks() -> None:
    model = random_model(intermediate_size=1024)
    assert prune_neurons(model, 0.26).config.intermediate_size == 768
    assert prune_neurons(model, 0.999).config.intermediate_size == 32
    assert prune_neurons(random_model(intermediate_size=1025), 0.2).config.intermediate_size == 820


@pytest.mark.parametrize("prune", [prune_weights, prune_heads, prune_neurons])
def test_what_cannot_be_pruned_is_refused(prune: Any) -> None:
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ModelError, match="between 0 and 1"):
            prune(random_model(), share)
    quantized = random_model()
    quantize(quantized, Quantization("int8"))
    with pytest.raises(ModelError, match="quantised model cannot be pruned"):
        prune(quantized, 0.5)


@pytest.mark.parametrize("prune", [prune_heads, prune_neurons])
def test_structures_that_are_not_there_are_refused(prune: Any) -> None:
    with pytest.raises(ModelError, match=r"to prune in every layer, but (lstm|none)"):
        prune(random_model(preset="char_lstm"), 0.5)
    with pytest.raises(ModelError, match="not from a BaseLanguageModel"):
        prune(BaseLanguageModel(5), 0.5)
