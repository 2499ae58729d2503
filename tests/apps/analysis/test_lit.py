"""The folder for the Learning Interpretability Tool: its data, and a script that needs nothing else."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.analysis.lit import cut_pieces, write_lit_folder
from apps.analysis.surprisal import measure_surprisal
from common.data.tokenizers import BPETokenizer
from common.errors import ConfigError, DataError
from common.models import BaseLanguageModel, Decoder
from projects.speedrun.model import NeuralNGram

TOKENIZER = BPETokenizer.train(["the cat sat on the mat. " * 50], 300)
END = TOKENIZER.end_of_text
DOCUMENTS = ["the cat sat", 'the <b>dog</b>, "é"', "on the mat. " * 4]
TOKENS = np.concatenate([[*TOKENIZER.encode(text), END] for text in DOCUMENTS]).astype(np.uint16)


def write(folder: Path, model: BaseLanguageModel, tokens: np.ndarray = TOKENS, count: int = 99):  # type: ignore[no-untyped-def]  # a pair
    return write_lit_folder(
        folder, model, TOKENIZER, tokens,
        context_length=8, num_examples=count, title="title", about={"name": "exp"},
    )  # fmt: skip


def decoder() -> Decoder:
    torch.manual_seed(0)
    size = TOKENIZER.vocab_size
    return Decoder(size, num_layers=1, num_heads=2, hidden_size=8, context_length=8)


def test_pieces_are_documents_with_the_border_before_them() -> None:
    tokens = np.array([5, 6, 0, 7, 8, 9, 0, 0, 1, 2, 3, 4])
    pieces = [piece.tolist() for piece in cut_pieces(tokens, 0, 3)]
    assert pieces == [[5, 6], [0, 7, 8], [0, 1, 2], [3, 4]]


def test_the_files_say_what_the_model_says(tmp_path: Path) -> None:
    model = decoder()
    count, reason = write(tmp_path / "new" / "lit", model)
    folder = tmp_path / "new" / "lit"
    records = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    pieces = cut_pieces(TOKENS, END, 8)
    assert count == len(records) == len(pieces) and reason is None
    table = model.token_embedding.weight.detach().numpy()
    with (folder / "tokens.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(map(len, pieces))
    for record, piece in zip(records, pieces, strict=True):
        ids = piece.astype(np.int64)
        found = measure_surprisal(
            model, ids, token_bytes=TOKENIZER.token_bytes, context_length=len(ids)
        )
        assert record["text"] == TOKENIZER.decode(ids.tolist())
        assert record["surprisal_bits"][0] is None and record["expected"][0] == []
        assert record["surprisal_bits"][1:] == found.bits[1:].tolist()
        assert record["bits_per_token"] == pytest.approx(found.bits[1:].mean())
        assert len(record["tokens"]) == len(record["expected"]) == len(ids)
        assert record["embedding"] == pytest.approx(table[ids].mean(axis=0), abs=1e-6)
        for pairs in record["expected"][1:]:
            probabilities = [probability for _, probability in pairs]
            assert len(pairs) == 5 and probabilities == sorted(probabilities, reverse=True)
        mine = [row for row in rows if row["example"] == record["id"]]
        assert [row["token"] for row in mine] == record["tokens"]
        assert [float(row["bits"]) for row in mine[1:]] == record["surprisal_bits"][1:]
    assert json.loads((folder / "about.json").read_text())["name"] == "exp"
    assert "title" in (folder / "README.md").read_text()


def test_examples_are_spread_over_the_text(tmp_path: Path) -> None:
    count, _ = write(tmp_path / "lit", decoder(), count=2)
    lines = (tmp_path / "lit" / "examples.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert count == 2 and texts[0] == DOCUMENTS[0] and texts[1] in DOCUMENTS[2]


def test_a_model_without_a_table_has_no_embedding_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NeuralNGram(TOKENIZER.vocab_size, hidden_size=8, intermediate_size=8)
    _, reason = write(tmp_path / "lit", model)
    assert reason is not None and "NeuralNGram" in reason
    first = json.loads((tmp_path / "lit" / "examples.jsonl").read_text().splitlines()[0])
    assert "embedding" not in first
    assert "`embedding`" not in (tmp_path / "lit" / "README.md").read_text()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        write(tmp_path, decoder())
    with pytest.raises(DataError, match="no piece"):
        write(tmp_path / "lit", decoder(), np.array([END, END], dtype=np.uint16))
    assert not (tmp_path / "lit").exists()


def test_the_script_names_what_it_needs_and_is_valid(tmp_path: Path) -> None:
    write(tmp_path / "lit", decoder())
    script = (tmp_path / "lit" / "run_lit.py").read_text()
    found = re.search(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", script)  # PEP 723
    assert found is not None
    lines = [line[2:] for line in found["content"].splitlines()]
    metadata = tomllib.loads("\n".join(lines))
    (requirement,) = metadata["dependencies"]
    assert requirement.startswith("lit-nlp==")
    assert requirement in (tmp_path / "lit" / "README.md").read_text()
    compile(script, "run_lit.py", "exec")
    imported = set(re.findall(r"^(?:from|import) (\w+)", script, re.MULTILINE))
    assert not imported & {"common", "tools", "projects", "torch"}
