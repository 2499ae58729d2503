"""The states of recurrent layers over a text: how large they are, how fast they change, how long they remember.

Any state is read: its tensors are found by walking through it. The model steps token by token in fp32,
and the result is verified against its parallel form.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from common.data.token_files import Tokens
from common.errors import DataError, ModelError, UsageError
from common.models.base import BaseLanguageModel
from common.models.decoder import Decoder
from common.models.mixers.attention import KeyValueCache
from common.models.mixers.base import Mixer
from common.training.prediction_metrics import Counts, Floats

# Relative to the largest value; both forms compute in fp32, in another order.
_TOLERANCE = 1e-3
_MOST_GROUPS = 8  # of channels, where a state has no heads
_PROBES = 8  # random directions per gradient norm; a norm is exact for as many components or fewer
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class StateCurve:
    """One tensor S of the state of a layer, after each token.

    Attributes:
        tensor: where it is in the state, such as `hidden` or `inputs.past`.
        groups: names of its heads, or of groups of its channels.
        norms: (tokens, groups) |S_t|.
        changes: (tokens, groups) |S_t - S_{t-1}| / |S_t|; NaN where it is undefined. S_0 is the state
            before the text.
    """

    layer: int
    mixer: str
    tensor: str
    size: int  # numbers in the tensor
    groups: list[str]
    norms: Floats
    changes: Floats


@dataclass(frozen=True)
class Influence:
    """How much each token influences what the model holds after the last token.

    Attributes:
        layer: None for the output of the model's last norm, which predicts the next token.
        of: `state`, or `output` where a layer has no recurrent state, at the last token.
        norms: (tokens,) Frobenius norm of its Jacobian by the embedding of each token.
    """

    layer: int | None
    mixer: str
    of: str
    norms: Floats

    def tokens_with(self, share: float) -> int:
        """The number of last tokens that have `share` of the whole influence."""
        total = np.cumsum(self.norms[::-1])
        return int(np.searchsorted(total, share * total[-1])) + 1


@dataclass(frozen=True)
class States:
    """The states for a text of `ids` (tokens,): curves of recurrent layers, and the influences on every
    layer and, last, on the prediction."""

    ids: Counts
    curves: list[StateCurve]
    influences: list[Influence]


@torch.enable_grad()
def measure_states(model: BaseLanguageModel, tokens: Tokens | Counts) -> States:
    """Step through `tokens` (tokens,), at least two.

    Gradient norms are estimated with random directions (Hutchinson 1989): E |J^T v|^2 is the squared
    Frobenius norm of J for independent signs v. The seed is fixed.

    Raises UsageError for a model without recurrent layers, ModelError if its two forms differ or its
    context is shorter than the text.
    """
    ids = np.asarray(tokens).astype(np.int64)
    if len(ids) < 2:
        raise DataError(f"states need a text of at least two tokens, got {len(ids)}")
    exact = _prepared(model)
    limit = exact.context_limit
    if limit is not None and len(ids) > limit:
        raise ModelError(
            f"{len(ids)} tokens are more than the model's context of {limit}",
            "pass fewer tokens: a smaller --context-length",
        )
    inputs = torch.from_numpy(ids)[None].to(exact.device)
    recorders, stepped = _step(exact, inputs)
    parallel = _parallel(exact, inputs, list(recorders))
    _verify(recorders, stepped, parallel)
    curves = [curve for recorder in recorders.values() for curve in recorder.curves()]
    return States(ids, curves, list(_influences(exact, parallel)))


def state_tensors(state: Any, name: str = "") -> Tensors:
    """The floating-point tensors in a state, by their path: `hidden`, `inputs.past`, `0.past`."""
    if isinstance(state, torch.Tensor):
        return {name or "state": state} if state.is_floating_point() else {}
    if is_dataclass(state):
        parts = {field.name: getattr(state, field.name) for field in fields(state)}
    elif isinstance(state, Mapping):
        parts = {str(key): value for key, value in state.items()}
    elif isinstance(state, tuple) and hasattr(state, "_asdict"):
        parts = state._asdict()
    elif isinstance(state, list | tuple):
        parts = {str(index): value for index, value in enumerate(state)}
    else:
        parts = getattr(state, "__dict__", {})
    found: Tensors = {}
    for key, part in parts.items():
        found |= state_tensors(part, f"{name}.{key}" if name else key)
    return found


def _prepared(model: BaseLanguageModel) -> Decoder:
    """A copy in fp32 and eval mode that generates with a state. Raises UsageError for other models."""
    kind, hint = type(model).__name__, "train one with model.mixer=gru or another (docs/models.md)"
    if not isinstance(model, Decoder):
        raise UsageError(f"{kind} has no mixers whose states can be read: it is no Decoder", hint)
    stateless = [
        name
        for name, mixer in zip(model.config.mixers, model.mixers, strict=True)
        if mixer.new_state(1, 2) is None
    ]
    if stateless:
        raise UsageError(
            f"{stateless[0]} computes whole texts only: the model cannot step through one",
            "define new_state (common/models/mixers/base.py)",
        )
    exact = copy.deepcopy(model).float().eval().requires_grad_(False)
    exact.end_of_text = None  # as in generation, where a state lives on across documents
    return exact


class _Recorder:
    """Records one layer's state after each token."""

    def __init__(self, layer: int, name: str, mixer: Mixer, state: Any) -> None:
        self.layer, self.name, self.mixer = layer, name, mixer
        self.tensors = self._copies(state)
        self.grows = isinstance(state, KeyValueCache)
        self.norms: dict[str, list[torch.Tensor]] = {each: [] for each in self.tensors}
        self.changes: dict[str, list[torch.Tensor]] = {each: [] for each in self.tensors}

    @staticmethod
    def _copies(state: Any) -> Tensors:
        """Copies: a mixer may write into its state."""
        return {name: tensor.clone() for name, tensor in state_tensors(state).items()}

    def record(self, state: Any) -> None:
        """Add the norms of the state after one more token."""
        if self.grows:
            return
        after = self._copies(state)
        self.grows = any(
            name not in self.tensors or tensor.shape != self.tensors[name].shape
            for name, tensor in after.items()
        )
        for name, tensor in ({} if self.grows else after).items():
            norms = self._norms(name, tensor)
            self.norms[name].append(norms)
            self.changes[name].append(self._norms(name, tensor - self.tensors[name]) / norms)
        self.tensors = after

    def _norms(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.norm() for part in self._groups(name, tensor).values()])

    def _groups(self, name: str, tensor: torch.Tensor) -> Tensors:
        """The heads of a tensor (1, heads, ...), or groups of the channels of one (..., channels)."""
        num_heads = getattr(self.mixer, "num_value_heads", getattr(self.mixer, "num_heads", None))
        if tensor.ndim > 2 and tensor.shape[1] == num_heads and not _is_window(name):
            return {f"head {index}": head for index, head in enumerate(tensor.unbind(1))}
        channels = torch.arange(tensor.shape[-1])
        pieces = channels.tensor_split(min(_MOST_GROUPS, len(channels)))
        return {
            f"channels {int(piece[0])} to {int(piece[-1])}": tensor[..., piece[0] : piece[-1] + 1]
            for piece in pieces
        }

    def curves(self) -> Iterator[StateCurve]:
        """The curves of all tensors."""
        for name, tensor in self.tensors.items():
            changes = _numpy(torch.stack(self.changes[name]))
            yield StateCurve(
                self.layer,
                self.name,
                name,
                tensor.numel(),
                list(self._groups(name, tensor)),
                _numpy(torch.stack(self.norms[name])),
                np.where(np.isfinite(changes), changes, np.nan),
            )


