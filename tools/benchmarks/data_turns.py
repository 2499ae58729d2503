"""One turn of one contestant of data.py: `data_turns WORK FOLDER key=value ...`; the last line is JSON."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Answer = dict[str, Any]
BATCH, TIME = 64, 1024
END_OF_TEXT = 0  # the first token of vocabularies from `learn`


def write_text(folder: Path, text: str, megabytes: str) -> Answer:
    """The Python files of this environment, repeated with a distinct mark each time."""
    import site

    files = sorted(Path(site.getsitepackages()[0]).rglob("*.py"))
    size, turn = 0, 0
    with Path(text).open("w", encoding="utf-8") as file:
        while size < int(megabytes) * 1_000_000:
            turn += 1
            for path in files:
                document = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
                document = f"# {turn}\n{document}"
                file.write(json.dumps({"text": document}) + "\n")
                size += len(document.encode())
                if size >= int(megabytes) * 1_000_000:
                    break
    return {"megabytes": size / 1e6}


def _texts(path: str) -> Iterator[str]:
    with Path(path).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def learn(folder: Path, text: str, tokenizer: str, vocab_size: str) -> Answer:
    from common.data.config import DataConfig
    from common.data.corpora import open_corpus
    from common.data.tokenizers import BPETokenizer
    from common.data.vocabulary import training_texts

    started = time.perf_counter()
    corpus = open_corpus(DataConfig(path=Path(text)))
    trained = BPETokenizer.train(training_texts(corpus.documents()), int(vocab_size))
    seconds = time.perf_counter() - started
    trained.save(Path(tokenizer))
    return {"seconds": seconds}


def learn_library(folder: Path, text: str, tokenizer: str, vocab_size: str) -> Answer:
    import tokenizers as hf

    started = time.perf_counter()
    bpe = hf.Tokenizer(hf.models.BPE())
    bpe.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = hf.trainers.BpeTrainer(
        vocab_size=int(vocab_size),
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(text), trainer)
    return {"seconds": time.perf_counter() - started}


def prepare_ours(folder: Path, text: str, tokenizer: str) -> Answer:
    from common.data.config import DataConfig
    from common.data.prepare import prepare

    shutil.rmtree(folder / "assets" / "datasets", ignore_errors=True)
    config = DataConfig(
        path=Path(text), tokenizer="pretrained", pretrained_tokenizer=tokenizer, split_by="document",
        val_fraction=0.01,
    )  # fmt: skip
    started = time.perf_counter()
    data = prepare(config)
    return _answer(time.perf_counter() - started, data.tokens("train"), data.tokens("val"))


def prepare_encode_batch_fast(folder: Path, text: str, tokenizer: str) -> Answer:
    """The approach of a short script: batches of documents, ids to a file."""
    import tokenizers as hf

    bpe = hf.Tokenizer.from_file(tokenizer)
    path = folder / "library.bin"
    started = time.perf_counter()
    with path.open("wb") as file:
        batch: list[str] = []
        for document in _texts(text):
            batch.append(document)
            if len(batch) == 1000:
                _write(file, bpe, batch)
                batch = []
        _write(file, bpe, batch)
    seconds = time.perf_counter() - started
    return _answer(seconds, np.fromfile(path, "<u2"))


def _write(file: Any, bpe: Any, batch: list[str]) -> None:
    for encoding in bpe.encode_batch_fast(batch, add_special_tokens=False):
        file.write(np.array([END_OF_TEXT, *encoding.ids], dtype="<u2").tobytes())


def prepare_datasets(folder: Path, text: str, tokenizer: str) -> Answer:
    """Like nanoGPT's openwebtext/prepare.py: map with processes, then write the ids to one file."""
    import datasets
    import tokenizers as hf

    datasets.disable_progress_bars()
    shutil.rmtree(folder / "cache", ignore_errors=True)

    def encode(row: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        bpe = hf.Tokenizer.from_file(tokenizer)
        found = bpe.encode_batch_fast(row["text"], add_special_tokens=False)
        return {"ids": [[END_OF_TEXT, *encoding.ids] for encoding in found]}

    started = time.perf_counter()
    rows: Any = datasets.load_dataset(
        "json", data_files=text, split="train", cache_dir=str(folder / "cache")
    )
    encoded = rows.map(encode, batched=True, remove_columns=["text"], num_proc=2)
    path = folder / "datasets.bin"
    with path.open("wb") as file:
        for batch in encoded.with_format("numpy").iter(batch_size=1000):
            file.write(np.concatenate(batch["ids"]).astype("<u2").tobytes())
    seconds = time.perf_counter() - started
    return _answer(seconds, np.fromfile(path, "<u2"))


def _answer(seconds: float, *parts: Any) -> Answer:
    """Time, memory, and a digest of the ids that does not depend on document order."""
    total = 0
    for tokens in parts:
        tokens = np.asarray(tokens)
        for document in np.split(tokens, np.flatnonzero(tokens == END_OF_TEXT)):
            ids = document[document != END_OF_TEXT].tobytes()
            total += int.from_bytes(hashlib.sha256(ids).digest()[:8], "big") if ids else 0
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "megabytes": own, "sha256": str(total)}


