"""Token files: the same bytes every time, whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from common.config import make_config
from common.data.config import DataConfig
from common.data.documents import Document
from common.data.loader import RandomWindows
from common.data.prepare import prepare
from common.data.splits import choose_split
from common.data.token_files import TokenDataset, open_tokens
from common.errors import DataError
from common.utils.paths import get_datasets_dir


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty short documents."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i:02d}.txt").write_text(f"document {i}: " + "abc " * (i % 7) + "é\n")
    return folder


def char(path: Path, **options: object) -> DataConfig:
    return DataConfig.model_validate({"path": path, "tokenizer": "char"} | options)


def bpe(path: Path, **options: object) -> DataConfig:
    return DataConfig.model_validate(
        {"path": path, "tokenizer": "bpe", "vocab_size": 280} | options
    )


def decoded(data: TokenDataset, split: str) -> list[str]:
    """The documents of a split, read back from the file by hand."""
    raw = (data.directory / f"{split}.bin").read_bytes()
    ids = np.frombuffer(raw, dtype=data.meta["dtype"]).tolist()
    documents: list[list[int]] = [[]]
    for token in ids:
        if token == data.tokenizer.end_of_text:
            documents.append([])
        else:
            documents[-1].append(token)
    return [data.tokenizer.decode(document) for document in documents]


@pytest.mark.parametrize("kind", [char, bpe])
def test_documents_come_back_one_by_one_each_in_the_split_of_its_key(kind, folder: Path) -> None:
    data = prepare(kind(folder))
    expected: dict[str, list[str]] = {"train": [], "val": []}
    for path in sorted(folder.iterdir()):
        expected[choose_split(Document(path.name, ""), 0.1, 0)].append(path.read_text())
    for split in ("train", "val"):
        assert decoded(data, split) == expected[split]
        facts = data.meta["splits"][split]
        assert facts["documents"] == len(expected[split])
        assert facts["bytes"] == sum(len(text.encode()) for text in expected[split])
        assert facts["tokens"] == len(data.tokens(split))
        content = (data.directory / f"{split}.bin").read_bytes()
        assert facts["sha256"] == hashlib.sha256(content).hexdigest() == data.fingerprint[split]
        assert data.tokenizer.token_bytes[data.tokens(split)].sum() == facts["bytes"]
    saved = (data.directory / "tokenizer.json").read_bytes()
    assert data.meta["tokenizer_sha256"] == hashlib.sha256(saved).hexdigest()
    assert not data.tokens("train").flags.writeable


@pytest.mark.parametrize("kind", [char, bpe])
def test_progress_is_not_written_among_the_results(
    kind, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare(kind(folder))
    assert capfd.readouterr().out == "", "stdout is for results"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [char, bpe])
def test_two_runs_of_two_processes_give_the_same_bytes(kind, folder: Path, tmp_path: Path) -> None:
    first = prepare(kind(folder)).meta
    script = """
