"""Read the safetensors files of a folder in Hugging Face format.

Nothing is unpickled, and sizes claimed by a file are checked against its length before allocation.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from common.errors import ModelError
from common.utils.files import read_json

_LARGEST_INDEX = 2**26  # bytes
_LARGEST_HEADER = 2**22  # of a safetensors file; that of GPT-2 has 2**14
_DTYPES = ("F32", "F16", "BF16")
# Masks and frequencies that old versions saved with the weights.
NO_WEIGHTS = re.compile(r".*\.attn\.(masked_)?bias|.*\.rotary_emb\.inv_freq")


def shown(text: str) -> str:
    """Text of a file as one short line."""
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


class WeightFiles:
    """The safetensors files of a folder as one collection."""

    def __init__(self, folder: Path, files: ExitStack, root: str) -> None:
        """root: prefix of all names except the head's; may be absent in the files."""
        self.folder = folder
        self._files: dict[str, Any] = {}  # by tensor name
        self._root = ""  # prefix absent in the files
        self.shapes: dict[str, tuple[int, ...]] = {}
        paths, index = _weight_files(folder)
        for path in paths:
            self._open(path, files)
        if index is not None and set(index) != set(self._files):
            name = shown(min(set(index) ^ set(self._files)))
            raise ModelError(
                f"{folder}: {name} is not in the file named by model.safetensors.index.json"
            )
        if not any(name.startswith(root) for name in self.shapes):
            self._root = root
            whole = {n if n.startswith("lm_head.") else root + n: n for n in self.shapes}
            self.shapes = {name: self.shapes[short] for name, short in whole.items()}

    def _open(self, path: Path, files: ExitStack) -> None:
        _check_header_size(path)
        try:
            file = files.enter_context(safe_open(path, framework="pt"))
            for name in file.keys():  # noqa: SIM118  # it has no __iter__
                facts = file.get_slice(name)
                if name in self._files:
                    raise ModelError(f"{path}: {shown(name)} is also in another file")
                if facts.get_dtype() not in _DTYPES and not NO_WEIGHTS.fullmatch(name):
                    raise ModelError(f"{path}: {shown(name)} has the dtype {facts.get_dtype()}")
                self._files[name], self.shapes[name] = file, tuple(facts.get_shape())
        except (SafetensorError, OSError) as error:
            reason = shown(str(error))
            raise ModelError(f"cannot read {path}: {reason}", "download it again") from error

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor, which may share memory with the file."""
        name = name.removeprefix(self._root)
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor


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