def _is_window(name: str) -> bool:
    """Whether a tensor is the `Past` of a convolution: the last inputs, (1, reach, channels)."""
    return name.split(".")[-1] == "past"


def _numpy(tensor: torch.Tensor) -> Floats:
    values: Floats = tensor.detach().double().cpu().numpy()
    return values


@torch.no_grad()
def _step(model: Decoder, inputs: torch.Tensor) -> tuple[dict[int, _Recorder], torch.Tensor]:
    """{layer: its recorder} of recurrent layers, and the outputs (1, time, hidden_size) of the last norm.

    Raises UsageError if no layer is recurrent.
    """
    time = inputs.shape[1]
    cache = model.new_cache(1, time)
    assert cache is not None  # checked by `_prepared`
    recorders = [
        _Recorder(layer, name, model.mixers[layer], state)
        for layer, (name, state) in enumerate(zip(model.config.mixers, cache.layers, strict=True))
    ]
    outputs = list[torch.Tensor]()
    with _output_of(model.final_norm, outputs.append):
        for token in inputs.unbind(1):
            model.next_logits(token[None], cache)
            for recorder, state in zip(recorders, cache.layers, strict=True):
                recorder.record(state)
    recurrent = {each.layer: each for each in recorders if each.tensors and not each.grows}
    if not recurrent:
        mixers = ", ".join(dict.fromkeys(model.config.mixers))
        raise UsageError(
            f"this {type(model).__name__} has no recurrent layer: its layers mix tokens by {mixers}, "
            "whose cache grows with the text",
            "train one with model.mixer=gru or another (docs/models.md)",
        )
    return recurrent, torch.cat(outputs, dim=1)


@contextmanager
def _output_of(module: nn.Module, keep: Callable[[torch.Tensor], object]) -> Iterator[None]:
    """Call `keep` with every output of `module`; if it returns a tensor, that is the output."""
    hook = module.register_forward_hook(lambda _, inputs, output: keep(output))
    try:
        yield
    finally:
        hook.remove()


