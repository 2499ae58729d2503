"""A run of the baseline as training leaves it, in a second: its weights are random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.config import dump_config, load_config
from common.data.prepare import prepare
from common.data.token_files import TokenDataset
from common.experiments.run import start_experiment
from common.models import BaseLanguageModel
from common.utils.paths import get_runs_dir
from projects.baseline.train import Config, build

CONFIG = """
data: {path: %s, tokenizer: %s, vocab_size: 300, eval_batch_size: 4}
model: {num_layers: 1, hidden_size: 16, num_heads: 2, context_length: 16}
training: {device: cpu}
"""


def make_run(
    name: str, text: Path, tokenizer: str = "char", overrides: Sequence[str] = (), **facts: Any
) -> tuple[Config, BaseLanguageModel, TokenDataset]:
    """Write run `name` over `text`, with `facts` for `start_experiment`; returns what `load_run` finds."""
    directory = get_runs_dir() / name
    directory.mkdir(parents=True)
    path = directory / "config.yaml"
    path.write_text(CONFIG % (text, tokenizer))
    config = load_config(path, Config, overrides)
    known = {"project": "baseline", "config": config.model_dump(mode="json")}
    with start_experiment(name, config_text=dump_config(config), **known | facts) as run:
        run.log({"loss": 5.0}, step=5, split="val")
    data = prepare(config.data)
    torch.manual_seed(0)
    model = build(config).model
    with torch.no_grad():  # far from uniform, so that what is measured says something
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_checkpoint(directory / "checkpoints" / "step_5", fingerprint=data.fingerprint)
    return config, model, data
