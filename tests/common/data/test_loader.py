"""Batches: the same whenever they are asked for, and every token judged exactly once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.data.batch import Batch, rows_of
from common.data.loader import EvalWindows, RandomWindows, ShuffledWindows
from common.data.prefetch import Prefetcher
from common.errors import DataError
from tests.budget import examples

IGNORED = -100


def tokens(length: int, dtype: str = "<u2") -> np.ndarray:
    return np.arange(length).astype(dtype)  # each token says where it stands


def test_a_batch_is_a_function_of_seed_and_index_alone() -> None:
    def source(seed: int) -> RandomWindows:
        return RandomWindows(tokens(1000), batch_size=4, context_length=8, seed=seed)

    forward = [source(7).batch(i)["input_ids"].tolist() for i in range(20)]
    one = source(7)
    assert [one.batch(i)["input_ids"].tolist() for i in reversed(range(20))] == forward[::-1]
    assert len({str(batch) for batch in forward}) == 20, "every index draws anew"
    assert source(8).batch(0)["input_ids"].tolist() != forward[0]
    far = one.batch(10**12)["input_ids"]
    assert far.tolist() == source(7).batch(10**12)["input_ids"].tolist()


@given(
    length=st.integers(2, 300),
    context=st.integers(2, 40),
    batch_size=st.integers(1, 5),
    index=st.integers(0, 10**9),
    seed=st.integers(0, 2**63),
)
@examples(80)
def test_every_window_is_contiguous_text(
    length: int, context: int, batch_size: int, index: int, seed: int
) -> None:
    if length < context:
        with pytest.raises(DataError, match="fewer than one context"):
            RandomWindows(tokens(length), batch_size=batch_size, context_length=context, seed=seed)
        return
    source = RandomWindows(tokens(length), batch_size=batch_size, context_length=context, seed=seed)
    batch = source.batch(index)
    ids = batch["input_ids"]
    assert ids.shape == (batch_size, context) and str(ids.dtype) == "torch.int64"
    assert (ids.numpy() == ids[:, :1].numpy() + np.arange(context)).all()
    assert ids.min() >= 0 and ids.max() < length
    assert batch["labels"].tolist() == ids.tolist()


def test_windows_start_anywhere_first_and_last_place_included_and_all_as_often() -> None:
    source = RandomWindows(tokens(12), batch_size=64, context_length=8, seed=0)  # 5 places
    starts = Counter(int(first) for i in range(100) for first in source.batch(i)["input_ids"][:, 0])
    assert set(starts) == {0, 1, 2, 3, 4}
    expected = 64 * 100 / 5
    chi_squared = sum((count - expected) ** 2 / expected for count in starts.values())
    assert chi_squared < 18.5  # 4 degrees of freedom, p = 0.001


def test_tokens_above_65535_are_kept() -> None:
    source = RandomWindows(
        np.array([70_000, 2**31, 5], dtype="<u4"), batch_size=1, context_length=3
    )
    assert source.batch(0)["input_ids"].tolist() == [[70_000, 2**31, 5]]


@given(length=st.integers(2, 200), context=st.integers(2, 30), batch_size=st.integers(1, 7))
@examples(150)
def test_one_pass_predicts_every_token_but_the_first_exactly_once(
    length: int, context: int, batch_size: int
) -> None:
    windows = EvalWindows(tokens(length), batch_size=batch_size, context_length=context)
    predicted: Counter[int] = Counter()
    batches = list(windows)
    assert len(windows) == len(batches)
    for batch in batches:
        ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
        assert ids.shape == labels.shape and ids.shape[1] == context and len(ids) <= batch_size
        for row_ids, row_labels in zip(ids, labels, strict=True):
            for t in range(context - 1):  # the model predicts label t + 1 from ids up to t
                if row_labels[t + 1] != IGNORED:
                    assert row_labels[t + 1] == row_ids[t] + 1, "from the token before it"
                    predicted[int(row_labels[t + 1])] += 1
    assert predicted == Counter(range(1, length))


@given(
    length=st.integers(2, 400),
    context=st.integers(2, 20),
    batch_size=st.integers(1, 5),
    max_batches=st.integers(1, 12),
)
@examples(100)
def test_a_shortened_pass_has_so_many_batches_of_distinct_windows_spread_over_the_text(
    length: int, context: int, batch_size: int, max_batches: int
) -> None:
    def starts(limit: int | None) -> list[int]:
        windows = EvalWindows(
            tokens(length), batch_size=batch_size, context_length=context, max_batches=limit
        )
        batches = list(windows)
        assert len(batches) == len(windows)
        if limit is not None:
            assert len(batches) <= limit
        return [int(row[0]) for batch in batches for row in batch["input_ids"]]

    every, some = starts(None), starts(max_batches)
    assert len(some) == len(set(some)) == min(len(every), max_batches * batch_size)
    assert set(some) <= set(every) and some == sorted(some)
    if len(some) > 1:
        assert (some[0], some[-1]) == (every[0], every[-1])
    assert starts(max_batches) == some


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_with_nothing_to_predict_is_refused(length: int) -> None:
    with pytest.raises(DataError):
        EvalWindows(tokens(length), batch_size=1, context_length=4)


# Epochs


def predictions(source: ShuffledWindows, world_size: int, first: int = 0) -> Iterator[int]:
    """The tokens that are predicted, batch after batch, in the rows of each process."""
    for index in itertools.count(first):
        batch = source.batch(index)
        for rank in range(world_size):
            mine = rows_of(batch, rank, world_size)
            if mine is None:
                continue
            for ids, labels in zip(
                mine["input_ids"].tolist(), mine["labels"].tolist(), strict=True
            ):
                new = [token for token in labels[1:] if token != IGNORED]
                assert not new or ids[: len(new) + 1] == [new[0] - 1, *new]  # after those before it
                yield from new


@given(
    length=st.integers(2, 200),
    context=st.integers(2, 40),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 2),
    seed=st.integers(0, 2**63),
)
@examples(100)
def test_every_epoch_predicts_every_token_but_the_first_exactly_once(
    length: int, context: int, batch_size: int, world_size: int, seed: int
) -> None:
    """Also of texts that are shorter than one window, and in every one of many epochs."""
    source = ShuffledWindows(
        tokens(length), batch_size=batch_size, context_length=context, seed=seed
    )
    found = predictions(source, world_size)
    for _ in range(5):
        assert sorted(itertools.islice(found, length - 1)) == list(range(1, length))


def test_an_epoch_goes_on_in_the_middle_as_it_would_have() -> None:
    def source() -> ShuffledWindows:
        return ShuffledWindows(tokens(1000), batch_size=4, context_length=11, seed=3)

    whole = list(itertools.islice(predictions(source(), 1), 5 * 999))
    begun = [t for i in range(40) for t in source().batch(i)["labels"][:, 1:].flatten().tolist()]
    before = [token for token in begun if token != IGNORED]
    after = itertools.islice(predictions(source(), 2, first=40), 5 * 999 - len(before))
    assert [*before, *after] == whole


@pytest.mark.parametrize("length", [7, 100, 1001])
def test_epochs_are_counted_by_what_was_predicted(length: int) -> None:
    source = ShuffledWindows(tokens(length), batch_size=1, context_length=11, seed=3)
    predicted, before = 0, 0.0
    for index in range(3 * length):
        if predicted % (length - 1) == 0:
            assert source.epochs(index) == predicted / (length - 1)
        assert index == 0 or source.epochs(index) > before
        before = source.epochs(index)
        predicted += int((source.batch(index)["labels"][:, 1:] != IGNORED).sum())


def test_windows_of_the_epochs_begin_at_every_place() -> None:
    """Else some tokens would be the second of a window, with little to go by, in every epoch."""
    source = ShuffledWindows(tokens(100), batch_size=1, context_length=6, seed=3)
    starts = {int(source.batch(i)["input_ids"][0, 0]) for i in range(5 * 21)}
    assert starts == set(range(99))


def test_epochs_have_their_own_order_and_a_batch_is_a_function_of_its_index() -> None:
    def source(seed: int = 3) -> ShuffledWindows:
        return ShuffledWindows(tokens(100), batch_size=4, context_length=6, seed=seed)

    forward = [source().batch(i)["input_ids"].tolist() for i in range(30)]
    one = source()
    assert [one.batch(i)["input_ids"].tolist() for i in reversed(range(30))] == forward[::-1]
    assert forward[:4] != forward[4:8] and source(4).batch(0)["input_ids"].tolist() != forward[0]


def test_prefetched_batches_are_those_of_the_source_in_any_order() -> None:
    source = RandomWindows(tokens(1000), batch_size=2, context_length=5, seed=1)
    prefetcher = Prefetcher(source.batch, torch.device("cpu"))
    try:
        for index in (0, 1, 2, 7, 8, 3, 3, 4):
            found = prefetcher.batch(index)["input_ids"]
            assert found.tolist() == source.batch(index)["input_ids"].tolist()
    finally:
        prefetcher.close()


def test_an_error_of_the_source_reaches_whoever_asks_for_the_batch() -> None:
    class Broken:
        def batch(self, index: int) -> Batch:
            raise DataError("the disk is gone")

    prefetcher = Prefetcher(Broken().batch, torch.device("cpu"))
    try:
        with pytest.raises(DataError, match="the disk is gone"):
            prefetcher.batch(0)
    finally:
        prefetcher.close()
