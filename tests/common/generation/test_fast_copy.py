"""The fast copy that generates: equal to its model, never in its way, and what it leaves as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.generation import decoding
from common.generation.fast_copy import (
    MIN_PACKED_WEIGHTS,
    PackedLinear,
    is_worth_packing,
    make_fast_copy,
)
from common.models import BaseLanguageModel, Decoder
from projects.custom_transformer.model import CustomTransformer

# Wide enough that the projections to and from the feed-forward and to the vocabulary are packed.
VOCAB, WIDTH, CONTEXT = 2100, 256, 48
SHAPE = {"num_layers": 2, "hidden_size": WIDTH, "context_length": CONTEXT}


class Sequential(BaseLanguageModel):
    """What users build: containers that are called, indexed and iterated over, a layer used twice."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.embedding = nn.Embedding(vocab_size, WIDTH)
        layer = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList([layer, nn.Sequential(nn.Dropout(0.5), nn.SiLU(), layer)])
        self.norms = nn.ModuleDict({"first": nn.RMSNorm(WIDTH), "second": nn.LayerNorm(WIDTH)})
        self.gains = nn.ParameterList([torch.ones(WIDTH), 2 * torch.ones(WIDTH)])
        self.register_buffer("shift", torch.full((WIDTH,), 0.1))
        self.head = nn.Linear(WIDTH, vocab_size)

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        x = self.embedding(input_ids) + self.shift
        for gain, norm, layer in zip(self.gains, self.norms.values(), self.layers, strict=True):
            x = x + gain * layer(norm(x))
        assert isinstance(self.layers[1][2], nn.Linear) and len(self.layers) == 2
        return {"logits": self.head(x)}


MODELS: dict[str, Callable[[], BaseLanguageModel]] = {
    "gpt2": lambda: Decoder(VOCAB, preset="gpt2", dropout=0.3, **SHAPE),
    "llama, grouped, qk_norm": lambda: Decoder(
        VOCAB, preset="llama", num_kv_heads=2, qk_norm=True, **SHAPE
    ),
    "char_lstm": lambda: Decoder(VOCAB, preset="char_lstm", **SHAPE),
    "custom_transformer": lambda: CustomTransformer(VOCAB, 2, 4, WIDTH, CONTEXT),
    "a user's": lambda: Sequential(VOCAB),
}
every_model = pytest.mark.parametrize("name", MODELS)


def make(name: str) -> BaseLanguageModel:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def prompts(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@every_model
@torch.no_grad()
def test_a_fast_copy_computes_what_its_model_computes(name: str) -> None:
    model = make(name)
    copy, ids = model.fast_copy(), prompts(3, 9)
    expected = model(ids)["logits"]
    torch.testing.assert_close(copy(ids)["logits"], expected, atol=1e-5, rtol=1e-5)
    cache = model.new_cache(3, 9)
    if cache is not None:  # token after token, as generation reads
        found = [copy.next_logits(ids[:, i : i + 1], cache) for i in range(9)]
        torch.testing.assert_close(torch.stack(found, dim=1), expected, atol=1e-5, rtol=1e-5)


@every_model
def test_greedy_text_is_the_same_with_and_without_a_fast_copy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, new = make(name), decoding.FAST_COPY_FROM_TOKENS + CONTEXT
    found = model.generate(prompts(2, 5), new, temperature=0)
    monkeypatch.setattr(decoding, "FAST_COPY_FROM_TOKENS", 10**6)
    assert torch.equal(model.generate(prompts(2, 5), new, temperature=0), found)


@every_model
def test_a_fast_copy_shares_all_parameters_and_changes_nothing_in_its_model(name: str) -> None:
    model = make(name)
    before = {name: (type(module), id(module)) for name, module in model.named_modules()}
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copy = model.fast_copy()
    with torch.no_grad():
        copy(prompts(1, 4))
    assert {name: (type(m), id(m)) for name, m in model.named_modules()} == before
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in copy.parameters()} <= own
    assert isinstance(copy, type(model))


