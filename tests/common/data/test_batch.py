"""What users hand in as data: brought into one shape, found again by its index, or refused in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from common.data.batch import (
    LoaderBatches,
    batch_source,
    to_batch,
)
from common.errors import DataError

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])


def test_every_shape_of_a_batch_becomes_ids_and_labels() -> None:
    for given in ({"input_ids": IDS}, IDS, (IDS,), [IDS], {"input_ids": IDS.int(), "more": "x"}):
        batch = to_batch(given)
        assert list(batch) == ["input_ids", "labels"]
        assert batch["input_ids"].tolist() == batch["labels"].tolist() == IDS.tolist()
        assert batch["labels"].dtype == torch.int64


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
def test_padding_of_the_attention_mask_is_not_predicted(kind: torch.dtype) -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).to(kind)
    wanted = [[1, 2, 3, 4], [5, 6, -100, -100]]
    assert to_batch({"input_ids": IDS, "attention_mask": mask})["labels"].tolist() == wanted
    given = {"input_ids": IDS, "labels": IDS, "attention_mask": mask}
    assert to_batch(given)["labels"].tolist() == wanted
    assert IDS.tolist()[1] == [5, 6, 0, 0], "what the caller holds is left alone"


@pytest.mark.parametrize(
    "given",
    [
        {"ids": IDS},
        "text",
        (IDS, IDS),
        IDS[0],
        IDS.float(),
        {"input_ids": IDS, "labels": IDS[:, 1:]},
        {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])},
        {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 4, 4)},
    ],
)
def test_anything_else_is_refused_in_one_line(given: Any) -> None:
    with pytest.raises(DataError) as caught:
        to_batch(given)
    assert caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": IDS, "labels": IDS - 1}, "labels holds the id -1"),
        ({"input_ids": IDS - 1}, "input_ids holds the id -1"),
        ({"input_ids": IDS, "labels": IDS + 2}, "labels holds the id 8, the model has 7 tokens"),
        ({"input_ids": IDS + 1}, "input_ids holds the id 7, the model has 7 tokens"),
    ],
)
def test_ids_that_the_model_does_not_have_are_refused(given: Any, message: str) -> None:
    """-1 marks what is not predicted in other projects; here it would have been predicted as 0."""
    with pytest.raises(DataError, match=message):
        to_batch(given, vocab_size=7)


def test_the_labels_of_a_batch_may_all_be_minus_100() -> None:
    nothing = torch.full_like(IDS, -100)
    assert to_batch({"input_ids": IDS, "labels": nothing}, 7)["labels"].tolist() == nothing.tolist()
    assert to_batch(IDS[:0], 7)["input_ids"].shape == (0, 4)


# Sources


def rows(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count)[:, None].expand(-1, 3).contiguous())


def firsts(source: Any, batches: range) -> list[int]:
    return [int(row[0]) for i in batches for row in to_batch(source.batch(i))["input_ids"]]


def test_a_loader_gives_what_pytorch_would_give_batch_by_batch() -> None:
    for drop_last in (False, True):
        loader = DataLoader(rows(10), batch_size=4, drop_last=drop_last)
        source = batch_source(loader)
        for index, (ids,) in enumerate([*loader, *loader]):
            assert to_batch(source.batch(index))["input_ids"].tolist() == ids.tolist()


@pytest.mark.parametrize("seed", [None, 3])
def test_a_shuffled_loader_has_every_row_once_per_epoch_in_an_order_of_its_own(
    seed: int | None,
) -> None:
    def source() -> LoaderBatches:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return LoaderBatches(DataLoader(rows(10), batch_size=4, shuffle=True, generator=generator))

    one = source()
    epochs = [firsts(one, range(3 * i, 3 * i + 3)) for i in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) == 4
    assert firsts(source(), range(7, 12)) == firsts(one, range(7, 12)), "a function of the index"


def test_a_loader_collates_and_reads_items_as_its_owner_wants() -> None:
    def pad(items: list[list[int]]) -> dict[str, torch.Tensor]:
        longest = max(map(len, items))
        ids = torch.tensor([item + [0] * (longest - len(item)) for item in items])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    texts: Any = [[1, 2], [3, 4, 5], [6, 7]]
    source = batch_source(DataLoader(texts, batch_size=2, collate_fn=pad))
    assert to_batch(source.batch(0))["labels"].tolist() == [[1, 2, -100], [3, 4, 5]]
    assert to_batch(source.batch(1))["labels"].tolist() == [[6, 7]]


def test_a_list_is_gone_through_again_and_again() -> None:
    source = batch_source([IDS, {"input_ids": IDS + 1}])
    assert Counter(firsts(source, range(4))) == {1: 2, 5: 2, 2: 2, 6: 2}


class Endless(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        yield IDS[0]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (DataLoader(Endless()), "by index"),
        (DataLoader(rows(5), sampler=WeightedRandomSampler([1.0] * 5, 5)), "by index"),
        (DataLoader(rows(5), batch_size=None), "by index"),
        (DataLoader(rows(2), batch_size=4, drop_last=True), "no batch"),
        ([], "no batch"),
        (iter([IDS]), "cannot train on a list_iterator"),
        (rows(5), "cannot train on a TensorDataset"),
        ("text.txt", "cannot train on a str"),
    ],
)
def test_what_cannot_be_resumed_exactly_is_refused_with_what_to_pass(
    given: object, reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        batch_source(given)
    assert caught.value.hint
