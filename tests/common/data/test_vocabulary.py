"""The pieces that a vocabulary is learned from."""

from __future__ import annotations

from common.data.documents import Document
from common.data.tokenizers import BPETokenizer
from common.data.vocabulary import training_texts


def test_a_word_without_an_end_is_learned_from_in_no_time() -> None:
    document = Document("a", " " * 300_000 + "the end. " * 50)
    pieces = [*training_texts(iter([document]))]
    assert max(map(len, pieces)) <= 10_000 and sum(map(len, pieces)) == 300_450
    tokenizer = BPETokenizer.train(pieces, 300)
    assert tokenizer.decode(tokenizer.encode(" " * 5000 + "the").tolist()) == " " * 5000 + "the"


def test_pieces_of_the_training_text_change_nothing() -> None:
    text = "the cat sat on the mat, it's 12 o'clock.\n" * 400
    whole = BPETokenizer.train([text], 300)
    pieces = [*training_texts(iter([Document("a", text * 20)]))]
    assert len(pieces) > 2 and "".join(pieces) == text * 20
    assert BPETokenizer.train(pieces, 300).encode(text).tolist() == whole.encode(text).tolist()


def test_a_document_in_parts_is_cut_at_its_words() -> None:
    parts = ["the cat sa", "t on the m", "at", " again"]
    documents = [Document("a", part, ends=part == parts[-1]) for part in parts]
    texts = [text for text in training_texts(iter(documents)) if text]
    assert texts == ["the cat", " sat on the", " mat again"]
    assert "".join(training_texts(iter(documents), limit=15)) == "the cat sat on the"
