"""The shares of quality.py against a model that knows the text, and one that does not."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from common.data import stories
from common.data.tokenizers import CharTokenizer
from common.errors import UsageError
from projects.diffusion.compare import summarise
from projects.diffusion.quality import GAP, grammar_of, infilling_table, writing_table

STORIES = [text for text, _ in stories.generate_stories(40, seed=0)]
TOKENIZER = CharTokenizer(sorted({*"".join(STORIES)}))
TOKENS = np.array([i for text in STORIES for i in (0, *TOKENIZER.encode(text))] + [0] * 900)
WRITING = {"temperature": 1.0, "seed": 0}


class Memory:
    """Continues the validation text from where the prompt stands in it; `wrong` writes one letter only."""

    def __init__(self, wrong: bool = False) -> None:
        self.wrong = wrong

    def generate(
        self, prompt: torch.Tensor, count: int, *, num_sequences: int = 1, **options: Any
    ) -> torch.Tensor:
        rows = []
        for row in prompt.repeat_interleave(num_sequences, dim=0):
            text = TOKENS.tobytes()
            at = text.find(row.numpy().astype(TOKENS.dtype).tobytes()) // TOKENS.itemsize
            new = torch.from_numpy(TOKENS[at + len(row) : at + len(row) + count])
            rows.append(torch.cat([row, torch.ones_like(new) if self.wrong else new]))
        return torch.stack(rows)


def run(model: Any, dataset: str = "stories", context_length: int = 800) -> Any:
    data = SimpleNamespace(path=None, dataset=dataset)
    text = SimpleNamespace(tokenizer=TOKENIZER, tokens=lambda split: TOKENS)
    config = SimpleNamespace(data=data, context_length=context_length)
    return SimpleNamespace(name="it", model=model, text=text, config=config)


@pytest.mark.parametrize(("wrong", "share"), [(False, "100% (100%)"), (True, "0% (0%)")])
def test_shares_of_a_model_that_knows_the_text(wrong: bool, share: str) -> None:
    table = writing_table(run(Memory(wrong)), [8], 4, WRITING)
    assert table == [["order", "799 steps"], ["next token", share]]
    table = infilling_table(run(Memory(wrong)), 30, WRITING)
    assert table == [["context", f"{GAP} tokens filled in"], ["prefix only", share]]


def test_texts_without_a_grammar_and_short_windows_are_errors() -> None:
    with pytest.raises(UsageError, match="with a grammar"):
        grammar_of(run(Memory(), "shakespeare"))
    with pytest.raises(UsageError, match="no validation text has"):
        infilling_table(run(Memory(), context_length=50), 30, WRITING)


def test_a_row_of_the_comparison_has_flops_mean_and_interval() -> None:
    one = {"dataset": "stories", "objective": "next_token", "steps": 10, "parameters": 1000}
    one |= {"tokens": 200, "layers": 2, "hidden": 8, "context": 16}
    table = summarise(pd.DataFrame([one | {"bits": bits} for bits in (1.0, 2.0, 3.0)]))
    row = table.iloc[0]
    assert row["flops"] == 200 * (6 * 1000 + 12 * 2 * 8 * 16)
    assert row["bits"] == 2.0 and row["seeds"] == 3
    assert math.isclose(row["half_width"], 4.302653 / math.sqrt(3), rel_tol=1e-6)
