"""Every mixer fulfils one contract: a new one enters by a line of VARIANTS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from common.models import Decoder
from common.models.mixers.base import Mixer, Positions
from common.models.mixers.checks import CHECKS, build_mixer, check_mixer
from common.models.mixers.convolution import GatedConvolution
from common.models.mixers.state import Past
from common.models.registry import MIXERS
from tests.budget import repeat

# Each mixer as it is by default, and what its options change.
VARIANTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((name, {}, {}) for name in MIXERS),
    ("attention", {}, {"num_heads": 4, "num_kv_heads": 2, "qk_norm": True}),
    ("attention", {}, {"attention_soft_cap": 3.0}),
    ("attention", {}, {"attention_gate": True, "attention_scale": 0.3, "qk_norm": "projection"}),
    ("local_attention", {"window": 1}, {}),
    ("local_attention", {"window": 7}, {"num_heads": 4, "num_kv_heads": 1}),
    ("local_attention", {"window": 64}, {"attention_soft_cap": 3.0}),
    ("latent_attention", {"latent_size": 8, "rope_size": 4, "query_latent_size": 6}, {}),
    ("latent_attention", {"value_size": 3}, {"attention_soft_cap": 3.0}),
    ("min_gru", {"expansion": 1.5}, {"bias": False}),
    ("min_lstm", {"expansion": 0.5}, {}),
    ("convolution", {"kernel_size": 2, "dilation_cycle": 1}, {}),
    ("gated_convolution", {"kernel_size": 7}, {}),
    ("mamba", {"state_size": 3, "kernel_size": 2, "step_rank": 2}, {}),
    ("mamba2", {"head_size": 8, "num_groups": 2, "state_size": 6}, {}),
    ("mamba2", {"convolution_bias": False, "min_step": 0.01, "max_step": 0.05}, {}),
    ("retnet", {"value_expansion": 1.0}, {"num_heads": 4}),
    ("gla", {"key_expansion": 1.0, "gate_divisor": 0.1}, {}),
    ("mlstm", {"key_expansion": 1.0, "gate_soft_cap": 30.0}, {}),
    ("slstm", {"kernel_size": 0}, {}),
    ("delta_net", {"eigenvalues": "signed"}, {}),
    ("gated_delta_net", {"key_size": 4, "value_size": 6, "num_value_heads": 4}, {}),
    ("gated_delta_net", {"eigenvalues": "signed", "kernel_size": 2}, {}),
    ("delta_net", {"num_key_heads": 1, "num_value_heads": 3, "key_size": 4}, {}),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "options", "shape"), VARIANTS, ids=str)
def test_a_mixer(
    name: str, options: dict[str, Any], shape: dict[str, Any], check: Callable[[Mixer], None]
) -> None:
    check(build_mixer(name, options, **shape))


class Stateless(GatedConvolution):
    """A mixer of one's own that only computes whole texts."""

    def new_state(self, batch_size: int, max_length: int) -> Any:
        return None


def test_a_mixer_without_a_state_reads_the_text_again_for_every_token() -> None:
    check_mixer(Stateless)
    torch.manual_seed(0)
    options = {"positions": "none", "hidden_size": 32, "context_length": 64}
    model = Decoder(20, layers=f"{__name__}:Stateless gru", **options).eval()
    ids = torch.randint(0, 20, (2, 9))
    expected = ids
    for _ in range(6):
        following = model(expected)["logits"][:, -1].argmax(dim=-1, keepdim=True)
        expected = torch.cat([expected, following], dim=1)
    assert model.new_cache(2, 20) is None
    assert torch.equal(model.generate(ids, max_new_tokens=6, temperature=0), expected)


@pytest.mark.slow
@repeat("name", ["mamba", *(name for name in MIXERS if name != "mamba")])
def test_a_compiled_mixer_is_the_same(name: str) -> None:
    """Loss and gradients, with borders of documents."""
    torch._dynamo.reset()  # after eight kinds of a block it gives up
    torch.manual_seed(0)
    shape = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "context_length": 40}
    model = Decoder(20, mixer=name, positions="none", **shape).train()
    model.mask_documents(0)
    ids = torch.randint(0, 20, (2, 40))
    results = []
    for compiled in (False, True):
        model.set_compile(compiled)
        loss = model.compute_loss(ids, ids)
        results.append([loss, *torch.autograd.grad(loss, [*model.parameters()])])
    for mine, eager in zip(*results, strict=True):
        torch.testing.assert_close(mine, eager, rtol=1e-4, atol=1e-6)


class Forgetful(GatedConvolution):
    new_state = Mixer.new_state


class Prophet(GatedConvolution):
    def forward(self, x: torch.Tensor, where: Positions, state: Any = None) -> torch.Tensor:
        return super().forward(x.roll(-1, dims=1), where, state)


class Eavesdropper(GatedConvolution):
    def forward(self, x: torch.Tensor, where: Positions, state: Any = None) -> torch.Tensor:
        return super().forward(x, Positions(where.start), state)


class Frozen(GatedConvolution):
    def forward(self, x: torch.Tensor, where: Positions, state: Any = None) -> torch.Tensor:
        return super().forward(x, where, [Past(each.past) for each in state] if state else None)


class Uninitialised(GatedConvolution):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.gain = torch.nn.Parameter(torch.empty(16))


class Unused(Uninitialised):
    def reset_parameters(self, std: float) -> None:
        torch.nn.init.ones_(self.gain)


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        (Forgetful, "define new_state"),
        (Prophet, "sees the future; first at token"),
        (Eavesdropper, "sees another document"),
        (Frozen, "does forward read and update the state"),
        (Uninitialised, "reset_parameters leaves gain uninitialised"),
        (Unused, "gain has no effect"),
    ],
)
def test_a_typical_mistake_is_named(mixer: type[Mixer], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_mixer(mixer)
