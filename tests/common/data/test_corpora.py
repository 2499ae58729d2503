"""Sources of text, and what is said when there is none."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from common.data.config import DataConfig
from common.data.corpora import open_corpus
from common.errors import DataError
from common.utils.paths import get_datasets_dir


def refusal(config: DataConfig) -> DataError:
    with pytest.raises(DataError) as caught:
        list(open_corpus(config).documents())
    return caught.value


@pytest.mark.slow
def test_python_stdlib_is_the_same_every_time_and_holds_no_installed_package() -> None:
    first, second = open_corpus(DataConfig()), open_corpus(DataConfig())
    assert first.fingerprint == second.fingerprint
    documents = list(first.documents())
    assert documents == list(first.documents()) == list(second.documents())
    keys = [document.key for document in documents]
    assert "argparse.py" in keys and "json/decoder.py" in keys
    assert keys == sorted(keys, key=lambda key: Path(key)) and len(set(keys)) == len(keys)
    for left_out in ("site-packages", "test", "tests", "idle_test"):
        assert not any(left_out in key.split("/") for key in keys)
    root = Path(sysconfig.get_paths()["stdlib"])
    assert (root / "argparse.py").read_text(encoding="utf-8").replace("\r\n", "\n") == next(
        d.text for d in documents if d.key == "argparse.py"
    )


def test_stories_have_a_surprisal_and_a_fingerprint_of_their_own() -> None:
    config = DataConfig(dataset="stories", num_stories=5, seed=1)
    corpus = open_corpus(config)
    documents = list(corpus.documents())
    assert documents == list(corpus.documents()) and len(documents) == 5
    assert all(document.surprisal is not None for document in documents)
    others = [config.model_copy(update=u) for u in ({"seed": 2}, {"num_stories": 6})]
    prints = [corpus.fingerprint, *(open_corpus(other).fingerprint for other in others)]
    assert len({str(p) for p in prints}) == 3


def test_a_folder_gives_its_text_files_below_it_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    contents = {
        "b.txt": "two",
        "a/c.md": "one\r\n",
        "z.py": "three \u00e9",
        "no.bin": "x",
        ".git/x.txt": "y",
    }
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    corpus = open_corpus(DataConfig(path=folder))
    assert [(d.key, d.text) for d in corpus.documents()] == [
        ("a/c.md", "one\r\n"),
        ("b.txt", "two"),
        ("z.py", "three \u00e9"),
    ]
    before = corpus.fingerprint
    (folder / "b.txt").write_text("longer than before")
    assert open_corpus(DataConfig(path=folder)).fingerprint != before


def test_a_single_file_may_have_any_ending(tmp_path: Path) -> None:
    path = tmp_path / "book.tex"
    path.write_text("text")
    (document,) = open_corpus(DataConfig(path=path)).documents()
    assert document.text == "text"


@pytest.mark.parametrize("written", [".", "..", "./", "texts/.."])
def test_a_corpus_has_a_name_of_its_own_however_its_folder_is_written(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The name is a folder below datasets/: '' or '..' would be datasets/ itself or its parent.
    (tmp_path / "here" / "texts").mkdir(parents=True)
    (tmp_path / "here" / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path / "here")
    assert open_corpus(DataConfig(path=Path(written))).name not in ("", ".", "..")


def test_a_folder_in_the_assets_is_a_dataset_without_its_token_files() -> None:
    folder = get_datasets_dir() / "mine"
    (folder / "tokens" / "char").mkdir(parents=True)
    (folder / "tokens" / "char" / "readme.md").write_text("not a document")
    (folder / "a.txt").write_text("a document")
    (document,) = open_corpus(DataConfig(dataset="mine")).documents()
    assert document.text == "a document"


def test_a_file_that_is_not_utf8_is_named_with_the_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "bad.txt").write_bytes("café".encode("latin-1"))
    error = refusal(DataConfig(path=tmp_path))
    assert "bad.txt" in error.message and "byte 3" in error.message and "iconv" in error.hint


def test_a_folder_without_text_and_a_path_that_is_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"x")
    error = refusal(DataConfig(path=tmp_path))
    assert "no text files" in error.message and ".txt" in error.hint
    error = refusal(DataConfig(path=tmp_path / "nothing"))
    assert "nothing" in error.message and "data.path" in error.hint


def test_a_missing_dataset_is_told_with_the_nearest_one_and_how_to_get_it() -> None:
    (get_datasets_dir() / "wikitext").mkdir(parents=True)
    (get_datasets_dir() / "wikitext" / "image.png").touch()
    error = refusal(DataConfig(dataset="wikitex"))
    assert "'wikitex'" in error.message
    assert "'wikitext'" in error.hint and "download_hf_dataset.py" in error.hint
    assert "python_stdlib" in refusal(DataConfig(dataset="xyzzy")).hint
    assert "no text files" in refusal(DataConfig(dataset="wikitext")).message


@pytest.mark.slow
def test_a_saved_dataset_keeps_its_own_splits_and_never_trains_on_its_test_split() -> None:
    from datasets import Dataset, DatasetDict

    def rows(*texts: str) -> Dataset:
        return Dataset.from_dict({"text": list(texts), "label": list(range(len(texts)))})

    directory = get_datasets_dir()
    DatasetDict(train=rows("a", "b"), validation=rows("c"), test=rows("secret")).save_to_disk(
        directory / "three"
    )
    DatasetDict(train=rows("a", "b"), test=rows("secret")).save_to_disk(directory / "two")
    rows("a", "b").save_to_disk(directory / "one")
    DatasetDict(test=rows("secret")).save_to_disk(directory / "none")

    def documents(name: str) -> list[tuple[str, str | None]]:
        return [(d.text, d.split) for d in open_corpus(DataConfig(dataset=name)).documents()]

    assert documents("three") == [("a", "train"), ("b", "train"), ("c", "val")]
    assert documents("two") == [("a", None), ("b", None)]
    assert documents("one") == [("a", None), ("b", None)]
    assert "train" in refusal(DataConfig(dataset="none")).message
    error = refusal(DataConfig(dataset="one", text_column="txt"))
    assert "'txt'" in error.message and "'text'" in error.hint and "data.text_column" in error.hint
