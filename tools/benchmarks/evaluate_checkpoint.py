"""Compute the loss of a checkpoint on the last tenth of a text, independent of our Evaluator.

    python -m tools.benchmarks.evaluate_checkpoint ours RUN_CHECKPOINT --text FILE --tokenizer JSON
    python -m tools.benchmarks.evaluate_checkpoint nanogpt CKPT.PT --text FILE --nanogpt DIR

prints JSON: nats per character, characters predicted, parameters. Every character of the split but
the first is predicted once, in windows of the model's context length; probabilities are computed
and summed in float64.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from common.errors import ExperimentError, exit_on_error
from common.models.base import BaseLanguageModel
from common.models.checkpoint import load_checkpoint
from tools.benchmarks.nanogpt import import_nanogpt

Logits = Callable[[torch.Tensor], torch.Tensor]  # (batch, time) -> (batch, time, vocab_size)
_BATCH = 64
_CONTEXT_WITHOUT_LIMIT = 128  # window size for models without a limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("kind", choices=("ours", "nanogpt"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="our tokenizer.json")
    parser.add_argument("--nanogpt", type=Path, help="its folder")
    arguments = parser.parse_args()
    with exit_on_error():
        text = arguments.text.read_text(encoding="utf-8")
        validation = text[int(len(text) * 0.9) :]
        if arguments.kind == "ours":
            model, logits, context = _ours(arguments.checkpoint)
            ids = _our_ids(validation, arguments.tokenizer)
        else:
            model, logits, context = _nanogpt(arguments.checkpoint, arguments.nanogpt)
            ids = _sorted_ids(validation, text)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        loss = mean_loss(logits, ids, context)
        found = {"loss": loss, "characters": len(ids) - 1, "parameters": parameters}
        print(json.dumps(found | {"context": context}))


@torch.no_grad()
def mean_loss(logits: Logits, ids: torch.Tensor, context: int) -> float:
    """Nats per token of ids (tokens,) int64, all but the first."""
    total = torch.zeros((), dtype=torch.float64)
    starts = range(0, len(ids) - 1, context)
    for first in range(0, len(starts), _BATCH):
        chosen = starts[first : first + _BATCH]
        inputs = [ids[start : min(start + context, len(ids) - 1)] for start in chosen]
        targets = [ids[start + 1 : start + 1 + context] for start in chosen]
        if len(inputs[-1]) < context:  # the last window is shorter: process it separately
            total += _nats(logits, torch.stack([inputs.pop()]), torch.stack([targets.pop()]))
        if inputs:
            total += _nats(logits, torch.stack(inputs), torch.stack(targets))
    return float(total / (len(ids) - 1))


def _nats(logits: Logits, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logarithms = torch.log_softmax(logits(inputs).double(), dim=-1)
    return -logarithms.gather(-1, targets[..., None]).sum()


def _ours(path: Path) -> tuple[torch.nn.Module, Logits, int]:
    """Load our model. Raises ExperimentError for a class outside of this repository."""
    name: str = load_checkpoint(path).state["model"]["class"]
    if not name.startswith(("common.", "projects.")):
        raise ExperimentError(f"{path} holds a {name}, which is not of this repository")
    importlib.import_module(name.rpartition(".")[0])
    model = BaseLanguageModel.load_checkpoint(path).eval()
    context = model.context_limit or _CONTEXT_WITHOUT_LIMIT
    return model, lambda inputs: model(inputs)["logits"], context


def _our_ids(text: str, tokenizer: Path) -> torch.Tensor:
    from common.data.tokenizers import load_tokenizer

    return torch.from_numpy(load_tokenizer(tokenizer).encode(text))


def _nanogpt(path: Path, folder: Path) -> tuple[torch.nn.Module, Logits, int]:
    module = import_nanogpt(folder)
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = module.GPT(module.GPTConfig(**saved["model_args"])).eval()
    weights = {name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()}
    model.load_state_dict(weights)

    def logits(inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(inputs, inputs)[0]  # returns all positions only with targets
        return result

    return model, logits, saved["model_args"]["block_size"]


def _sorted_ids(text: str, whole: str) -> torch.Tensor:
    """Character ids as in its prepare.py: sorted, from 0."""
    numbers = {character: index for index, character in enumerate(sorted(set(whole)))}
    return torch.from_numpy(np.array([numbers[character] for character in text], dtype=np.int64))


if __name__ == "__main__":
    main()
