"""Whatever people have for text: read in bounded memory, or refused with one clear line."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.data.config import DataConfig
from common.data.corpora import open_corpus
from common.data.documents import Document
from common.data.prepare import prepare
from common.data.text_files import TextFiles
from common.errors import DataError
from common.utils.paths import get_datasets_dir
from tests.budget import budget

ROWS = [f"document {i} says something about cats and dogs {i * i}" for i in range(300)]


def read(path: Path, column: str = "text") -> list[str]:
    """The whole documents."""
    texts: list[str] = []
    parts: list[str] = []
    for document in TextFiles(path, column).documents():
        parts.append(document.text)
        if document.ends:
            texts.append("".join(parts))
            parts = []
    assert not parts
    return texts


def json_lines(rows: list[str], column: str = "text") -> bytes:
    return "".join(json.dumps({column: row, "id": i}) + "\n" for i, row in enumerate(rows)).encode()


def zstd(content: bytes, path: Path) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(content)


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(ROWS))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json_lines(ROWS)))
    zstd(json_lines(ROWS), tmp_path / "c.jsonl.zst")
    pq.write_table(
        pa.table({"text": ROWS, "id": range(300)}), tmp_path / "d.parquet", row_group_size=70
    )
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"):
        assert read(tmp_path / name) == ROWS, name
    assert read(tmp_path) == ROWS * 4
    keys = [document.key for document in TextFiles(tmp_path).documents()]
    assert len(set(keys)) == 1200 and keys[0] == "a.jsonl:1"


def test_packed_text_is_unpacked_and_line_ends_and_nul_bytes_stay(tmp_path: Path) -> None:
    text = "one\r\ntwo\nthree\rfour\0five\ufeff é"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()) + gzip.compress(b" more"))
    zstd(text.encode(), tmp_path / "c.txt.zst")
    assert read(tmp_path) == [text, text + " more", text]


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_characters_are_whole_wherever_a_block_ends(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.data.text_files._BLOCK_BYTES", block)
    text = "aé日🙂" * 5
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read(tmp_path / "a.txt") == [text]
    (tmp_path / "b.txt").write_bytes(text.encode()[:-1])
    with pytest.raises(DataError, match=rf"not UTF-8 text \(byte {len(text.encode()) - 4}\)"):
        read(tmp_path / "b.txt")


BAD = {
    "latin.txt": ("naïve".encode("latin1") * 3, "not UTF-8 text \\(byte 2\\)"),
    "cut.txt.gz": (gzip.compress(b"some text " * 1000)[:-30], "damaged or truncated"),
    "no.txt.gz": (b"this is not gzip", "damaged or truncated"),
    "no.txt.zst": (b"this is not zstd", "damaged or truncated"),
    "bad.jsonl": (json_lines(ROWS[:2]) + b'{"text": "cut', "bad.jsonl, line 3: not JSON"),
    "list.jsonl": (b"[1, 2]\n", "line 1: not a JSON object"),
    "number.jsonl": (b'{"text": 5}\n', "line 1: 'text' is int, expected text"),
    "lists.jsonl": (b'{"text": "a"}\n{"text": ["a"]}\n', "line 2: 'text' is list, expected text"),
    "half.jsonl": (b'{"text": "a\\ud83d"}\n', "line 1: 'text' is not text: half of a surrogate"),
    "other.jsonl": (json_lines(ROWS, "txet"), "line 1 has no column 'text'"),
    "utf16.txt": ("text".encode("utf-16"), "not UTF-8 text \\(byte 0\\)"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000 + b"\n", "line 1: not JSON"),
    "no.parquet": (b"PAR1 this is none", "cannot be read as Parquet"),
    "empty.parquet": (b"", "cannot be read as Parquet"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / name)
    assert name in error.value.message and len(error.value.message) < 400


def test_the_mark_that_windows_begins_files_with_is_no_character(tmp_path: Path) -> None:
    for name, content in (
        ("a.txt", b"caf\xc3\xa9"),
        ("b.txt", b""),
        ("c.jsonl", b'{"text": "x"}\n'),
    ):
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + content)
    assert read(tmp_path) == ["caf\u00e9", "", "x"]
    (tmp_path / "bad.txt").write_bytes(codecs.BOM_UTF8 + b"ab\xff")
    with pytest.raises(DataError, match=r"bad\.txt is not UTF-8 text \(byte 5\)"):
        read(tmp_path / "bad.txt")


def test_every_folder_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    for folder in ("tokens", "more/tokens", "more/tokens/tokens"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.txt").write_text(folder)
    assert sorted(read(tmp_path)) == ["more/tokens", "more/tokens/tokens", "tokens"]


def test_rows_without_text_are_no_documents(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": None}, {"text": "b"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(get_datasets_dir() / "saved")
    for found in (
        read(tmp_path / "a.jsonl"),
        read(tmp_path / "a.parquet"),
        [document.text for document in open_corpus(DataConfig(dataset="saved")).documents()],
    ):
        assert found == ["a", "b"]


def test_the_column_of_a_parquet_file_is_the_one_that_is_named(tmp_path: Path) -> None:
    struct = pa.array([{"b": "inside"}], pa.struct([("b", pa.string())]))
    pq.write_table(pa.table({"a": struct, "a.b": ["beside"]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "a.b") == ["beside"]
    twice = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="has 2 columns 'text'"):
        read(tmp_path / "twice.parquet")


def test_a_name_that_is_not_utf8_is_a_name(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / os.fsdecode(b"caf\xe9%d.txt" % number)).write_text(f"document {number} " * 5)
    data = prepare(DataConfig(path=tmp_path, tokenizer="char"))
    assert sum(facts["documents"] for facts in data.meta["splits"].values()) == 20


def test_the_nearest_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"contents": ROWS, "n": range(300)}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'content'") as error:
        read(tmp_path / "a.parquet", "content")
    assert "did you mean 'contents'?" in error.value.hint
    with pytest.raises(DataError, match="'n' has type int64, expected text"):
        read(tmp_path / "a.parquet", "n")
    assert read(tmp_path / "a.parquet", "contents") == ROWS


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.data.text_files._LONGEST_LINE_BYTES", 1000)
    (tmp_path / "a.jsonl").write_bytes(json_lines(["x" * 5000]))
    with pytest.raises(DataError, match="line 1: longer than 1,000 bytes"):
        read(tmp_path / "a.jsonl")


def test_links_in_a_circle_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("text")
    (tmp_path / "sub" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    with pytest.raises(OSError, match="self"):
        read(tmp_path)
    (tmp_path / "self.txt").unlink()
    assert read(tmp_path) == ["text"]


def test_empty_files_are_empty_documents_and_alone_no_text(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    assert [*TextFiles(tmp_path).documents()] == [Document("empty.txt", "")]
    with pytest.raises(DataError, match="no text"):
        prepare(DataConfig(path=tmp_path / "empty.txt", tokenizer="char"))


def peak_megabytes(script: str, *arguments: str, assets: Path) -> float:
    """Of a Python process that runs `script`: how much more memory than Python and its imports."""
    code = f"""