import json, sys
from pathlib import Path
from common.data.config import DataConfig
from common.data.prepare import prepare
data = prepare(DataConfig.model_validate_json(sys.argv[1]))
print(json.dumps(data.meta))
"""
    result = subprocess.run(
        [sys.executable, "-c", script, kind(folder).model_dump_json()],
        env=os.environ | {"RESEARCH_ASSETS_DIR": str(tmp_path / "other"), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    second = json.loads(result.stdout)
    assert second["created"] != first["created"], "it was made anew"
    for key in ("splits", "tokenizer_sha256", "vocab_size", "dtype", "recipe"):
        assert first[key] == second[key]


def test_a_lone_document_is_cut_by_position_as_in_nanogpt(tmp_path: Path) -> None:
    text = "".join(random.Random(0).choices("abcdefgh \n", k=1003))
    (tmp_path / "input.txt").write_text(text)
    data = prepare(char(tmp_path / "input.txt"))
    n = len(text)  # nanoGPT, data/shakespeare_char/prepare.py
    assert decoded(data, "train") == [text[: int(n * 0.9)]]
    assert decoded(data, "val") == [text[int(n * 0.9) :]]
    chars = sorted(set(text))
    stoi = {c: i for i, c in enumerate(chars)}
    ours = (data.tokens("train").astype(int) - 1).tolist()  # ours has <|endoftext|> as 0
    assert ours == [stoi[c] for c in text[: int(n * 0.9)]]


@pytest.mark.parametrize(("characters", "dtype"), [(2**16 - 1, "<u2"), (2**16, "<u4")])
def test_ids_are_two_bytes_as_long_as_they_fit(tmp_path: Path, characters: int, dtype: str) -> None:
    codes = [c for c in range(0x20, 0x20000) if not 0xD800 <= c < 0xE000][:characters]
    path = tmp_path / "all.txt"
    path.write_bytes("".join(map(chr, codes)).encode())
    data = prepare(char(path))
    assert data.tokenizer.vocab_size == characters + 1 and data.meta["dtype"] == dtype
    assert data.tokens("val").dtype == np.dtype(dtype)
    assert "".join(decoded(data, "train") + decoded(data, "val")) == path.read_bytes().decode()
    assert int(data.tokens("val")[-1]) == characters


def test_tokens_are_reused_until_the_recipe_or_the_source_changes(folder: Path) -> None:
    def created(**options: object) -> str:
        return str(prepare(char(folder, **options)).meta["created"])

    first = created()
    assert created() == first
    assert created(batch_size=99, context_length=7) == first, "batches are no part of the recipe"
    second = created(val_fraction=0.2)
    third = created(val_fraction=0.2, seed=1)
    (folder / "new.txt").write_text("a new document")
    fourth = created(val_fraction=0.2, seed=1)
    assert len({first, second, third, fourth}) == 4
    assert prepare(bpe(folder)).directory != prepare(bpe(folder, vocab_size=290)).directory


def test_every_recipe_has_a_folder_of_its_own_and_none_replaces_another(tmp_path: Path) -> None:
    contents = {"a": "aaaa " * 100, "b": "bb " * 300}
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(content)
    first = prepare(char(tmp_path / "a" / "x.txt"))
    second = prepare(char(tmp_path / "b" / "x.txt"))
    assert first.directory.parent == second.directory.parent, "both are called x"
    for data, content in ((first, contents["a"]), (second, contents["b"])):
        again = open_tokens(data.directory)
        assert "".join(decoded(again, "train") + decoded(again, "val")) == content
        assert again.fingerprint == data.fingerprint
    mixture = prepare(
        DataConfig.model_validate(
            {"mixture": {str(tmp_path / n / "x.txt"): 1 for n in contents}, "tokenizer": "char"}
        )
    )
    text = mixture.tokenizer.decode(mixture.tokens("train").tolist())
    assert "aaaa" in text and "bb" in text
    stories = [
        prepare(DataConfig(dataset="stories", num_stories=count, seed=seed, tokenizer="char"))
        for count in (30, 50)
        for seed in (0, 1)
    ]
    assert len({data.directory for data in stories}) == 4
    assert len({data.fingerprint["val"] for data in stories}) == 4


def test_a_file_of_the_same_size_and_time_is_another_source(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("abc " * 100)
    before, times = prepare(char(path)), path.stat()
    path.write_text("xyz " * 100)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as cp -p and tar leave it
    after = prepare(char(path))
    assert "xyz" in decoded(after, "train")[0] and "abc" in decoded(before, "train")[0]


def test_prepared_tokens_need_neither_a_lock_nor_a_place_to_write(folder: Path) -> None:
    data = prepare(char(folder))
    (data.directory / ".checked.json").unlink()
    lock = FileLock(data.directory.with_name(f".{data.directory.name}.lock"))
    real = data.directory.with_name("real")
    with lock:  # somebody else's, or one that cannot be taken on this file system
        data.directory.rename(real)
        data.directory.symlink_to(real)
        before = {path: path.read_bytes() for path in real.iterdir()}
        real.chmod(0o555)
        try:
            assert prepare(char(folder)).fingerprint == data.fingerprint
        finally:
            real.chmod(0o755)
    assert before.items() <= {path: path.read_bytes() for path in real.iterdir()}.items()


def test_tokens_changed_in_place_are_noticed(folder: Path) -> None:
    data = prepare(char(folder))
    path = data.directory / "train.bin"
    content = path.read_bytes()
    path.write_bytes(b"\2\0" + content[2:])
    with pytest.raises(DataError, match=r"train\.bin was changed"):
        prepare(char(folder))
    path.write_bytes(content)
    assert prepare(char(folder)).fingerprint == data.fingerprint


def test_tokens_that_somebody_has_open_survive_a_rebuild(folder: Path) -> None:
    before = prepare(char(folder))
    tokens = before.tokens("train")
    copy = tokens.copy()
    for path in list(folder.iterdir())[::2]:
        path.unlink()
    after = prepare(char(folder))
    assert len(after.tokens("train")) < len(copy)
    assert (tokens == copy).all()


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("change", [b"", b"x", None])
def test_a_token_file_of_the_wrong_size_is_named(
    folder: Path, name: str, change: bytes | None
) -> None:
    data = prepare(char(folder))
    path = data.directory / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + change if change else path.read_bytes()[:-1])
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
        prepare(char(folder))
    assert str(data.directory) in caught.value.hint
    shutil.rmtree(data.directory)  # as the hint says
    prepare(char(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"dtype": "<u2"}', '{"splits": {}}'])
def test_a_damaged_meta_file_is_named(folder: Path, content: str) -> None:
    data = prepare(char(folder))
    (data.directory / "meta.json").write_text(content)
    with pytest.raises(DataError, match=r"meta\.json"):
        open_tokens(data.directory)


def test_a_tokenizer_that_is_not_the_one_of_the_tokens_is_noticed(folder: Path) -> None:
    data = prepare(char(folder))
    path = data.directory / "tokenizer.json"
    content = json.loads(path.read_text())
    content["characters"] = content["characters"].replace("d", "z")  # valid, and wrong
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        prepare(char(folder))


@pytest.mark.parametrize("kind", [char, bpe])
def test_a_corpus_without_text_is_told_and_leaves_nothing_behind(kind, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="empty"):
        prepare(kind(tmp_path / "empty.txt"))
    left = [p for p in get_datasets_dir().rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert left == []


def test_a_text_too_short_for_one_context_is_told(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("just a few words")
    data = prepare(char(tmp_path / "short.txt"))
    with pytest.raises(DataError, match="14 tokens, fewer than one context of 64") as caught:
        RandomWindows(data.tokens("train"), batch_size=1, context_length=64)
    assert "data.context_length" in caught.value.hint


def test_a_file_that_is_not_text_is_named_and_leaves_no_half_folder(folder: Path) -> None:
    (folder / "99.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"99\.txt"):
        prepare(char(folder))
    tokens = get_datasets_dir() / "texts" / "tokens"
    assert [p.name for p in tokens.iterdir() if not p.name.endswith(".lock")] == []


@pytest.mark.parametrize("split_by", ["document", "fraction"])
def test_a_text_of_unknown_entropy_has_no_floor(tmp_path: Path, split_by: str) -> None:
    (tmp_path / "one.txt").write_text("A text of one document, cut into two splits.\n" * 50)
    data = prepare(make_config(DataConfig, {"path": tmp_path / "one.txt", "split_by": split_by}))
    assert data.floor_bits_per_byte is None
    assert all("floor_bits_per_byte" not in facts for facts in data.meta["splits"].values())


def test_the_floor_of_stories_is_their_surprisal_per_byte() -> None:
    from common.data.stories import generate_stories

    data = prepare(DataConfig(dataset="stories", num_stories=300, tokenizer="char"))
    sums = {"train": [0.0, 0], "val": [0.0, 0]}
    for index, (text, surprisal) in enumerate(generate_stories(300, 0)):
        split = choose_split(Document(str(index), ""), 0.1, 0)
        sums[split][0] += surprisal / float(np.log(2))
        sums[split][1] += len(text)
    for split, (bits, size) in sums.items():
        assert data.meta["splits"][split]["floor_bits_per_byte"] == pytest.approx(bits / size)
    assert data.floor_bits_per_byte == data.meta["splits"]["val"]["floor_bits_per_byte"]


_PREPARE = """
import sys
from pathlib import Path
from common.data.config import DataConfig
from common.data.prepare import prepare
print("ready", file=sys.stderr, flush=True)
config = DataConfig(path=Path(sys.argv[1]), tokenizer="bpe", vocab_size=400)
print(prepare(config).meta["created"])
"""


def start_preparing(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _PREPARE, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    return process


@pytest.fixture
def large_folder(tmp_path: Path) -> Path:
    """Long enough (1.5 s or so) that it can be killed while it works."""
    folder = tmp_path / "large"
    folder.mkdir()
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(20_000)]
    for i in range(40):
        (folder / f"{i}.txt").write_text(" ".join(rng.choices(words, k=8_000)))
    return folder


@pytest.mark.slow
def test_a_killed_preparation_leaves_no_half_folder_and_the_next_one_succeeds(
    large_folder: Path,
) -> None:
    def whole() -> list[Path]:
        return [*(get_datasets_dir() / "large" / "tokens").glob("bpe_400-*")]

    killed = 0
    for delay in (0.05, 0.3, 0.6):
        process = start_preparing(large_folder)
        time.sleep(delay)
        process.kill()
        killed += process.wait() < 0 and not whole()
        process.communicate()
        for target in whole():
            open_tokens(target)  # raises if it is half of one
    assert killed, "at least one was killed half-way"
    data = prepare(DataConfig(path=large_folder, tokenizer="bpe", vocab_size=400))
    texts = {path.read_text() for path in large_folder.iterdir()}
    assert set(decoded(data, "train") + decoded(data, "val")) == texts
    left = [p for p in data.directory.parent.iterdir() if not p.name.endswith(".lock")]
    assert left == [data.directory]


@pytest.mark.slow
def test_two_processes_at_once_prepare_once(large_folder: Path) -> None:
    started = [start_preparing(large_folder) for _ in range(2)]
    results = [process.communicate(timeout=100) for process in started]
    assert [process.returncode for process in started] == [0, 0], results
    assert len({output.strip() for output, _ in results}) == 1, "both got the same folder"


@pytest.mark.slow
def test_a_text_that_changes_while_it_is_prepared_is_named(large_folder: Path) -> None:
    process = start_preparing(large_folder)
    tokens = get_datasets_dir() / "large" / "tokens"
    while not [*tokens.glob(".*.building/recipe.json")]:
        assert process.poll() is None
        time.sleep(0.001)
    (large_folder / "0.txt").write_text("somebody saves the file again")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1 and "changed during preparation" in errors
    assert [path.name for path in tokens.iterdir() if not path.name.endswith(".lock")] == []
    data = prepare(DataConfig(path=large_folder, tokenizer="bpe", vocab_size=400))
    assert "somebody saves the file again" in decoded(data, "train") + decoded(data, "val")
