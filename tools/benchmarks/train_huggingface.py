"""Hugging Face's Trainer and GPT2LMHeadModel as a benchmark process (see pace.py).

GPT2LMHeadModel has biases, which cannot be disabled; its GELU is the fused, faster form of its
default (`gelu_new`). Logging, saving and the progress bar are off.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from tools.benchmarks import networks
from tools.benchmarks.networks import Network
from tools.benchmarks.pace import Turns, network_of, parse


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The windows of networks.py, one by one."""

    def __init__(self, arguments: Any) -> None:
        self._tokens = networks.open_tokens(arguments.tokens)
        self._size = network_of(arguments).context_length
        self._starts = np.load(arguments.starts).flatten()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = self._starts[index]
        window = torch.from_numpy(self._tokens[start : start + self._size].astype(np.int64))
        return {"input_ids": window, "labels": window}


class Paced(TrainerCallback):
    def __init__(self, pace: Turns) -> None:
        self._pace = pace

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if not self._pace.after_step():
            control.should_training_stop = True
        return control


def main() -> None:
    arguments = parse(
        __doc__,
        starts={"type": Path, "required": True, "help": "output of networks.write_starts"},
        optim={"default": "adamw_torch_fused"},
    )
    pace = Turns(arguments.warmup_seconds)
    network = network_of(arguments)
    torch.manual_seed(networks.SEED)
    model = GPT2LMHeadModel(_model_config(network))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            _training_arguments(arguments, network, folder),
            train_dataset=Windows(arguments),
            data_collator=default_data_collator,
            callbacks=[Paced(pace)],
        )
        trainer.train()


def _model_config(network: Network) -> GPT2Config:
    return GPT2Config(
        vocab_size=network.vocab_size,
        n_positions=network.context_length,
        n_embd=network.hidden_size,
        n_layer=network.num_layers,
        n_head=network.num_heads,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def _training_arguments(arguments: Any, network: Network, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        use_cpu=arguments.device == "cpu",
        bf16=arguments.precision == "bf16",
        torch_compile=arguments.compile == "on",
        optim=arguments.optim,
        per_device_train_batch_size=network.batch_size,
        train_sampling_strategy="sequential",
        max_steps=1_000_000,
        learning_rate=networks.LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=networks.BETAS[0],
        adam_beta2=networks.BETAS[1],
        weight_decay=networks.WEIGHT_DECAY,
        max_grad_norm=networks.MAX_GRAD_NORM,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main()