import resource, sys
from common.data.config import DataConfig
from common.data.prepare import prepare
import common.data.tokenizers.fast_bpe
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{script}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"RESEARCH_ASSETS_DIR": str(assets), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(result.stdout)


@pytest.mark.attack
@pytest.mark.slow
def test_a_line_of_a_hundred_megabytes_takes_little_memory(tmp_path: Path) -> None:
    with (tmp_path / "line.txt").open("w") as file:
        for i in range(budget(20, 100)):
            file.write(f"word{i} and another, " * 50_000)
    script = "prepare(DataConfig(path=sys.argv[1], tokenizer='bpe', vocab_size=300))"
    limit = budget(25, 250)  # MiB; nothing in its first 20, 15 in all 100
    assert peak_megabytes(script, str(tmp_path / "line.txt"), assets=tmp_path / "assets") < limit


@pytest.mark.attack
@pytest.mark.slow
def test_twenty_thousand_small_files_are_one_dataset(tmp_path: Path) -> None:
    count = budget(2_000, 20_000)
    for number in range(count):
        folder = tmp_path / "texts" / str(number % 100)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(f"text {number}")
    data = prepare(DataConfig(path=tmp_path / "texts", tokenizer="char"))
    splits = data.meta["splits"]
    assert splits["train"]["documents"] + splits["val"]["documents"] == count
    assert 0.09 < splits["val"]["documents"] / count < 0.11
