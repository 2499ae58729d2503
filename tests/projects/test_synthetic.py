"""The synthetic tasks: answers recomputed in plain Python, batches that depend on seed and index alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.data.batch import IGNORE_INDEX
from projects.synthetic import tasks
from projects.synthetic.tasks import TASKS, TaskBatches
from projects.synthetic.train import Config, build


def rows_of(name: str, length: int) -> list[tuple[list[int], list[int]]]:
    inputs, labels = TASKS[name][0](np.random.default_rng(0), 50, length)
    assert inputs.shape == labels.shape
    assert inputs.min() >= 0 and inputs.max() < TASKS[name][1] > labels.max()
    return list(zip(inputs.tolist(), labels.tolist(), strict=True))


@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_parity(length: int) -> None:
    for inputs, labels in rows_of("parity", length):
        assert labels[0] == IGNORE_INDEX
        assert labels[1:] == [sum(inputs[:end]) % 2 for end in range(1, length + 1)]


@pytest.mark.parametrize("length", [2, 3, 4, 5, 40])
def test_modular_arithmetic_is_what_python_computes(length: int) -> None:
    signs = {tasks.PLUS: "+", tasks.MINUS: "-", tasks.TIMES: "*"}
    for inputs, labels in rows_of("modular_arithmetic", length):
        assert inputs[-2] == tasks.EQUALS
        expression = "".join(signs.get(token, str(token)) for token in inputs[:-2])
        assert labels[-1] == eval(expression) % tasks.MODULUS
        assert set(labels[:-1]) == {IGNORE_INDEX}


@pytest.mark.parametrize("length", [4, 20, 128])
def test_associative_recall_asks_every_key_once(length: int) -> None:
    for inputs, labels in rows_of("associative_recall", length):
        half = len(inputs) // 2
        values = dict(zip(inputs[0:half:2], inputs[1:half:2], strict=True))
        assert sorted(inputs[half::2]) == sorted(values) and len(values) == half // 2
        for at in range(half, 2 * half, 2):
            assert labels[at : at + 2] == [IGNORE_INDEX, values[inputs[at]]]


@pytest.mark.parametrize("length", [10, 64])
def test_selective_copying_copies_what_is_no_blank(length: int) -> None:
    for inputs, labels in rows_of("selective_copying", length):
        asked = inputs.index(tasks.ASK)
        shown = [token for token in inputs[:asked] if token != tasks.BLANK]
        assert labels[asked + 1 :] == inputs[asked + 1 :] == shown
        assert set(labels[: asked + 1]) == {IGNORE_INDEX}


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_depends_on_seed_stream_and_index_alone(name: str) -> None:
    def batch(index: int, seed: int = 0, stream: int = 0) -> torch.Tensor:
        return TaskBatches(name, 4, (16, 16), seed, stream).batch(index)["input_ids"]

    assert torch.equal(batch(3), batch(3))
    for other in (batch(4), batch(3, seed=1), batch(3, stream=1)):
        assert not torch.equal(batch(3), other)


def test_the_experiment_evaluates_longer_texts() -> None:
    experiment = build(Config(task={"name": "parity", "longer": [64, 300]}))
    assert [*experiment.other_val_data] == ["length 64", "length 300"]
    assert experiment.other_val_data["length 300"][0]["input_ids"].shape == (64, 301)
    experiment.check()
