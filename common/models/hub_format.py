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
from common.models.decoder import Decoder
from common.models.folders import find_model_folder
from common.models.hub_config import decoder_arguments
from common.models.hub_weights import ROOTS, check_weights, fill_model, hub_parts
from common.models.mixers.attention import RotaryEmbedding
from common.models.weight_files import WeightFiles, read_bounded_json

_LARGEST_CONFIG = 2**20  # bytes
_LARGEST_ROPE_TABLE = 2**28
_FEWEST_TENSORS = 9  # of a layer
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_pretrained(
    folder: Path | str,
    *,
    context_length: int | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
) -> Decoder:
    """Load GPT-2, Llama, Qwen2 or Qwen3 from a folder as a Decoder, on the CPU, without dropout.

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
    vocab_size, arguments = decoder_arguments(config, context_length)
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder} holds an adapter", "merge it into its model first")
    with ExitStack() as files:
        tensors = WeightFiles(folder, files, root=ROOTS[config["model_type"]])
        _check_counts(arguments, len(tensors.shapes))
        with torch.device("meta"):
            model = Decoder(vocab_size, **arguments)
        parts = hub_parts(model, config)
        check_weights(parts, tensors, tied=model.head is None)
        chosen = tensors.dtype if dtype == "auto" else dtype or torch.float32
        for parameter in model.parameters():  # not the buffers: tables of RoPE stay in float32
            parameter.data = parameter.data.to(chosen)
        try:
            model.to_empty(device="cpu")
        except RuntimeError as error:  # raised by the allocator
            size = chosen.itemsize * model.num_parameters() / 2**30
            raise ModelError(f"{folder} needs {size:.1f} GiB of memory in {chosen}") from error
        for module in model.modules():
            if isinstance(module, RotaryEmbedding):
                module.compute_tables()
        fill_model(model, parts, tensors)
    return model


def _check_counts(arguments: dict[str, Any], num_tensors: int) -> None:
    """Check what costs memory and is not the shape of a tensor in the file."""
    if arguments["num_layers"] * _FEWEST_TENSORS > num_tensors:
        raise ModelError(
            f"config.json has {arguments['num_layers']} layers, but there are {num_tensors} tensors"
        )
    size = 2 * 4 * arguments["context_length"] * arguments.get("head_size", 0)
    if size > _LARGEST_ROPE_TABLE:
        raise ModelError(
            f"config.json: max_position_embeddings = {arguments['context_length']} needs a table of "
            f"{size:,} bytes",
            "give a shorter context_length",
        )