def test_weights_that_changed_are_seen_by_the_next_generation() -> None:
    model = make("gpt2")
    first = model.generate(prompts(2, 3), 40, temperature=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    second = model.generate(prompts(2, 3), 40, temperature=0)
    assert not torch.equal(first, second)
    ids = second[:, :10]
    assert torch.equal(model(ids)["logits"][:, -1].argmax(-1), second[:, 10])


def test_training_goes_on_after_a_generation_as_without_one() -> None:
    def gradients(generate: bool) -> list[torch.Tensor]:
        model = make("gpt2").train()
        if generate:
            state = torch.get_rng_state()
            model.generate(prompts(2, 3), 40, seed=0)
            assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        model(prompts(2, 8), labels=prompts(2, 8))["loss"].backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    pairs = zip(gradients(True), gradients(False), strict=True)
    assert all(torch.equal(with_it, without) for with_it, without in pairs)


def test_large_matrices_are_packed_and_small_ones_are_not() -> None:
    copy = make("gpt2").fast_copy()
    block = copy.blocks[0]
    packed = {name for name, m in block.named_modules() if isinstance(m, PackedLinear)}
    assert packed == {"feedforward.input", "feedforward.output"}  # of 4 * 256 * 256 weights
    assert isinstance(copy.head, PackedLinear)  # tied to the embedding
    assert copy.head.weight is copy.token_embedding.weight
    assert copy.blocks[0].mixer is not copy.blocks[1].mixer


def test_a_layer_that_is_used_twice_is_packed_once() -> None:
    copy = make("a user's").fast_copy()
    assert copy.layers[0] is copy.layers[1][2]


@pytest.mark.parametrize("rows", [1, 3, 16, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_is_one_of_float32(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(300, 1111, bias=bias), torch.randn(2, rows, 300)
    exact = F.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
    with torch.no_grad():
        packed = PackedLinear(linear.weight, linear.bias)(x)
    assert packed.shape == (2, rows, 1111) and packed.dtype == torch.float32
    torch.testing.assert_close(packed.double(), exact, atol=1e-5, rtol=0)  # bfloat16: 1e-2


def test_only_plain_float32_matrices_on_the_cpu_are_packed() -> None:
    side = int(MIN_PACKED_WEIGHTS**0.5)
    assert is_worth_packing(torch.zeros(side, side))
    assert not is_worth_packing(torch.zeros(side, side - 1))
    assert not is_worth_packing(torch.zeros(side, side, dtype=torch.bfloat16))
    assert not is_worth_packing(torch.zeros(side, side, device="meta"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_precisions_generate(dtype: torch.dtype) -> None:
    model = make("gpt2").to(dtype)
    found = model.generate(prompts(2, 3), 36, temperature=0)
    assert torch.equal(model(found[:, :3])["logits"][:, -1].argmax(-1), found[:, 3])


def test_a_model_generates_inside_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make("gpt2").generate(prompts(2, 3), 36, temperature=0).shape == (2, 39)


def test_hooks_are_called_in_generation() -> None:
    model, calls = make("gpt2"), []
    model.blocks[1].feedforward.output.register_forward_hook(
        lambda module, inputs, output: calls.append(output.shape)
    )
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: calls.append("block"))
    model.generate(prompts(2, 3), 40, temperature=0)
    assert calls[:4] == ["block", (2, 3, WIDTH), "block", (2, 1, WIDTH)]
    assert len(calls) == 80


def test_a_model_with_a_hook_of_its_own_is_its_own_fast_copy() -> None:
    model = make("gpt2")
    model.register_forward_hook(lambda module, inputs, output: None)
    assert model.fast_copy() is model and model.head is None


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_modules_with_a_call_or_forward_of_their_own_keep_it() -> None:
    class Doubled(nn.Linear):
        def __call__(self, *args: Any) -> Any:
            return 2 * super().__call__(*args)

    class Registered(nn.Linear):
        names: ClassVar[list[str]] = []

        def __init_subclass__(cls, name: str) -> None:
            cls.names.append(name)

    class Known(Registered, name="known"):
        pass

    scripted = torch.jit.script(nn.SiLU())
    model = nn.Sequential(Doubled(8, 8), nn.Linear(8, 8), scripted, Known(8, 8))
    model[1].forward = lambda x: x + 1  # type: ignore[method-assign]
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(make_fast_copy(model)(x), model(x))
    assert Registered.names == ["known"]
