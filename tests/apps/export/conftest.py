"""Tiny models of every family that know a text by heart, so that their logits have margins."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.data.tokenizers import BPETokenizer
from common.models import Decoder

TEXT = "the cat sat on the mat and the dog's 12 toys were its own; it saw 3456 birds, then slept!\n"
CONTEXT_LENGTH = 48
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"preset": "gpt2"},
    "llama": {"preset": "llama", "num_kv_heads": 2, "rope_theta": 500.0},
    # Stretched as Llama 3.1 is, so that within the context some pairs are turned more slowly.
    "llama3": {
        "preset": "llama",
        "num_kv_heads": 2,
        "rope_scaling": {"factor": 4.0, "original_context_length": 16},
    },
    "qwen2": {"preset": "qwen2", "num_kv_heads": 2, "tie_embeddings": True, "norm_eps": 1e-5},
    "qwen3": {"preset": "qwen3", "num_kv_heads": 2, "head_size": 24},
}


def trained(tokenizer: BPETokenizer, vocab_size: int | None = None, **arguments: Any) -> Decoder:
    """A Decoder that continues TEXT; `vocab_size` may be more than the tokenizer has."""
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "context_length": CONTEXT_LENGTH}
    model = Decoder(vocab_size or tokenizer.vocab_size, **sizes | arguments)
    with torch.no_grad():  # biases and gains that matter: as they are made, they are all 0 or 1
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    ids = torch.from_numpy(tokenizer.encode(TEXT * 20))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        starts = torch.randint(0, len(ids) - 32, (8,), generator=generator)
        batch = torch.stack([ids[start : start + 32] for start in starts.tolist()])
        loss = model.compute_loss(batch, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def random_model(**arguments: Any) -> Decoder:
    """Small and far from uniform."""
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "context_length": 24}
    model = Decoder(50, **sizes | arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train([TEXT * 20], 320)
