"""Tasks with exact answers that tell architectures apart: batches are a pure function of a seed and an index.

A task returns (input_ids, labels), both (rows, time) int64; labels are -100 where nothing is asked. As everywhere,
labels[:, t + 1] is predicted from the tokens up to t.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from common.data.batch import IGNORE_INDEX, Batch

Arrays = tuple[np.ndarray, np.ndarray]
Task = Callable[[np.random.Generator, int, int], Arrays]

MODULUS = 5
PLUS, MINUS, TIMES, EQUALS = range(MODULUS, MODULUS + 4)
NUM_KEYS = NUM_VALUES = 32
NUM_COPIED = 8  # kinds of tokens to copy; BLANK and ASK come after them
BLANK, ASK = NUM_COPIED, NUM_COPIED + 1


def parity(rng: np.random.Generator, rows: int, length: int) -> Arrays:
    """After every bit: is the number of ones so far odd? One state of two values tracks it."""
    bits = rng.integers(0, 2, (rows, length))
    return _answered_at_once(bits, bits.cumsum(axis=1) % 2)


def modular_arithmetic(rng: np.random.Generator, rows: int, length: int) -> Arrays:
    """3 + 4 * 2 - 1 = ? modulo 5, products first (Deletang et al. 2023, without brackets)."""
    numbers = rng.integers(0, MODULUS, (rows, max(1, length // 2)))
    operators = rng.integers(PLUS, EQUALS, (rows, numbers.shape[1] - 1))
    inputs = np.empty((rows, 2 * numbers.shape[1]), dtype=np.int64)
    inputs[:, ::2], inputs[:, 1:-1:2], inputs[:, -1] = numbers, operators, EQUALS
    total, product, sign = np.zeros(rows, dtype=np.int64), numbers[:, 0], np.ones(rows, np.int64)
    for operator, number in zip(operators.T, numbers.T[1:], strict=True):
        times = operator == TIMES
        total = np.where(times, total, total + sign * product)
        sign = np.where(times, sign, np.where(operator == MINUS, -1, 1))
        product = np.where(times, product * number, number) % MODULUS
    return _answered_last(inputs, (total + sign * product) % MODULUS)


def associative_recall(rng: np.random.Generator, rows: int, length: int) -> Arrays:
    """Pairs of a key and a value, then the keys in another order: each is to be followed by its value.

    Multi-query associative recall (Arora et al. 2024, "Zoology", section 3.1); keys come before values.
    """
    pairs = min(max(1, length // 4), NUM_KEYS)
    order = np.argsort(rng.random((rows, NUM_KEYS)), axis=1)
    keys = order[:, :pairs]
    values = NUM_KEYS + rng.integers(0, NUM_VALUES, (rows, pairs))
    asked = np.argsort(rng.random((rows, pairs)), axis=1)
    inputs = np.empty((rows, 4 * pairs), dtype=np.int64)
    inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
    inputs[:, 2 * pairs :: 2] = np.take_along_axis(keys, asked, axis=1)
    inputs[:, 2 * pairs + 1 :: 2] = np.take_along_axis(values, asked, axis=1)
    labels = np.full_like(inputs, IGNORE_INDEX)
    labels[:, 2 * pairs + 1 :: 2] = inputs[:, 2 * pairs + 1 :: 2]
    return inputs, labels


def selective_copying(rng: np.random.Generator, rows: int, length: int) -> Arrays:
    """A few tokens among blanks, to be written in their order at the end (Gu and Dao 2023, section 3.1)."""
    copied = max(1, length // 8)
    read = length - copied - 1
    places = np.sort(np.argsort(rng.random((rows, read)), axis=1)[:, :copied], axis=1)
    tokens = rng.integers(0, NUM_COPIED, (rows, copied))
    inputs = np.full((rows, length), BLANK, dtype=np.int64)
    np.put_along_axis(inputs, places, tokens, axis=1)
    inputs[:, read], inputs[:, read + 1 :] = ASK, tokens
    labels = np.full_like(inputs, IGNORE_INDEX)
    labels[:, read + 1 :] = tokens
    return inputs, labels


def _answered_at_once(inputs: np.ndarray, answers: np.ndarray) -> Arrays:
    """Every token is answered: the label after it. One more input makes room for the last."""
    more = np.zeros_like(inputs[:, :1])
    labels = np.concatenate([more + IGNORE_INDEX, answers], axis=1)
    return np.concatenate([inputs, more], axis=1), labels


def _answered_last(inputs: np.ndarray, answers: np.ndarray) -> Arrays:
    """Only the answer to the whole is asked for."""
    inputs, labels = _answered_at_once(inputs, np.zeros_like(inputs))
    labels[:, :-1], labels[:, -1] = IGNORE_INDEX, answers
    return inputs, labels


TASKS: dict[str, tuple[Task, int]] = {  # with the size of their vocabulary
    "parity": (parity, 2),
    "modular_arithmetic": (modular_arithmetic, EQUALS + 1),
    "associative_recall": (associative_recall, NUM_KEYS + NUM_VALUES),
    "selective_copying": (selective_copying, ASK + 1),
}


class TaskBatches:
    """Batch i of a task, of texts of one length drawn from `lengths`; `stream` keeps what is trained on and
    what is evaluated apart."""

    def __init__(
        self, task: str, rows: int, lengths: tuple[int, int], seed: int, stream: int = 0
    ) -> None:
        self.task, self.rows, self.lengths = TASKS[task][0], rows, lengths
        self.seed, self.stream = seed, stream
        self.fingerprint = {"task": [task, rows, *lengths, seed]}

    def batch(self, index: int) -> Batch:
        """{"input_ids", "labels"}, both (rows, time) int64."""
        rng = np.random.default_rng([self.seed, self.stream, index])
        shortest, longest = self.lengths
        length = int(rng.integers(shortest, longest + 1))
        inputs, labels = self.task(rng, self.rows, length)
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
