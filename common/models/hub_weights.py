"""Map weights of Hugging Face's GPT-2, Llama, Qwen2 and Qwen3 to parameters of a Decoder.

Nothing is unpickled, and sizes claimed by a file are checked against its length before allocation.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from common.errors import ModelError
from common.models.decoder import Decoder
from common.utils.files import read_json

_LARGEST_INDEX = 2**26  # bytes
_LARGEST_HEADER = 2**22  # of a safetensors file; that of GPT-2 has 2**14
_DTYPES = ("F32", "F16", "BF16")

# Our parameter names without `blocks.N` and `.weight` or `.bias`; * is the number of the block.
_LLAMA = {
    "token_embedding": ("model.embed_tokens",),
    "final_norm": ("model.norm",),
    "head": ("lm_head",),
    "mixer_norm": ("model.layers.*.input_layernorm",),
    "mixer.query_key_value": tuple(f"model.layers.*.self_attn.{x}_proj" for x in "qkv"),
    "mixer.output": ("model.layers.*.self_attn.o_proj",),
    "mixer.query_norm": ("model.layers.*.self_attn.q_norm",),
    "mixer.key_norm": ("model.layers.*.self_attn.k_norm",),
    "feedforward_norm": ("model.layers.*.post_attention_layernorm",),
    "feedforward.gate": ("model.layers.*.mlp.gate_proj",),
    "feedforward.input": ("model.layers.*.mlp.up_proj",),
    "feedforward.output": ("model.layers.*.mlp.down_proj",),
}
_GPT2 = {
    "token_embedding": ("transformer.wte",),
    "position_embedding": ("transformer.wpe",),
    "final_norm": ("transformer.ln_f",),
    "head": ("lm_head",),
    "mixer_norm": ("transformer.h.*.ln_1",),
    "mixer.query_key_value": ("transformer.h.*.attn.c_attn",),
    "mixer.output": ("transformer.h.*.attn.c_proj",),
    "feedforward_norm": ("transformer.h.*.ln_2",),
    "feedforward.input": ("transformer.h.*.mlp.c_fc",),
    "feedforward.output": ("transformer.h.*.mlp.c_proj",),
}
ROOTS = {"gpt2": "transformer.", **dict.fromkeys(("llama", "qwen2", "qwen3"), "model.")}
# Masks and frequencies that old versions saved with the weights.
_NO_WEIGHTS = re.compile(r".*\.attn\.(masked_)?bias|.*\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class Part:
    """A tensor of the file: some rows of one of our parameters, perhaps transposed."""

    name: str
    shape: tuple[int, ...]
    transposed: bool


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
                if facts.get_dtype() not in _DTYPES and not _NO_WEIGHTS.fullmatch(name):
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


def hub_parts(model: Decoder, config: dict[str, Any]) -> dict[str, list[Part]]:
    """Map our parameter names to their slices in the file."""
    return {
        name: parts_of(model, config, name, parameter)
        for name, parameter in model.named_parameters()
    }


def parts_of(
    model: Decoder, config: dict[str, Any], name: str, parameter: torch.Tensor
) -> list[Part]:
    """The slices in the file that make up one of our parameters."""
    is_gpt2 = config["model_type"] == "gpt2"
    module, _, kind = name.rpartition(".")
    block = re.match(r"blocks\.(\d+)\.", module)
    names = (_GPT2 if is_gpt2 else _LLAMA)[module[block.end() :] if block else module]
    # transformers' Conv1D, which only GPT-2 has, multiplies by a weight of the shape (in, out).
    transposed = is_gpt2 and block is not None and parameter.ndim == 2
    rows, *columns = parameter.shape
    sizes = [config["n_positions"]] if module == "position_embedding" else [rows]
    if len(names) == 3:
        shape = model.config
        key_heads = shape.num_kv_heads or shape.num_heads
        sizes = [n * shape.size_of_heads for n in (shape.num_heads, key_heads, key_heads)]
    number = block[1] if block else ""
    return [
        Part(
            f"{theirs.replace('*', number)}.{kind}",
            (*columns, size) if transposed else (size, *columns),
            transposed,
        )
        for theirs, size in zip(names, sizes, strict=True)
    ]


def check_weights(parts: dict[str, list[Part]], tensors: WeightFiles, tied: bool) -> None:
    """Raise ModelError unless the files contain exactly the tensors of the model."""
    expected = {part.name: part.shape for parts_of in parts.values() for part in parts_of}
    for name, shape in expected.items():
        if name not in tensors.shapes:
            raise ModelError(f"{tensors.folder} has no tensor '{name}'")
        if tensors.shapes[name] != shape:
            found = list(tensors.shapes[name])
            raise ModelError(
                f"{tensors.folder}: '{name}' has the shape {found}, config.json implies {list(shape)}"
            )
    if tied and "lm_head.weight" in tensors.shapes:
        (embedding,) = parts["token_embedding.weight"]
        if not torch.equal(tensors.read("lm_head.weight"), tensors.read(embedding.name)):
            raise ModelError(
                f"{tensors.folder}: 'lm_head.weight' is not '{embedding.name}', to which "
                "config.json ties it",
                'set "tie_word_embeddings": false if the model was trained so',
            )
        expected["lm_head.weight"] = expected[embedding.name]
    for name in tensors.shapes:
        if name not in expected and not _NO_WEIGHTS.fullmatch(name):
            raise ModelError(f"{tensors.folder}: {shown(name)} belongs to no part of the model")


@torch.no_grad()
def fill_model(model: Decoder, parts: dict[str, list[Part]], tensors: WeightFiles) -> None:
    """Copy the tensors of the files into the parameters of `model`."""
    for name, parameter in model.named_parameters():
        start = 0
        for part in parts[name]:
            tensor = tensors.read(part.name)
            tensor = tensor.t() if part.transposed else tensor
            room = parameter[start : start + len(tensor)]  # fewer rows if the context is cut
            room.copy_(tensor[: len(room)])
            start += len(tensor)
