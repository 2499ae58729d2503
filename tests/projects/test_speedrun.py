"""The neural n-gram model: what it sees, its loss, its text; and that the record's configuration trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.models.loss import next_token_loss
from common.utils import query_experiments
from common.utils.paths import REPOSITORY_ROOT
from projects.speedrun.model import NeuralNGram
from tests.fork_server import ForkServer

VOCAB = 7


def model(window: int = 3) -> NeuralNGram:
    torch.manual_seed(0)
    made = NeuralNGram(VOCAB, window=window, hidden_size=8, intermediate_size=16).double()
    torch.nn.init.normal_(made.head.weight)
    torch.nn.init.normal_(made.blocks[0].output.weight)
    return made.eval()


@pytest.mark.parametrize("window", [1, 3, 5])
def test_a_prediction_depends_on_the_tokens_of_its_window_and_on_no_other(window: int) -> None:
    net, ids = model(window), torch.randint(0, VOCAB, (1, 9))
    logits = net(ids)["logits"]
    for position in range(9):
        changed = ids.clone()
        changed[0, position] = (ids[0, position] + 1) % VOCAB
        differs = (net(changed)["logits"] != logits).any(dim=-1)[0]
        expected = [position <= i < position + window for i in range(9)]
        assert differs.tolist() == expected


def test_the_embedding_is_the_sum_of_one_table_per_distance() -> None:
    net, ids = model(), torch.tensor([[4, 2, 6]])
    tables = net.embedding.tables
    outside = tables[-1]
    expected = [
        tables[4] + 2 * outside,
        tables[2] + tables[VOCAB + 4] + outside,
        tables[6] + tables[VOCAB + 2] + tables[2 * VOCAB + 4],
    ]
    torch.testing.assert_close(net.embedding(ids)[0], torch.stack(expected))


def test_its_loss_is_that_of_its_logits_and_generation_with_the_cache_is_that_without() -> None:
    net, ids = model(), torch.randint(0, VOCAB, (2, 6))
    logits = net(ids)["logits"]
    torch.testing.assert_close(net.compute_loss(ids, ids), next_token_loss(logits, ids))
    written = net.generate(ids, 12, temperature=0)
    for row in range(12):
        upto = written[:, : 6 + row]
        assert torch.equal(net(upto)["logits"][:, -1].argmax(-1), written[:, 6 + row])


@pytest.mark.slow
def test_the_configuration_of_the_record_trains(fork_server: ForkServer, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 400)
    script = REPOSITORY_ROOT / "projects/speedrun/train.py"
    arguments = ("--config", "configs/char_cpu.yaml", f"data.path={text}", "training.max_steps=60")
    result = fork_server.run(script, *arguments)
    assert result.returncode == 0, result.stderr
    found = query_experiments("SELECT loss FROM experiments WHERE split = 'val'")["loss"]
    assert found.iloc[-1] < 0.5
