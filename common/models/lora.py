"""Low-rank adapters (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models").

    model = load_pretrained(folder, dtype="auto")
    add_lora(model, rank=8, targets=["query_key_value", "mixer.output"])
    ...                                # train; a checkpoint has the adapters only
    merge_lora(model)                  # an ordinary model again

Only the adapters are trained. All other weights are frozen: the matrices stay in the dtype in which they are
stored (frozen.py), the rest (biases, norms) is in float32. A checkpoint identifies the base by the SHA-256 of
its weights, and is loaded only into a model with the same ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import CheckpointError, ModelError
from common.models.frozen import FrozenEmbedding, FrozenLinear, computed_dtype


class LoRALinear(FrozenLinear):
    """W x + b + (alpha / rank) B A x (Hu et al. 2021, equation 3), where A and B are trained.

    `lora_a`: (rank, in_features); `lora_b`: (out_features, rank), initially 0: the layer then computes what
    it did. Dropout applies to the input of A.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(linear)
        self.scale = alpha / rank
        dtype, device = computed_dtype(self.frozen), self.frozen.device
        self.lora_a = nn.Parameter(torch.empty(rank, self.in_features, dtype=dtype, device=device))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank, dtype=dtype, device=device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as in loralib, and nn.Linear
        self.dropout = nn.Dropout(dropout)

    @property
    def weight(self) -> torch.Tensor:
        """W + (alpha / rank) B A, (out_features, in_features), in float32 or better."""
        return torch.add(super().weight, self.lora_b @ self.lora_a, alpha=self.scale)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)"""
        rows = input.flatten(0, -2)
        inner = F.linear(self.dropout(rows), self.lora_a)
        output = torch.addmm(super().forward(rows), inner, self.lora_b.t(), alpha=self.scale)
        return output.view(*input.shape[:-1], self.out_features)


def add_lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = ("*",),
    dropout: float = 0.0,
) -> None:
    """Freeze `model` in place, and add trained adapters to its linear layers.

    Args:
        alpha: the adapters are multiplied by alpha / rank.
        targets: patterns of names of linear layers, or of their ends: `mixer.output`, `output`,
            `blocks.0.*`. The output projection `head` has no adapter. A fused layer, such as
            `query_key_value`, has one adapter.
        dropout: of the adapters' input.
    Raises ModelError for a pattern without a layer, and for a model that has adapters or is quantised.
    """
    if getattr(model, "lora", None) or getattr(model, "quantization", None):
        raise ModelError(
            "the model already has adapters, or is quantised", "use the original model"
        )
    adapted = _find_targets(model, targets)
    base = _digest(model)
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            frozen: nn.Module = FrozenLinear(module)
            if name in adapted:
                frozen = LoRALinear(module, rank, alpha, dropout)
            model.set_submodule(name, frozen)
        elif type(module) is nn.Embedding:
            model.set_submodule(name, FrozenEmbedding(module))
    for name, parameter in model.named_parameters():
        if not name.endswith(".frozen"):
            parameter.data = parameter.data.to(computed_dtype(parameter))
    model.lora = {  # type: ignore[assignment]  # no module, no tensor
        "rank": rank,
        "alpha": alpha,
        "targets": list(targets),
        "dropout": dropout,
        "base_sha256": base,
    }


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Add the adapters of `model` to its weights in place: it has ordinary layers in float32 again, all of
    which can be trained. Does nothing if there are none."""
    if getattr(model, "lora", None) is None:
        return
    for name, module in list(model.named_modules()):
        if isinstance(module, FrozenLinear):
            with torch.device("meta"):  # skip initialising a weight
                linear = nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight, linear.bias = nn.Parameter(module.weight), module.bias
            model.set_submodule(name, linear)
        elif isinstance(module, FrozenEmbedding):
            shape = module.num_embeddings, module.embedding_dim
            model.set_submodule(name, nn.Embedding(*shape, _weight=module.weight))
    model.requires_grad_(True)
    model.lora = None  # type: ignore[assignment]  # no module, no tensor


def lora_as_saved(model: nn.Module, saved: Mapping[str, Any] | None) -> None:
    """Prepare `model` for the weights of a checkpoint, whose `lora` is `saved`: a checkpoint without adapters
    fills the merged model.

    Raises CheckpointError if the checkpoint has adapters, and `model` has none or another base.
    """
    own = getattr(model, "lora", None)
    if saved is None:
        return merge_lora(model)
    if own is None:
        raise CheckpointError(
            "the checkpoint holds only the adapters of LoRA, not the model",
            "load its base and call add_lora first; load_run(NAME) does both",
        )
    for key in ("rank", "alpha", "base_sha256"):
        if own[key] != saved.get(key):
            raise CheckpointError(
                f"the adapters do not fit the model: {key} was {saved.get(key)}, now {own[key]}",
                "restore the base that they were trained on" if key == "base_sha256" else "",
            )
    return None


def _find_targets(model: nn.Module, targets: Sequence[str]) -> set[str]:
    """The names of the linear layers that `targets` match."""
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name != "head"
    ]
    found: set[str] = set()
    for target in targets:
        matched = [n for n in names if fnmatchcase(n, target) or fnmatchcase(n, f"*.{target}")]
        if not matched:
            kinds = dict.fromkeys(re.sub(r"^(.*\.)?\d+\.", "", name) for name in names)
            raise ModelError(
                f"lora.targets: no linear layer matches '{target}'",
                f"there are: {', '.join(kinds) or 'none'}",
            )
        found.update(matched)
    return found


def _digest(model: nn.Module) -> str:
    """SHA-256 of names, shapes, dtypes and values of all parameters."""
    digest = sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
