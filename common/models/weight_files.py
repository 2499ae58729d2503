"""Read the safetensors files of a folder in Hugging Face format into the memory of a model.

safetensors validates each file, and nothing is unpickled. The bytes then pass through one buffer of a
few MiB, which stays in the CPU's cache, so that no tensor is in memory twice. What safetensors offers for
reading does not suffice: pages of a mapped file count as memory of the process, and one that is truncated
meanwhile kills it (SIGBUS); its `pread` allocates each tensor anew, and takes three times as long.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from common.errors import ModelError
from common.models.fp8 import SCALE_SUFFIX, Fp8Blocks
from common.utils.files import read_json
from common.utils.threads import one_thread

_LARGEST_INDEX = 2**26  # bytes
_LARGEST_HEADER = 2**22  # of a safetensors file; that of GPT-2 has 2**14
_BUFFER = 2**22
_FP8 = torch.float8_e4m3fn
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": _FP8,
}
_HEADS = ("lm_head.", "embed_out.")
_SCALE_DTYPES = (torch.float32, torch.bfloat16)
# Masks and frequencies that old versions saved with the weights.
NO_WEIGHTS = re.compile(r".*\.(attn|attention)\.(masked_)?bias|.*\.rotary_emb\.inv_freq")


def shown(text: str) -> str:
    """Text of a file as one short line."""
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


class _File:
    """A file whose every read checks that it is still the one that was opened."""

    def __init__(self, path: Path, files: ExitStack) -> None:
        self.path = path
        self._file = files.enter_context(path.open("rb", buffering=0))
        self._opened = os.fstat(self._file.fileno())

    def read_into(self, memory: memoryview, offset: int) -> None:
        """Fill `memory` from `offset` (bytes). Raises ModelError if that fails, and if the file has changed."""
        try:
            self._file.seek(offset)
            while memory and (count := self._file.readinto(memory)):
                memory = memory[count:]
            self.check_unchanged(os.fstat(self._file.fileno()))
        except OSError as error:
            raise ModelError(f"cannot read {self.path}: {error}") from error
        if memory:
            raise ModelError(f"{self.path} ends early", "download it again")

    def check_unchanged(self, status: os.stat_result) -> None:
        """Raise ModelError unless `status` is that of the opened file."""
        then, same = self._opened, os.path.samestat(self._opened, status)
        if not same or (status.st_size, status.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise ModelError(f"{self.path} was changed while it was read", "load it again")


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a file."""

    file: _File
    offset: int  # bytes
    dtype: torch.dtype  # uint8 for those of other kinds, which are not read
    shape: tuple[int, ...]