@dataclass
class _Parallel:
    """One forward pass over the whole text, with a gradient.

    Attributes:
        embeddings: (1, time, hidden_size) of the tokens, the leaf.
        states: of recurrent layers, after the text.
        outputs: (1, time, hidden_size) of the other mixers, by layer, and of the last norm, by -1.
    """

    embeddings: torch.Tensor
    states: dict[int, Any]
    outputs: dict[int, torch.Tensor]


def _parallel(model: Decoder, inputs: torch.Tensor, recurrent: list[int]) -> _Parallel:
    """Run the parallel form; recurrent layers also leave their state, others need no cache."""
    found = _Parallel(torch.empty(0), {}, {})

    def cut(embeddings: torch.Tensor) -> torch.Tensor:
        found.embeddings = embeddings.detach().requires_grad_()
        return found.embeddings

    def keep(layer: int) -> Callable[[torch.Tensor], object]:
        return lambda output: found.outputs.update({layer: output})

    with ExitStack() as hooks:
        # The backward pass of cuDNN's LSTM works in training mode alone.
        hooks.enter_context(torch.backends.cudnn.flags(enabled=False))
        hooks.enter_context(_output_of(model.token_embedding, cut))
        hooks.enter_context(_output_of(model.final_norm, keep(-1)))
        for layer, mixer in enumerate(model.mixers):
            if layer in recurrent:
                found.states[layer] = mixer.new_state(1, inputs.shape[1])
                hooks.enter_context(_with_state(mixer, found.states[layer]))
            else:
                hooks.enter_context(_output_of(mixer, keep(layer)))
        model.next_logits(inputs)
    return found


@contextmanager
def _with_state(mixer: Mixer, state: Any) -> Iterator[None]:
    """Pass `state` to the mixer in a forward pass without a cache."""
    hook = mixer.register_forward_pre_hook(lambda _, given: (*given[:2], state))
    try:
        yield
    finally:
        hook.remove()


def _verify(recorders: dict[int, _Recorder], stepped: torch.Tensor, parallel: _Parallel) -> None:
    """Raise ModelError unless both forms give the same outputs and the same states after the text."""
    pairs = [("its predictions", stepped, parallel.outputs[-1])]
    for layer, recorder in recorders.items():
        after = state_tensors(parallel.states[layer])
        pairs += [
            (f"{name} of layer {layer} ({recorder.name})", tensor, after[name])
            for name, tensor in recorder.tensors.items()
        ]
    for what, found, expected in pairs:
        found, expected = found.detach(), expected.detach()
        if not bool(found.isfinite().all()):
            raise ModelError(
                f"{what} are not finite", "the model has diverged: try an earlier --checkpoint"
            )
        scale = max(float(expected.abs().max()), 1e-6)
        error = float((found - expected).abs().max()) / scale
        if not error <= _TOLERANCE:
            raise ModelError(
                f"token by token, {what} differ from the parallel form by {error:.1e} of the largest",
                "check the mixer: check_mixer of common/models/mixers/checks.py",
            )


def _influences(model: Decoder, parallel: _Parallel) -> Iterator[Influence]:
    """One per layer, and the prediction's."""
    for layer, name in enumerate(model.config.mixers):
        if layer in parallel.states:
            tensors = state_tensors(parallel.states[layer])
            # The window of a convolution beside a state remembers its few tokens exactly.
            lasting = [tensor for key, tensor in tensors.items() if not _is_window(key)]
            target = torch.cat([each.flatten() for each in lasting or tensors.values()])
            yield Influence(layer, name, "state", _jacobian_norms(target, parallel.embeddings))
        else:
            target = parallel.outputs[layer][0, -1]
            yield Influence(layer, name, "output", _jacobian_norms(target, parallel.embeddings))
    target = parallel.outputs[-1][0, -1]
    yield Influence(None, "prediction", "output", _jacobian_norms(target, parallel.embeddings))


def _jacobian_norms(target: torch.Tensor, embeddings: torch.Tensor) -> Floats:
    """(time,) Frobenius norm of the Jacobian of target (n,) by each of embeddings (1, time, hidden_size)."""
    squares = torch.zeros(embeddings.shape[1], dtype=torch.float64, device=embeddings.device)
    for direction in _directions(len(target)):
        (gradient,) = torch.autograd.grad(
            target, embeddings, direction.to(target), retain_graph=True
        )
        squares += gradient[0].double().square().sum(dim=-1)
    return _numpy(squares.sqrt())


def _directions(size: int) -> torch.Tensor:
    """(n, size): the axes if there are few, else random signs; the squares of their products with a
    vector sum to its squared norm, at least in expectation."""
    if size <= _PROBES:
        return torch.eye(size)
    signs = torch.randint(0, 2, (_PROBES, size), generator=torch.Generator().manual_seed(0))
    directions: torch.Tensor = (2.0 * signs - 1) / _PROBES**0.5
    return directions
