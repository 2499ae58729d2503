"""The table of HUGGINGFACE_GUIDE.md: what loads, trains, is written back and exported of each family, from tiny models of each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from apps.export.gguf import export_gguf
from apps.export.gguf_tensors import ARCHITECTURES
from apps.export.gguf_vocabulary import Vocabulary, vocabulary_of
from apps.export.hub_format import save_pretrained
from common.data.tokenizers import BPETokenizer
from common.models import Decoder, load_pretrained
from common.models.config import DecoderConfig
from common.models.hub.config import read_config, settings
from tests.apps.export.llama_cpp_models import without_limits
from tests.common.models.hub.transformers_models import CONFIGS, make

GUIDE = Path(__file__).parents[3] / "HUGGINGFACE_GUIDE.md"
SEEDS = range(40)  # of the shapes whose limits in llama.cpp are collected


def trains(model: Decoder, ids: torch.Tensor) -> bool:
    """One step: a finite loss, and gradients everywhere that are finite and not all 0."""
    loss = model.train().compute_loss(ids, ids)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.parameters()]
    reached = all(g is not None and bool(g.isfinite().all()) for g in gradients)
    used = sum(bool(g.any()) for g in gradients if g is not None)
    torch.optim.AdamW(model.parameters()).step()
    model.eval().zero_grad()
    return bool(loss.isfinite()) and reached and used == len(gradients)


def limits(family: str) -> str:
    """What llama.cpp does not compute of what the family may have."""
    found: dict[str, None] = {}
    for seed in SEEDS:
        theirs = CONFIGS[family](random.Random(f"{family} {seed}"))
        config = DecoderConfig(**read_config(theirs.to_dict())[2])
        found |= dict.fromkeys(ARCHITECTURES[family].limits(config, settings(config)))
    return f"yes, but not: {'; '.join(sorted(found))}" if found else "yes"


def row(family: str, vocabulary: Vocabulary, folder: Path) -> list[str]:
    def change(config: object) -> None:
        without_limits(config)
        config.vocab_size = len(vocabulary.tokens)  # type: ignore[attr-defined]

    make(family, 0, change).save_pretrained(folder / "theirs")
    model = load_pretrained(folder / "theirs")
    ids = torch.randint(model.vocab_size, (8, 40), generator=torch.Generator().manual_seed(0))
    trained = "yes" if trains(model, ids) else "no"
    save_pretrained(model, folder / "back")  # transformers gives the same logits
    export_gguf(model, vocabulary, folder / "a.gguf", "f32")  # so does llama.cpp
    return [f"`{family}`", "yes", trained, "yes", limits(family)]


def rows_of_the_guide() -> list[list[str]]:
    """`model_type`, loads, trains, written back, GGUF; without the first two columns, which are prose."""
    table = GUIDE.read_text(encoding="utf-8").split("| family |")[1].split("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")][2:]
        for line in table.splitlines()[2:]
    ]


@pytest.mark.slow
def test_the_table_of_the_guide_is_what_happens(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    vocabulary = vocabulary_of(tokenizer)
    rows = [row(family, vocabulary, tmp_path / family) for family in CONFIGS]
    right = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    assert sorted(rows_of_the_guide()) == sorted(rows), f"the guide should have\n{right}"
