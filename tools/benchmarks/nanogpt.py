"""Load nanoGPT's model from the user's copy, and convert its weights to our Decoder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

# The names of nanoGPT's modules, and of ours.
_OUTSIDE = {
    "transformer.wte": "token_embedding",
    "transformer.wpe": "position_embedding",
    "transformer.ln_f": "final_norm",
}
_IN_BLOCK = {
    "ln_1": "mixer_norm",
    "attn.c_attn": "mixer.query_key_value",
    "attn.c_proj": "mixer.output",
    "ln_2": "feedforward_norm",
    "mlp.c_fc": "feedforward.input",
    "mlp.c_proj": "feedforward.output",
}


def import_nanogpt(folder: Path) -> ModuleType:
    """model.py of `folder`, with GPT and GPTConfig."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None and spec.loader is not None  # always set for a .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass requires it
    spec.loader.exec_module(module)
    return module


def save_weights(model: nn.Module, path: Path) -> None:
    """Save the weights of nanoGPT's GPT, without the head, which is the token embedding."""
    from safetensors.torch import save_file

    weights = {name: value for name, value in model.state_dict().items() if "lm_head" not in name}
    save_file(weights, path)


def load_into_decoder(path: Path, model: nn.Module) -> None:
    """Load the output of `save_weights` into a Decoder (preset gpt2, bias=False)."""
    from safetensors.torch import load_file

    weights = {_our_name(name): value for name, value in load_file(path).items()}
    model.load_state_dict(weights)


def _our_name(name: str) -> str:
    module, _, parameter = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{parameter}"
    _, _, index, part = module.split(".", 3)  # transformer.h.<index>.<part>
    return f"blocks.{index}.{_IN_BLOCK[part]}.{parameter}"


def without_last_target(targets: torch.Tensor) -> torch.Tensor:
    """Mask the last of `targets` (batch, time), which our model does not predict from a window.
    nanoGPT ignores the target -1.
    """
    targets = targets.clone()
    targets[:, -1] = -1
    return targets
