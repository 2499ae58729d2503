"""Documents in one sequence that do not see one another: as if each stood alone."""

from __future__ import annotations

import pytest
import torch

from common.models import Decoder

END = 0
SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "context_length": 2048}


def packed(*lengths: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(1, time) ids of documents that each begin with the end of the one before; and each alone."""
    draw = torch.Generator().manual_seed(3)
    parts = [torch.randint(1, 50, (1, n), generator=draw) for n in lengths]
    parts = [parts[0], *(torch.cat([torch.tensor([[END]]), part], 1) for part in parts[1:])]
    return torch.cat(parts, dim=1), parts


@pytest.mark.parametrize(
    "lengths", [(5, 9, 1, 30), (700, 600)]
)  # written out, and PyTorch's kernel
@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_document_is_computed_as_if_it_stood_alone(
    lengths: tuple[int, ...], checkpointing: bool
) -> None:
    torch.manual_seed(0)
    model = Decoder(50, preset="llama", num_kv_heads=2, **SHAPE)  # RoPE: only distances count
    ids, parts = packed(*lengths)
    model.mask_documents(END)
    model.activation_checkpointing = checkpointing
    for mode in (model.train, model.eval):
        mode()
        logits = model(ids)["logits"]
        alone = torch.cat([model(part)["logits"] for part in parts], dim=1)
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
    loss = model.train().compute_loss(ids, ids)
    loss.backward()
    assert model.token_embedding.weight.grad is not None
    model.end_of_text = None
    assert not torch.allclose(model(ids)["logits"], logits, atol=1e-3), "else there is no mask"


def test_what_stands_before_a_document_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Decoder(50, **SHAPE)
    model.mask_documents(END)
    ids, _ = packed(8, 12)
    other = ids.clone()
    other[:, :8] = 7
    torch.testing.assert_close(model(ids)["logits"][:, 8:], model(other)["logits"][:, 8:])


@pytest.mark.parametrize("layers", ["lstm", "mamba2 attention", "gated_delta_net local_attention"])
def test_recurrent_layers_and_hybrids_start_over_with_each_document(layers: str) -> None:
    torch.manual_seed(0)
    model = Decoder(50, layers=layers, positions="none", **SHAPE)
    model.mask_documents(END)
    ids, parts = packed(5, 9, 1, 70)
    alone = torch.cat([model(part)["logits"] for part in parts], dim=1)
    torch.testing.assert_close(model(ids)["logits"], alone, atol=1e-5, rtol=1e-5)
