"""nanoGPT as a benchmark process (see pace.py): its GPT, with the steps of its train.py.

Written against nanoGPT's public classes. Omitted parts cost nothing in the measurement: the
GradScaler, which has no effect outside of float16, evaluations, and the MFU estimate. The windows
are given (see networks.py) instead of drawn, so that all contestants see the same tokens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.benchmarks import nanogpt, networks
from tools.benchmarks.pace import Steps, choose_pace, network_of, parse

Batch = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    arguments = parse(
        __doc__,
        nanogpt={"type": Path, "required": True},
        starts={"type": Path, "required": True, "help": "output of networks.write_starts"},
        save_weights={"type": Path, "help": "write the initial weights"},
        as_ours={"action": "store_true", "help": "targets as our model has them"},
    )
    pace = choose_pace(arguments)
    network = network_of(arguments)
    torch.manual_seed(networks.SEED)
    if arguments.device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    module = nanogpt.import_nanogpt(arguments.nanogpt)
    config = module.GPTConfig(
        block_size=network.context_length,
        vocab_size=network.vocab_size,
        n_layer=network.num_layers,
        n_head=network.num_heads,
        n_embd=network.hidden_size,
        dropout=0.0,
        bias=False,
    )
    model = module.GPT(config).to(arguments.device)
    if arguments.save_weights:
        nanogpt.save_weights(model, arguments.save_weights)
    _train(model, arguments, pace)
    if isinstance(pace, Steps):
        pace.finish()


def _train(model: Any, arguments: Any, pace: Any) -> None:
    """The training loop of train.py, in its order."""
    device, accumulation = arguments.device, arguments.accumulation
    device_type = "cuda" if "cuda" in device else "cpu"
    optimizer = model.configure_optimizers(
        networks.WEIGHT_DECAY, networks.LEARNING_RATE, networks.BETAS, device_type
    )
    if arguments.compile == "on":
        model = torch.compile(model)
    context = _context(arguments.precision, device_type)
    batches = _Batches(arguments)
    log_every_steps = pace.log_every_steps or networks.LOG_EVERY_STEPS
    x, y = batches.next()
    iteration = 0
    while True:
        for group in optimizer.param_groups:
            group["lr"] = networks.LEARNING_RATE
        for _ in range(accumulation):
            with context:
                _, loss = model(x, y)
                loss = loss / accumulation
            x, y = batches.next()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), networks.MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if iteration % log_every_steps == 0:
            pace.record(loss.item() * accumulation)
        iteration += 1
        if not pace.after_step():
            break


def _context(precision: str, device_type: str) -> AbstractContextManager[Any]:
    """On a CPU train.py always computes in float32; bf16 is one changed line."""
    if precision == "fp32":
        return nullcontext()
    return torch.amp.autocast(device_type=device_type, dtype=torch.bfloat16)


class _Batches:
    """get_batch of train.py, with the starts of the windows given."""

    def __init__(self, arguments: Any) -> None:
        self._path: Path = arguments.tokens
        self._device: str = arguments.device
        self._as_ours: bool = arguments.as_ours
        self._size = network_of(arguments).context_length
        self._starts = np.load(arguments.starts)
        self._index = 0

    def next(self) -> Batch:
        data = np.memmap(self._path, dtype=np.uint16, mode="r")
        starts, size = self._starts[self._index % len(self._starts)], self._size
        self._index += 1
        x = torch.stack([torch.from_numpy(data[i : i + size].astype(np.int64)) for i in starts])
        y = torch.stack(
            [torch.from_numpy(data[i + 1 : i + 1 + size].astype(np.int64)) for i in starts]
        )
        if self._as_ours:
            y = nanogpt.without_last_target(y)
        if "cuda" in self._device:
            return (
                x.pin_memory().to(self._device, non_blocking=True),
                y.pin_memory().to(self._device, non_blocking=True),
            )
        return x.to(self._device), y.to(self._device)


if __name__ == "__main__":
    main()
