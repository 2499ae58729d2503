"""The GPT-2 networks that all contestants train, and their common token order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # they load torch, not needed by the parent command
    from common.data.loader import RandomWindows
    from common.data.token_files import Tokens

# AdamW with weight decay on matrices only, as in config/train_shakespeare_char.py of nanoGPT; the
# learning rate is constant, because small differences of schedules would hide others.
LEARNING_RATE = 3e-4
BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0
LOG_EVERY_STEPS = 10
SEED = 0

_NUM_TOKENS = 1_000_000
_PLANNED_STEPS = 8192  # batches before the windows of the peers repeat


@dataclass(frozen=True)
class Network:
    """GPT-2 without biases and dropout, with tied embeddings, and its batch size."""

    vocab_size: int
    num_layers: int
    num_heads: int
    hidden_size: int
    context_length: int
    batch_size: int

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context_length

    @property
    def flops_per_token(self) -> float:
        """Forward and backward: 6 N + 12 L H Q T (Chowdhery et al. 2022, "PaLM", appendix B).

        N excludes the position embedding, as in nanoGPT.
        """
        width, layers = self.hidden_size, self.num_layers
        parameters = self.vocab_size * width + layers * (12 * width + 2) * width + width
        return 6 * parameters + 12 * layers * width * self.context_length


NETWORKS = {
    "tiny": Network(65, 1, 2, 16, 16, 4),  # to try the benchmark itself
    "0.8M": Network(65, 4, 4, 128, 64, 12),
    "10.6M": Network(65, 6, 6, 384, 256, 8),
    "30M": Network(50304, 6, 6, 384, 256, 4),
    "124M": Network(50304, 12, 12, 768, 1024, 12),
}


def write_tokens(network: Network, path: Path) -> None:
    """Write a token file (little-endian uint16) with Zipf-distributed tokens."""
    rng = np.random.default_rng(SEED)
    weights = 1 / np.arange(1, network.vocab_size + 1)
    tokens = rng.choice(network.vocab_size, _NUM_TOKENS, p=weights / weights.sum())
    tokens.astype("<u2").tofile(path)


def open_tokens(path: Path) -> Tokens:
    """(tokens,) uint16, memory-mapped."""
    tokens: Tokens = np.memmap(path, dtype="<u2", mode="r")
    return tokens


def windows(tokens: Tokens, network: Network, accumulation: int = 1) -> RandomWindows:
    """The batches of our Trainer: windows of `context_length` inputs.

    Excludes the last token, so that peers that read targets one token further find them.
    """
    from common.data.loader import RandomWindows

    return RandomWindows(
        tokens[:-1],
        batch_size=network.batch_size // accumulation,
        context_length=network.context_length,
        seed=SEED,
    )


def write_starts(tokens: Tokens, network: Network, accumulation: int, path: Path) -> None:
    """Write the starts of the windows of each batch for the peers, (batches, batch) int64 as .npy.

    Determined from windows over the positions themselves.
    """
    positions = np.arange(len(tokens), dtype=np.uint32)
    source = windows(positions, network, accumulation)
    batches = (source.batch(index)["input_ids"][:, 0].numpy() for index in range(_PLANNED_STEPS))
    np.save(path, np.stack(list(batches)))