def load_ours(folder: Path, tokens: str, batches: str) -> Answer:
    from common.data.loader import RandomWindows

    path = folder / "loader.bin"
    _fill(path, int(tokens))
    _read_through(path)
    windows = RandomWindows(
        np.memmap(path, dtype="<u2", mode="r"), batch_size=BATCH, context_length=TIME, seed=1
    )
    return _time(lambda index: windows.batch(index), int(batches))


def load_datasets(folder: Path, tokens: str, batches: str) -> Answer:
    """Rows of 1,024 ids in Arrow, in torch's format, shuffled by torch's DataLoader."""
    import datasets
    import torch

    path = folder / "loader.arrow"
    if not path.exists():
        _fill(folder / "loader.bin", int(tokens))
        _write_arrow(np.memmap(folder / "loader.bin", dtype="<i2", mode="r"), path)
    _read_through(path)
    dataset = datasets.Dataset.from_file(str(path)).with_format("torch")
    draw = torch.Generator().manual_seed(1)
    sampler = torch.utils.data.RandomSampler(
        dataset, replacement=True, num_samples=10**9, generator=draw
    )
    loader = iter(torch.utils.data.DataLoader(dataset, batch_size=BATCH, sampler=sampler))
    return _time(lambda index: next(loader), int(batches))


def _write_arrow(ids: Any, path: Path) -> None:
    """Rows of 1,024 ids in the format of `datasets`: 1,000 rows per record batch.

    A single batch would be 13 times as slow; variable-length lists and int32 or int64 are as fast.
    """
    import pyarrow as pa

    schema = pa.schema({"ids": pa.list_(pa.int16(), TIME)})
    block = 1000 * TIME
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for start in range(0, len(ids) // TIME * TIME, block):
            values = pa.array(ids[start : start + block][: (len(ids) - start) // TIME * TIME])
            rows = pa.FixedSizeListArray.from_arrays(values, TIME)
            writer.write_batch(pa.record_batch([rows], schema=schema))


def _read_through(path: Path) -> None:
    """Load the file into the page cache and flush pending writes."""
    with path.open("rb") as file:
        os.fsync(file)
        while file.read(1 << 24):
            pass


def _fill(path: Path, tokens: int) -> None:
    if path.exists() and path.stat().st_size == 2 * tokens:
        return
    block = np.random.default_rng(0).integers(1, 50_000, 50_000_000).astype("<u2")
    with path.open("wb") as file:
        for start in range(0, tokens, len(block)):
            file.write(block[: tokens - start].tobytes())


def _time(batch: Any, count: int) -> Answer:
    for index in range(20):
        batch(index)
    started = time.perf_counter()
    for index in range(20, 20 + count):
        batch(index)
    return {"milliseconds": 1000 * (time.perf_counter() - started) / count}


WORKS = {
    work.__name__: work
    for work in (
        write_text, learn, learn_library, prepare_ours, prepare_encode_batch_fast,
        prepare_datasets, load_ours, load_datasets,
    )
}  # fmt: skip

if __name__ == "__main__":
    work, folder, *pairs = sys.argv[1:]
    answer = WORKS[work](Path(folder), **dict(pair.split("=", 1) for pair in pairs))
    print(json.dumps(answer))
