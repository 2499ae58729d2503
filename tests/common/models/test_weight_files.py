"""Reading safetensors files piece by piece: layouts, dtypes, several files, files that change meanwhile."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from common.errors import ModelError
from common.models import Decoder, load_pretrained, weight_files
from common.models.weight_files import WeightFiles, allocate

ROOT = "model."
INDEX = "model.safetensors.index.json"


@pytest.fixture
def files() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_parts(
    folder: Path, *parts: dict[str, torch.Tensor], index: dict[str, str] | None = None
) -> Path:
    """Several files and their index."""
    folder.mkdir(parents=True)
    places = {}
    for number, tensors in enumerate(parts):
        save_file(tensors, folder / f"part-{number}.safetensors")
        places |= dict.fromkeys(tensors, f"part-{number}.safetensors")
    places = places if index is None else index
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


LAYOUTS = {
    "whole": lambda room: room,
    "rows of a larger one": lambda room: torch.cat([room] * 3)[1 : 1 + len(room)],
    "transposed": lambda room: room.mT.contiguous().mT,
    "columns of a larger one": lambda room: torch.cat([room, room], dim=-1)[..., : room.shape[-1]],
    "every other column": lambda room: room.repeat_interleave(2, dim=-1)[..., ::2],
}


@pytest.mark.parametrize(
    "buffer", [32, 100, 2**22], ids=["rows are larger", "few rows", "all rows"]
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_are_those_of_the_file_in_any_layout_and_dtype(
    stored: torch.dtype,
    layout: str,
    buffer: int,
    tmp_path: Path,
    files: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weight_files, "_BUFFER", buffer)
    tensors = {
        "model.a": draw(9, 20, dtype=stored),
        "model.b": draw(3, 4, 20, dtype=stored, seed=1),
    }
    found = WeightFiles(write(tmp_path / "a", tensors), files, ROOT)
    for name, expected in tensors.items():
        assert torch.equal(found.read(name), expected) and found.read(name).dtype == stored
        for wanted in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            for start, end in ((0, len(expected)), (1, 3), (len(expected), len(expected))):
                room = torch.full_like(expected[start:end], float("nan"), dtype=wanted)
                into = LAYOUTS[layout](room) if len(room) else room
                assert into.shape == room.shape
                found.copy_rows(name, into, start)
                assert torch.equal(into, expected[start:end].to(wanted))


def test_numbers_and_vectors(tmp_path: Path, files: ExitStack) -> None:
    tensors = {"number": torch.tensor(3.5), "vector": draw(7), "none": torch.empty(0, 4)}
    found = WeightFiles(write(tmp_path / "a", tensors), files, "")
    for name, expected in tensors.items():
        assert found.shapes[name] == expected.shape and torch.equal(found.read(name), expected)
    part = torch.empty(2)
    found.copy_rows("vector", part, 5)
    assert torch.equal(part, tensors["vector"][5:])


@pytest.mark.parametrize(
    ("shape", "start"), [((2, 3), 3), ((5, 3), 0), ((2, 4), 0), ((2,), 0), ((1, 2, 3), 0)]
)
def test_rows_that_do_not_fit(
    shape: tuple[int, ...], start: int, tmp_path: Path, files: ExitStack
) -> None:
    found = WeightFiles(write(tmp_path / "a", {"a": draw(4, 3)}), files, "")
    with pytest.raises(ModelError, match=r"a \[4, 3\] has no rows for"):
        found.copy_rows("a", torch.empty(shape), start)


def test_the_dtype_is_that_of_most_bytes(tmp_path: Path, files: ExitStack) -> None:
    half = {"model.a": draw(9, 20, dtype=torch.bfloat16), "model.norm": draw(20)}
    assert WeightFiles(write(tmp_path / "a", half), files, ROOT).dtype == torch.bfloat16
    half["model.b"] = draw(9, 20)
    assert WeightFiles(write(tmp_path / "b", half), files, ROOT).dtype == torch.float32


def test_equal_tensors(tmp_path: Path, files: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "_BUFFER", 64)
    a = draw(9, 20)
    other = a.clone()
    other[8, 19] += 1
    tensors = {
        "a": a,
        "same": a.clone(),
        "other": other,
        "half": a.half(),
        "turned": a.clone().view(20, 9),
    }
    found = WeightFiles(write(tmp_path / "a", tensors), files, "")
    assert [name for name in tensors if found.are_equal("a", name)] == ["a", "same"]


# --- several files ---


def test_several_files_are_one_collection(tmp_path: Path, files: ExitStack) -> None:
    first, second = {"embed": draw(5, 4), "lm_head.weight": draw(5, 4)}, {"norm": draw(4)}
    found = WeightFiles(write_parts(tmp_path / "a", first, second), files, ROOT)
    assert set(found.shapes) == {"model.embed", "lm_head.weight", "model.norm"}
    assert torch.equal(found.read("model.norm"), second["norm"])
    assert torch.equal(found.read("lm_head.weight"), first["lm_head.weight"])


def test_the_cache_of_the_hub_has_links(tmp_path: Path, files: ExitStack) -> None:
    """`snapshots/<commit>/model-1.safetensors` is a link to `blobs/<sha256>`."""
    tensors = {"model.a": draw(5, 4)}, {"model.b": draw(4)}
    folder = write_parts(tmp_path / "snapshots" / "commit", *tensors)
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    found = WeightFiles(folder, files, ROOT)
    assert torch.equal(found.read("model.b"), tensors[1]["model.b"])
    (tmp_path / "blobs" / "0").unlink()
    with pytest.raises(ModelError, match="no such file"):
        WeightFiles(folder, files, ROOT)


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ({"model.a": "part-0.safetensors", "model.c": "part-1.safetensors"}, "model.b"),
        ({"model.a": "part-1.safetensors", "model.b": "part-0.safetensors"}, "model.a"),
        ({"model.a": "part-0.safetensors", "model.b": "part-0.safetensors"}, "model.b"),
    ],
    ids=["a file is missing in it", "files exchanged", "wrong file"],
)
def test_an_index_that_contradicts_its_files(
    index: dict[str, str], named: str, tmp_path: Path, files: ExitStack
) -> None:
    folder = write_parts(tmp_path / "a", {"model.a": draw(4)}, {"model.b": draw(4)}, index=index)
    with pytest.raises(ModelError, match=f"'{named}' is not in the file named by"):
        WeightFiles(folder, files, ROOT)


def test_a_tensor_that_is_there_twice(tmp_path: Path, files: ExitStack) -> None:
    both = {"model.a": draw(4), "model.c": draw(4)}, {"model.a": draw(4), "model.b": draw(4)}
    with pytest.raises(ModelError, match=r"part-1\.safetensors: 'model\.a' is also in another"):
        WeightFiles(write_parts(tmp_path / "a", *both), files, ROOT)
    fact = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f'{{"a":{fact},"a":{fact}}}'.encode()
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="names a tensor twice"):
        WeightFiles(tmp_path, files, ROOT)


def test_headers_are_read_as_safetensors_reads_them(tmp_path: Path, files: ExitStack) -> None:
    """Tensors in another order than their data, names with escapes, spaces around the JSON."""
    facts = {
        'b"\u00e9\n': {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "__metadata__": {"format": "pt"},
        "a": {"shape": [], "data_offsets": [0, 4], "dtype": "F32"},
    }
    header = (json.dumps(facts) + "   ").encode()
    content = struct.pack("<Q", len(header)) + header + struct.pack("<3f", 1, 2, 3)
    (tmp_path / "model.safetensors").write_bytes(content)
    found = WeightFiles(tmp_path, files, "")
    assert found.read("a").tolist() == 1 and found.read('b"\u00e9\n').tolist() == [2, 3]


# --- files that change meanwhile ---


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"abcd")
    os.utime(path, ns=(0, 1))  # a clock may be coarse


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"abcd")


@pytest.mark.parametrize("change", [truncate, overwrite, extend])
def test_a_file_that_changes_while_it_is_read(
    change: Any, tmp_path: Path, files: ExitStack
) -> None:
    folder = write(tmp_path / "a", {"a": draw(1000, 100), "b": draw(3)})
    found = WeightFiles(folder, files, "")
    found.read("b")
    change(folder / "model.safetensors")
    for name in ("a", "b"):
        with pytest.raises(ModelError, match=r"model\.safetensors was changed while it was read"):
            found.read(name)


def test_a_file_that_is_replaced_or_removed_is_read_to_its_end(
    tmp_path: Path, files: ExitStack
) -> None:
    tensors = {"a": draw(100, 10)}
    folder = write(tmp_path / "a", tensors)
    found = WeightFiles(folder, files, "")
    write(tmp_path / "b", {"a": draw(7)})
    (tmp_path / "b" / "model.safetensors").replace(folder / "model.safetensors")
    assert torch.equal(found.read("a"), tensors["a"])


def test_a_disk_that_fails(tmp_path: Path, files: ExitStack) -> None:
    class Failing:
        def __init__(self, file: Any) -> None:
            self.seek, self.fileno = file.seek, file.fileno

        def readinto(self, memory: memoryview) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    found = WeightFiles(write(tmp_path / "a", {"a": draw(100, 10)}), files, "")
    file: Any = found._tensors["a"].file
    file._file = Failing(file._file)
    with pytest.raises(ModelError, match=r"cannot read .*Input/output error"):
        found.read("a")


def test_reads_may_return_less_than_was_asked_for(tmp_path: Path, files: ExitStack) -> None:
    """As those of network disks do."""

    class Slow:
        def __init__(self, file: Any) -> None:
            self.seek, self.fileno, self.inner = file.seek, file.fileno, file

        def readinto(self, memory: memoryview) -> int:
            count: int = self.inner.readinto(memory[:7])
            return count

    tensors = {"a": draw(100, 10)}
    found = WeightFiles(write(tmp_path / "a", tensors), files, "")
    file: Any = found._tensors["a"].file
    file._file = Slow(file._file)
    assert torch.equal(found.read("a"), tensors["a"])


def test_short_memory_is_an_error_of_one_line() -> None:
    with pytest.raises(ModelError, match="not enough memory: 1,073,741,824 MiB are needed"):
        allocate((2**50,), torch.uint8)


# --- whole models ---

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def llama_tensors(config: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Random weights of a Llama under their names on the hub."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    kv = width * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (config["vocab_size"], width),
        "model.norm": (width,),
        "lm_head": (config["vocab_size"], width),
    }
    for layer in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in {
                "input_layernorm": (width,),
                "post_attention_layernorm": (width,),
                "self_attn.q_proj": (width, width),
                "self_attn.k_proj": (kv, width),
                "self_attn.v_proj": (kv, width),
                "self_attn.o_proj": (width, width),
                "mlp.gate_proj": (inner, width),
                "mlp.up_proj": (inner, width),
                "mlp.down_proj": (width, inner),
            }.items()
        }
    return {
        f"{name}.weight": draw(*shape, seed=seed).mul(0.3).add(len(shape) == 1).to(dtype)
        for seed, (name, shape) in enumerate(shapes.items())
    }


def write_llama(folder: Path, dtype: torch.dtype, **changes: Any) -> Path:
    config = LLAMA | changes
    tensors = llama_tensors(config, dtype)
    names = sorted(tensors)
    parts = {name: tensors[name] for name in names[::2]}, {
        name: tensors[name] for name in names[1::2]
    }
    write_parts(folder, *parts)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_parameters_have_the_chosen_dtype_and_tables_of_angles_stay_in_float32(
    tmp_path: Path,
) -> None:
    folder = write_llama(tmp_path / "a", torch.bfloat16)
    models: dict[Any, Decoder] = {
        dtype: load_pretrained(folder, dtype=dtype)
        for dtype in (None, "auto", torch.float32, torch.bfloat16, torch.float16)
    }
    ids = torch.arange(20)[None]
    expected = models[None](ids)["logits"]
    for chosen, model in models.items():
        dtype = {None: torch.float32, "auto": torch.bfloat16}.get(chosen, chosen)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
        for name, parameter in models[None].named_parameters():  # exact: bfloat16 is in all of them
            assert torch.equal(model.get_parameter(name), parameter.to(dtype))
        found = model(ids)["logits"].float()
        assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    with pytest.raises(ModelError, match=r"dtype must be auto, float32, .*, got torch\.int8"):
        load_pretrained(folder, dtype=torch.int8)


@pytest.mark.slow
def test_weights_are_in_memory_once(tmp_path: Path) -> None:
    """Peak memory of a process that loads 220 MB of bfloat16, in two files: at most 1.2 times as much."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 20_000}
    folder = write_llama(tmp_path / "a", torch.bfloat16, num_hidden_layers=4, **sizes)
    code = (
        "import sys, torch\n"
        "from common.models import load_pretrained\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int(next(l for l in lines if l.startswith('VmHWM')).split()[1]) * 1024\n"
        "load_pretrained(sys.argv[2], dtype='auto')\n"  # imports, and threads that start
        "before = peak()\n"
        "model = load_pretrained(sys.argv[1], dtype='auto')\n"
        "print(peak() - before, sum(p.nbytes for p in model.parameters()))"
    )
    small = write_llama(tmp_path / "small", torch.bfloat16)
    command = [sys.executable, "-c", code, str(folder), str(small)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    grown, weights = map(int, output.split())
    assert weights > 2e8 and 0.9 * weights < grown < 1.2 * weights
