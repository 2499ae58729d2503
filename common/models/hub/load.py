"""Load Decoders from folders in Hugging Face format: `config.json` and safetensors.

    model = load_pretrained("assets/models/openai-community--gpt2")

Nothing is executed or unpickled. Before allocating a tensor, its name, dtype and shape in the file
are compared with those that `config.json` implies.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch

from common.errors import ModelError
from common.models.config import DecoderConfig
from common.models.decoder import Decoder
from common.models.feedforwards.moe import MoE
from common.models.folders import find_model_folder
from common.models.fp8 import parse_quantization
from common.models.hub.config import read_config
from common.models.hub.families.base import Family
from common.models.hub.weights import check_weights, fill, parts_of, weights_of
from common.models.mixers.rope import RotaryEmbedding
from common.models.weight_files import WeightFiles, read_bounded_json

_LARGEST_CONFIG = 2**20  # bytes
_LARGEST_ROPE_TABLE = 2**28
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_pretrained(
    folder: Path | str,
    *,
    context_length: int | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
) -> Decoder:
    """Load a model of one of the `FAMILIES` from a folder as a Decoder, on the CPU, without dropout.

    Args:
        folder: folder with `config.json` and `model.safetensors` or `model.safetensors.index.json`,
            or its name in assets/models (OWNER/NAME for models of the hub).
        context_length: shortens the context.
        dtype: of the parameters; "auto" as they are stored, None float32.

    Raises ModelError for damaged or missing files and unsupported features.
    """
    if dtype not in (None, "auto", *_DTYPES):
        names = ", ".join(str(allowed).removeprefix("torch.") for allowed in _DTYPES)
        raise ModelError(f"dtype must be auto, {names}, got {dtype}")
    folder = find_model_folder(folder)
    config = read_bounded_json(folder / "config.json", _LARGEST_CONFIG)
    family, vocab_size, arguments = read_config(config, context_length)
    quantization = config.get("quantization_config")
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder} holds an adapter", "merge it into its model first")
    with ExitStack() as files:
        blocks = None if quantization is None else parse_quantization(quantization)
        tensors = WeightFiles(folder, files, family.root, blocks)
        _check_counts(family, arguments, len(tensors.shapes))
        with torch.device("meta"):
            model = Decoder(vocab_size, **arguments)
        weights = weights_of(model)
        whole = DecoderConfig(**read_config(config)[2])  # a shorter context has fewer positions
        parts = {name: parts_of(family, whole, name, weights[name]) for name in weights}
        check_weights(family, whole, parts, tensors)
        chosen = tensors.dtype if dtype == "auto" else dtype or torch.float32
        for parameter in model.parameters():  # not the buffers: tables of RoPE stay in float32
            parameter.data = parameter.data.to(chosen)
        try:
            model.to_empty(device="cpu")
        except RuntimeError as error:  # raised by the allocator
            size = chosen.itemsize * model.num_parameters() / 2**30
            raise ModelError(f"{folder} needs {size:.1f} GiB of memory in {chosen}") from error
        for module in model.modules():
            if isinstance(module, RotaryEmbedding | MoE):
                module.reset_buffers()
        for name, weight in weights_of(model).items():
            fill(weight, parts[name], tensors)
    return model


def _check_counts(family: Family, arguments: dict[str, Any], num_tensors: int) -> None:
    """Check what costs memory and time, and is not the shape of a tensor in the file."""
    num_layers = arguments["num_layers"]
    if num_layers * family.fewest_tensors > num_tensors:
        raise ModelError(
            f"config.json has {num_layers} layers, but there are {num_tensors} tensors"
        )
    experts = arguments.get("options", {}).get("moe", {}).get("num_experts", 0)
    if experts > num_tensors:
        raise ModelError(f"config.json has {experts} experts, but there are {num_tensors} tensors")
    size = 2 * 4 * arguments["context_length"] * arguments.get("head_size", 0)
    if size > _LARGEST_ROPE_TABLE:
        raise ModelError(
            f"config.json: max_position_embeddings = {arguments['context_length']} needs a table of "
            f"{size:,} bytes",
            "give a shorter context_length",
        )
