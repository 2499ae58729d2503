"""Load Decoders from folders in Hugging Face format: `config.json` and safetensors.

    model = load_pretrained("assets/models/openai-community--gpt2")

Nothing is executed or unpickled. Before allocating a tensor, its name, dtype and shape in the file
are compared with those that `config.json` implies.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

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


def load_pretrained(folder: Path | str, *, context_length: int | None = None) -> Decoder:
    """Load GPT-2, Llama, Qwen2 or Qwen3 from a folder as a Decoder, in float32 on the CPU, without dropout.

    Args:
        folder: folder with `config.json` and `model.safetensors` or `model.safetensors.index.json`,
            or its name in assets/models (OWNER/NAME for models of the hub).
        context_length: shortens the context.

    Raises ModelError for damaged or missing files and unsupported features.
    """
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
        try:
            model.to_empty(device="cpu")
        except RuntimeError as error:  # raised by the allocator
            size = 4 * model.num_parameters() / 2**30
            raise ModelError(f"{folder} needs {size:.1f} GiB of memory in float32") from error
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
