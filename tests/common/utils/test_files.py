"""Files that are whole or not there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import DataError
from common.utils.files import (
    atomic_folder,
    atomic_path,
    fsync_dir,
    publish_folder,
    read_json,
    sha256_of,
    write_json_atomic,
    write_text_atomic,
)


def test_a_file_is_replaced_only_when_its_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text_atomic(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old"
    write_text_atomic(path, "new \u00e9")
    assert path.read_text(encoding="utf-8") == "new \u00e9"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"], "no temporary file stays"


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.read_text() == "old"


@pytest.mark.slow
def test_readers_beside_a_writer_that_is_killed_see_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json_atomic(path, {"value": "0" * 20_000})
    script = """
import sys
from pathlib import Path
from common.utils.files import write_json_atomic
while True:
    for i in range(10):
        write_json_atomic(Path(sys.argv[1]), {"value": str(i) * 20_000})
        print(i, flush=True)
"""
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            value = read_json(path, DataError)["value"]
            assert len(value) == 20_000 and len(set(value)) == 1
        process.kill()
        process.communicate()
        assert len(read_json(path, DataError)["value"]) == 20_000


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"{'a': 1}"])
def test_json_that_cannot_be_read_is_told_with_its_path_and_hint(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.json") as caught:
        read_json(path, DataError, "make it again")
    assert caught.value.hint == "make it again"


def test_the_checksum_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"", b"abc", bytes(range(256)) * 5000):
        path.write_bytes(content)
        assert sha256_of(path) == hashlib.sha256(content).hexdigest()
    fsync_dir(tmp_path)


# What writes, and the name of the file that it cannot finish.
WRITERS = {
    "atomic": ("write_text_atomic(here / 'a.txt', 'x' * 99_999)", "a.txt"),
    "json": ("write_json_atomic(here / 'a.json', ['x'] * 99_999)", "a.json"),
    "tokens": ("prepare(DataConfig(path=text, tokenizer='char'))", ".bin"),
    "log": (
        "run = start_experiment('a', system_metrics_seconds=None)\n"
        "    for step in range(9_999): run.log({'loss': 1.0}, step=step)\n"
        "    run.finish()",
        "a.jsonl",
    ),
    "parquet": (
        "save_experiment('a', pd.DataFrame({'step': range(9_999), 'loss': np.random.rand(9_999)}))",
        "a.parquet",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_with_the_name_of_the_file(writer: str, tmp_path: Path) -> None:
    code, name = WRITERS[writer]
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat.\n" * 20_000)
    script = f"""
import resource
from pathlib import Path
import numpy as np, pandas as pd
from common.data import prepare
from common.data.config import DataConfig
from common.errors import exit_on_error
from common.utils import save_experiment, start_experiment
from common.utils.files import write_json_atomic, write_text_atomic
here, text = Path({str(tmp_path)!r}), {str(text)!r}
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
with exit_on_error():
    {code}
"""
    # Coverage could not write its own data.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert name in line and "too large" in line.lower()


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    with pytest.raises(RuntimeError), atomic_folder(path) as building:
        (building / "half").write_text("half")
        raise RuntimeError
    assert not [*path.parent.iterdir()]
    with atomic_folder(path) as building:
        (building / "inner").mkdir()
        (building / "inner" / "file").write_text("whole")
        assert not path.exists()
    assert (path / "inner" / "file").read_text() == "whole"
    with pytest.raises(OSError, match="folder"), atomic_folder(path) as building:
        (building / "other").write_text("another process was first")
    assert [p.name for p in path.iterdir()] == ["inner"]
    assert [p.name for p in path.parent.iterdir()] == ["folder"]


def test_a_published_folder_takes_the_place_of_one_that_is_kept(tmp_path: Path) -> None:
    path, building = tmp_path / "folder", tmp_path / "building"
    for text in ("old", "new"):
        building.mkdir()
        (building / "file").write_text(text)
        publish_folder(building, path, tmp_path / "replaced")
    assert (path / "file").read_text() == "new"
    assert (tmp_path / "replaced" / "file").read_text() == "old"