class WeightFiles:
    """The safetensors files of a folder as one collection.

    Attributes:
        shapes: of each tensor; scales of quantised ones are left out.
        dtype: in which most of the bytes are stored; bfloat16 for FP8.
    """

    def __init__(
        self, folder: Path, files: ExitStack, root: str, quantization: Fp8Blocks | None = None
    ) -> None:
        """root: prefix of all names except the head's; may be absent in the files.

        Raises ModelError for missing, damaged and contradictory files, and for dtypes that are not read.
        """
        self.folder, self._quantization = folder, quantization
        self._tensors = _open_all(folder, files)
        if not any(name.startswith(root) for name in self._tensors):
            self._tensors = {
                name if name.startswith(_HEADS) else root + name: tensor
                for name, tensor in self._tensors.items()
            }
        scales = _check_quantization(folder, self._tensors, quantization)
        weights = {name: t for name, t in self._tensors.items() if name not in scales}
        self.shapes = {name: tensor.shape for name, tensor in weights.items()}
        self.dtype = _main_dtype(weights.values())
        # A row of quantised weights fits in any case.
        widest = max((t.shape[1] for t in weights.values() if t.dtype == _FP8), default=0)
        self._buffer = allocate((max(_BUFFER, widest),), torch.uint8)

    def copy_rows(self, name: str, into: torch.Tensor, start: int = 0) -> None:
        """Copy the rows from `start` on of a tensor to `into`, which may have another float dtype, any strides
        and be on any device. Quantised weights are dequantised.

        Raises ModelError if the rows do not fit, the file cannot be read or has changed.
        """
        tensor = self._tensors[name]
        rows, *columns = tensor.shape or (1,)
        into = into if into.ndim else into.view(1)
        if [*into.shape[1:]] != columns or start + len(into) > rows:
            raise ModelError(f"{name} {list(tensor.shape)} has no rows for {list(into.shape)}")
        with one_thread():  # faster than plain reading; on busy cores two take three times as long
            if tensor.dtype == _FP8:
                self._dequantize(name, into, start)
            else:
                self._copy(tensor, into, start * math.prod(columns))

    def _dequantize(self, name: str, into: torch.Tensor, start: int) -> None:
        assert self._quantization is not None
        tensor, columns = self._tensors[name], into.shape[1]
        first = start * columns
        scales = self.read(name + SCALE_SUFFIX).float()
        for chunk in torch.split(into, len(self._buffer) // max(columns, 1)):
            levels = self._elements(tensor, first, chunk.numel()).view(chunk.shape)
            chunk.copy_(self._quantization.dequantize(levels, scales, start))
            start, first = start + len(chunk), first + chunk.numel()

    def read(self, name: str) -> torch.Tensor:
        """Read a whole tensor in the dtype in which it is stored; a quantised one is dequantised to float32."""
        tensor = self._tensors[name]
        dtype = torch.float32 if tensor.dtype == _FP8 else tensor.dtype
        result = allocate(tensor.shape, dtype)
        self.copy_rows(name, result)
        return result

    def are_equal(self, name: str, other: str) -> bool:
        """Whether two tensors have the same dtype, shape and bytes."""
        one, two = self._tensors[name], self._tensors[other]
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            return False
        if one.dtype == _FP8 and not self.are_equal(name + SCALE_SUFFIX, other + SCALE_SUFFIX):
            return False
        size, step = math.prod(one.shape), len(self._buffer) // one.dtype.itemsize
        return all(
            torch.equal(
                self._elements(one, first, min(step, size - first)).clone(),
                self._elements(two, first, min(step, size - first)),
            )
            for first in range(0, size, step)
        )

    def _copy(self, tensor: _Tensor, into: torch.Tensor, first: int) -> None:
        """Copy the elements from `first` on to `into`."""
        into = into.view(-1) if into.is_contiguous() else into
        row = math.prod(into.shape[1:])
        step = len(self._buffer) // (row * tensor.dtype.itemsize)
        for chunk in torch.split(into, max(step, 1)):
            if not step:  # a row is larger than the buffer
                self._copy(tensor, chunk[0], first)
            else:
                rows = self._elements(tensor, first, chunk.numel()).view(chunk.shape)
                if chunk.ndim == 2 and chunk.stride(0) < chunk.stride(1):  # transposed
                    rows = rows.t().contiguous().t()  # takes half of the time of the copy alone
                chunk.copy_(rows)
            first += chunk.numel()

    def _elements(self, tensor: _Tensor, first: int, count: int) -> torch.Tensor:
        """Read `count` elements of a tensor into the buffer, which the next call overwrites."""
        size = tensor.dtype.itemsize
        memory = self._buffer[: count * size]
        tensor.file.read_into(memory.numpy().data, tensor.offset + first * size)
        return memory.view(tensor.dtype)


def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor. Raises ModelError if memory is short."""
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:
        size = math.prod(shape) * dtype.itemsize / 2**20
        raise ModelError(f"not enough memory: {size:,.0f} MiB are needed") from error


def _main_dtype(tensors: Iterable[_Tensor]) -> torch.dtype:
    """The dtype of most bytes."""
    sizes = Counter[torch.dtype]()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.dtype.itemsize * math.prod(tensor.shape)
    dtype = max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
    return torch.bfloat16 if dtype == _FP8 else dtype


def _check_quantization(
    folder: Path, tensors: dict[str, _Tensor], quantization: Fp8Blocks | None
) -> set[str]:
    """Return the names of the scales. Raises ModelError unless they are those of the matrices in FP8."""
    scales = {name for name in tensors if name.endswith(SCALE_SUFFIX)} if quantization else set()
    quantized = {n for n, tensor in tensors.items() if tensor.dtype == _FP8} - scales
    for name in sorted(quantized | {name.removesuffix(SCALE_SUFFIX) for name in scales}):
        problem = _quantization_problem(name, tensors, quantization)
        if problem:
            raise ModelError(f"{folder}: {shown(name)} {problem}")
    return scales


def _quantization_problem(
    name: str, tensors: dict[str, _Tensor], quantization: Fp8Blocks | None
) -> str:
    """What contradicts that this tensor is a matrix in FP8 with a scale per block, or ''."""
    weight, scale = tensors.get(name), tensors.get(name + SCALE_SUFFIX)
    if weight is None or weight.dtype != _FP8:
        return f"has scales, {shown(name + SCALE_SUFFIX)}, but is no tensor in FP8"
    if quantization is None:
        return "has the dtype F8_E4M3, but config.json has no quantization_config"
    if len(weight.shape) != 2:
        return f"has the dtype F8_E4M3 and the shape {list(weight.shape)}"
    if scale is None:
        return f"has no scales, {shown(name + SCALE_SUFFIX)}"
    expected = quantization.scale_shape(weight.shape)
    if scale.shape != expected or scale.dtype not in _SCALE_DTYPES:
        return f"has scales of {scale.dtype} {list(scale.shape)}, expected float32 {list(expected)}"
    return ""


def _open_all(folder: Path, files: ExitStack) -> dict[str, _Tensor]:
    paths, index = _weight_files(folder)
    tensors: dict[str, _Tensor] = {}
    for path in paths:
        for name, tensor in _open(path, files).items():
            if name in tensors:
                raise ModelError(f"{path}: {shown(name)} is also in another file")
            tensors[name] = tensor
    if index is None:
        return tensors
    for name in sorted(index.keys() | tensors.keys()):
        if name not in index or name not in tensors or index[name] != tensors[name].file.path.name:
            raise ModelError(
                f"{folder}: {shown(name)} is not in the file named by model.safetensors.index.json"
            )
    return tensors


def _open(path: Path, files: ExitStack) -> dict[str, _Tensor]:
    """Validate a file and return its tensors."""
    _check_header_size(path)
    try:
        file = _File(path, files)
        with safe_open(path, framework="pt", backend="pread") as validated:
            names = set(validated.keys())
        file.check_unchanged(path.stat())
    except (SafetensorError, OSError) as error:
        reason = shown(str(error))
        raise ModelError(f"cannot read {path}: {reason}", "download it again") from error
    size = bytearray(8)
    file.read_into(memoryview(size), 0)
    header = bytearray(int.from_bytes(size, "little"))
    file.read_into(memoryview(header), 8)
    entries = json.loads(header, object_pairs_hook=lambda pairs: _once(path, pairs))
    tensors = {}
    for name in names:
        facts = entries[name]
        dtype = _DTYPES.get(facts["dtype"])
        if dtype is None and not NO_WEIGHTS.fullmatch(name):
            raise ModelError(f"{path}: {shown(name)} has the dtype {facts['dtype']}")
        offset = 8 + len(header) + facts["data_offsets"][0]
        tensors[name] = _Tensor(file, offset, dtype or torch.uint8, tuple(facts["shape"]))
    return tensors


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different; safetensors takes the last of equal ones."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ModelError(f"{path} is damaged: its header names a tensor twice", "download it again")
    return dict(pairs)


def read_bounded_json(path: Path, most_bytes: int) -> Any:
    """Read a JSON file. Raises ModelError if it is missing, too large, nested too deeply or not JSON."""
    if not path.is_file():
        raise ModelError(f"no such file: {path}", "pass a folder in Hugging Face format")
    if path.stat().st_size > most_bytes:
        raise ModelError(f"{path} is larger than {most_bytes:,} bytes")
    try:
        return read_json(path, ModelError)
    except RecursionError as error:
        raise ModelError(f"cannot read {path}: it is nested too deeply") from error


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Return the files, and for several the file of each tensor."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"], None
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        pickled = "; pickled weights are not read" if any(folder.glob("*.bin")) else ""
        raise ModelError(f"no such file: {folder / 'model.safetensors'}{pickled}")
    index = read_bounded_json(path, _LARGEST_INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise ModelError(f"{path} has no weight_map from tensors to files")
    for name in set(places.values()):
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ModelError(f"{path}: {shown(name)} is not a file of this folder")
    return [folder / name for name in sorted(set(places.values()))], places


def _check_header_size(path: Path) -> None:
    """Check the header size before parsing: it may claim any size."""
    if not path.is_file():
        raise ModelError(f"no such file: {path}", "download it again")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > min(_LARGEST_HEADER, path.stat().st_size - 8):
        raise ModelError(f"{path} is damaged: a header of {size:,} bytes", "download it again")
