"""Which documents validate, and where a text is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.data.documents import Corpus, Document
from common.data.splits import choose_split, split_documents
from tests.budget import examples


@given(key=st.text(max_size=20), seed=st.integers(0, 1000), fraction=st.floats(0.01, 0.99))
@examples(100)
def test_the_split_depends_on_the_key_and_the_seed_not_on_the_text(
    key: str, seed: int, fraction: float
) -> None:
    split = choose_split(Document(key, "one text"), fraction, seed)
    assert split == choose_split(Document(key, "another", surprisal=1.0), fraction, seed)
    assert choose_split(Document(key, "", split="val"), fraction, seed) == "val"
    if split == "val":  # a larger share only adds documents to it
        assert choose_split(Document(key, ""), min(fraction * 1.5, 0.99), seed) == "val"


def test_about_the_fraction_asked_for_is_held_back_and_the_seed_chooses_which() -> None:
    documents = [Document(f"file_{i}.py", "") for i in range(4000)]
    held_back = {d.key for d in documents if choose_split(d, 0.1, 0) == "val"}
    assert abs(len(held_back) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5
    assert held_back != {d.key for d in documents if choose_split(d, 0.1, 1) == "val"}


def split(documents: list[Document], split_by: str, val_fraction: float) -> list[Document]:
    corpus = Corpus("some", {}, lambda: iter(documents))
    return [
        *split_documents(
            corpus, iter(documents), split_by=split_by, val_fraction=val_fraction, seed=0
        )
    ]


def test_the_document_at_the_border_of_a_fraction_becomes_two() -> None:
    documents = [Document("a", "aaaa", surprisal=1.0), Document("b", "bbbbbb", surprisal=2.0)]
    assert split(documents, "fraction", 0.3) == [
        Document("a", "aaaa", "train", surprisal=1.0),
        Document("b", "bbb", "train"),
        Document("b", "bbb", "val"),
    ]
    assert split(documents, "fraction", 0.6) == [
        Document("a", "aaaa", "train", surprisal=1.0),
        Document("b", "bbbbbb", "val", surprisal=2.0),
    ]


def test_a_single_document_is_cut_also_where_it_comes_in_parts() -> None:
    parts = [Document("a", "aaaa", ends=False), Document("a", "aaaa"), Document("b", "b")]
    assert {d.split for d in split(parts[:2], "document", 0.5)} == {"train", "val"}
    assert split(parts[:2], "document", 0.5)[0].ends, "nothing is carried from train to val"
    assert len({d.split for d in split(parts, "document", 0.5) if d.key == "a"}) == 1
