"""Our mixers and layers of other packages that hold the same weights, so that both compute the same function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from tools.benchmarks.mixers import layer

HEADS = 4
Weights = dict[str, torch.Tensor]

MAMBA = {
    "in_proj": "input",
    "conv1d": "convolution",
    "x_proj": "parameters_of_x",
    "dt_proj": "step",
    "A_log": "log_rates",
    "D": "skip",
    "out_proj": "output",
}
# Theirs are the gate, x, B, C, the steps; ours the gate, x, B (keys), C (queries), the steps.
MAMBA2 = {
    "in_proj": "input",
    "conv1d": "convolution",
    "dt_bias": "step_bias",
    "A_log": "log_rates",
    "D": "skip",
    "norm.weight": "norm_weight",
    "out_proj": "output",
}


@dataclass(frozen=True)
class Pair:
    """Two modules of x, (batch, time, width), with equal weights. A tuple's first element is the output."""

    name: str  # of our mixer
    peer: str  # theirs, and its settings
    ours: nn.Module
    theirs: nn.Module
    differs: str = ""


def pairs_of_transformers(width: int) -> Iterator[Pair]:
    """Mamba, Mamba-2 and the gated delta rule of Qwen3-Next, in PyTorch alone."""
    mamba = import_module("transformers.models.mamba.modeling_mamba")
    theirs = mamba.MambaMixer(mamba.MambaConfig(hidden_size=width), layer_idx=0)
    yield _pair("mamba", "MambaMixer, slow path", theirs, renamed_by(MAMBA), width, bias=False)

    mamba2 = import_module("transformers.models.mamba2.modeling_mamba2")
    for chunk, state, groups in ((256, 128, 8), (64, 128, 8), (256, 64, 1), (64, 64, 1)):
        config = mamba2.Mamba2Config(
            hidden_size=width,
            num_heads=2 * HEADS,
            head_dim=width // HEADS,
            state_size=state,
            n_groups=groups,
            chunk_size=chunk,
        )
        default = " (default)" if (chunk, state) == (256, 128) else ""
        yield _pair(
            "mamba2",
            f"Mamba2Mixer, chunk {chunk}, state {state}, {groups} groups{default}",
            mamba2.Mamba2Mixer(config, layer_idx=0),
            renamed_by(MAMBA2),
            width,
            {"head_size": width // HEADS, "state_size": state, "num_groups": groups},
            bias=False,
            norm_eps=config.layer_norm_epsilon,
        )

    qwen = import_module("transformers.models.qwen3_next.modeling_qwen3_next")
    for heads, value_heads in ((2, 4), (HEADS, HEADS)):
        size = width // heads
        config = qwen.Qwen3NextConfig(
            hidden_size=width,
            linear_num_key_heads=heads,
            linear_num_value_heads=value_heads,
            linear_key_head_dim=size,
            linear_value_head_dim=size,
        )
        default = " (heads of the default size)" if heads == 2 else ""
        yield _pair(
            "gated_delta_net",
            f"Qwen3NextGatedDeltaNet, {heads} key and {value_heads} value heads of {size}{default}",
            qwen.Qwen3NextGatedDeltaNet(config, layer_idx=0),
            qwen3_next_weights,
            width,
            {"key_size": size, "value_size": size, "num_value_heads": value_heads},
            num_heads=heads,
            norm_eps=config.rms_norm_eps,
        )


def pairs_of_mambapy(width: int) -> Iterator[Pair]:
    """Mamba with the parallel scan that the package is known for, and with its loop."""
    module = import_module("mambapy.mamba")
    for pscan in (True, False):
        theirs = module.MambaBlock(module.MambaConfig(d_model=width, n_layers=1, pscan=pscan))
        peer = f"MambaBlock, {'pscan (default)' if pscan else 'loop over the tokens'}"
        yield _pair("mamba", peer, theirs, renamed_by(MAMBA), width, bias=False)


def pairs_of_min_gru(width: int) -> Iterator[Pair]:
    """minGRU and minLSTM, computed in the space of logarithms."""
    for name, found, projection in (
        ("min_gru", "minGRU", "to_hidden_and_gate"),
        ("min_lstm", "minLSTM", "to_hidden_and_f_i_gate"),
    ):
        cls = getattr(import_module(f"minGRU_pytorch.{found}"), found)
        for projected in (False, True):

            def weights(theirs: Any, projection: str = projection) -> Weights:
                output = getattr(theirs.to_out, "weight", torch.eye(width))
                return {"input.weight": getattr(theirs, projection).weight, "output.weight": output}

            yield _pair(
                name,
                f"{found}, {'proj_out=True' if projected else 'default'}",
                cls(width, proj_out=projected or None),
                weights,
                width,
                bias=False,
                differs="" if projected else "theirs has no output projection, ours an identity",
            )


def pairs_of_xlstm(width: int) -> Iterator[Pair]:
    """The mLSTM of xLSTM 7B with the kernels in PyTorch, and the sLSTM."""
    large = import_module("xlstm.xlstm_large.model")
    kernels = import_module("mlstm_kernels.torch.backend_module")

    class WithoutStates(nn.Module):
        """The kernels that return no states, which the layer expects."""

        def __init__(self, kernel: nn.Module) -> None:
            super().__init__()
            self.kernel = kernel

        def forward(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.kernel(**inputs), None

    for kernel, chunk in (
        ("chunkwise--native_autograd", 64),
        ("chunkwise--native_autograd", 32),
        ("chunkwise--native_custbw", 64),
        ("parallel--native_autograd", None),
    ):
        backend = kernels.mLSTMBackendConfig(
            chunkwise_kernel=kernel, chunk_size=chunk or 64, return_last_states=chunk is not None
        )
        config = large.mLSTMLayerConfig(width, HEADS, mlstm_backend=backend)
        theirs = large.mLSTMLayer(config)
        if chunk is None:
            theirs.mlstm_backend = WithoutStates(theirs.mlstm_backend)
        default = " (default)" if (kernel, chunk) == ("chunkwise--native_autograd", 64) else ""
        yield _pair(
            "mlstm",
            f"mLSTMLayer of xlstm_large, {kernel}{f', chunk {chunk}' if chunk else ''}{default}",
            theirs,
            xlstm_7b_weights,
            width,
            bias=False,
            norm_eps=config.norm_eps,
            differs="theirs adds 1e-6 to the denominator",
        )
    package = import_module("xlstm")
    config = package.sLSTMLayerConfig(embedding_dim=width, num_heads=HEADS, backend="vanilla")
    yield _pair(
        "slstm",
        "sLSTMLayer, vanilla",
        package.sLSTMLayer(config),
        slstm_weights,
        width,
        norm_eps=1e-5,
        differs="theirs has block-diagonal gates and no output projection: full matrices in ours",
    )


def pairs_of_tcn(width: int) -> Iterator[Pair]:
    """A block of a TCN without dropout."""
    tcn = import_module("pytorch_tcn")

    class Branch(nn.Module):
        """What the block adds to its input; ours leaves that sum to the Decoder."""

        def __init__(self, norm: str | None) -> None:
            super().__init__()
            self.block = tcn.TCN(width, [width], dropout=0.0, use_norm=norm).network[0]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            branch: torch.Tensor = self.block(x.mT, embeddings=None, inference=False)[1]
            return branch.mT

    for norm in ("weight_norm", None):
        yield _pair(
            "convolution",
            f"TemporalBlock, {'weight_norm (default)' if norm else 'no norm'}",
            Branch(norm),
            tcn_weights,
            width,
            bias=True,
            differs="theirs also computes relu(x + output)"
            + (" and the norm of its weights, ours has the product" if norm else ""),
        )


PEERS: Mapping[str, Callable[[int], Iterator[Pair]]] = {
    "transformers": pairs_of_transformers,
    "mambapy": pairs_of_mambapy,
    "minGRU-pytorch": pairs_of_min_gru,
    "xlstm": pairs_of_xlstm,
    "pytorch-tcn": pairs_of_tcn,
}


def _pair(
    name: str,
    peer: str,
    theirs: Any,
    weights: Callable[[Any], Weights],
    width: int,
    options: dict[str, Any] | None = None,
    differs: str = "",
    **shape: Any,
) -> Pair:
    """Perturb all of `theirs`, so that every part has an effect, and copy it to ours."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    sizes = {"hidden_size": width, "num_heads": HEADS, "options": {name: options or {}}, **shape}
    ours: Any = layer(name, **sizes)
    copy_weights(ours.mixer, weights(theirs))
    return Pair(name, peer, ours, theirs, differs)


def copy_weights(mixer: nn.Module, weights: Weights) -> None:
    """Load every parameter; buffers may be missing."""
    missing, unexpected = mixer.load_state_dict(weights, strict=False)
    if unexpected or not {name for name, _ in mixer.named_parameters()}.isdisjoint(missing):
        raise ValueError(f"{missing} are missing, {unexpected} are unexpected")


def renamed_by(names: Mapping[str, str]) -> Callable[[nn.Module], Weights]:
    """Their tensors under our names, given by module or by parameter."""

    def renamed(theirs: nn.Module) -> Weights:
        weights = {}
        for name, tensor in theirs.state_dict().items():
            first, dot, rest = name.partition(".")
            weights[names.get(name) or names[first] + dot + rest] = tensor
        return weights

    return renamed


def qwen3_next_weights(theirs: Any) -> Weights:
    """They have the parts of a key head side by side: query, key, its values, their gates."""
    heads, width = theirs.num_k_heads, theirs.in_proj_qkvz.weight.shape[1]
    shared = theirs.num_v_heads // heads * theirs.head_v_dim
    sizes = [theirs.head_k_dim, theirs.head_k_dim, shared, shared]
    grouped = theirs.in_proj_qkvz.weight.view(heads, sum(sizes), width)
    query, key, value, gate = (x.flatten(0, 1) for x in grouped.split(sizes, dim=1))
    pairs = theirs.in_proj_ba.weight.view(heads, -1, width)
    beta, decay = (x.flatten(0, 1) for x in pairs.chunk(2, dim=1))
    return {
        "input.weight": torch.cat([query, key, value, gate, beta, decay]),
        "convolution.weight": theirs.conv1d.weight,
        "step_bias": theirs.dt_bias,
        "log_rates": theirs.A_log,
        "norm.weight": theirs.norm.weight,
        "output.weight": theirs.out_proj.weight,
    }


def xlstm_7b_weights(theirs: Any) -> Weights:
    """Of the package's layer and of that of transformers."""
    parts = (theirs.q, theirs.k, theirs.v, theirs.ogate_preact)
    gates = (theirs.igate_preact, theirs.fgate_preact)
    return {
        "input.weight": torch.cat([part.weight for part in parts]),
        "gates.weight": torch.cat([gate.weight for gate in gates]),
        "gates.bias": torch.cat([gate.bias for gate in gates]),
        "norm_weight": theirs.multihead_norm.weight,
        "output.weight": theirs.out_proj.weight,
    }


def slstm_weights(theirs: Any) -> Weights:
    """Their `fgate` computes the first gate, the input gate, and `igate` the second."""
    config = theirs.config

    def full(*gates: Any) -> torch.Tensor:
        blocks = [torch.block_diag(*gate.weight) for gate in gates]  # type: ignore[no-untyped-call]  # PyTorch's
        return torch.cat(blocks)

    return {
        "convolution.weight": theirs.conv1d.conv.weight,
        "convolution.bias": theirs.conv1d.conv.bias,
        "gates_of_input.weight": full(theirs.fgate, theirs.igate),
        "cell_of_input.weight": full(theirs.zgate, theirs.ogate),
        "recurrent": theirs.slstm_cell._recurrent_kernel.mT,
        "bias": theirs.slstm_cell._bias.view(4, config.num_heads, -1).transpose(0, 1).flatten(1),
        "norm_weight": 1 + theirs.group_norm.weight,
        "output.weight": torch.eye(config.embedding_dim),
        "output.bias": torch.zeros(config.embedding_dim),
    }


def tcn_weights(theirs: Any) -> Weights:
    """Theirs are (output, input, tap), the oldest tap first; ours (output, tap and input)."""
    weights = {}
    for name, convolution in (("input", theirs.block.conv1), ("output", theirs.block.conv2)):
        taps = convolution.weight.transpose(1, 2)
        weights[f"{name}.projection.weight"] = taps.flatten(1)
        weights[f"{name}.projection.bias"] = convolution.bias
    return weights
