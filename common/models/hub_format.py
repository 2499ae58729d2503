"""Decoders as folders in the format of Hugging Face, read and written: `config.json` and safetensors.

    model = load_pretrained("assets/models/openai-community--gpt2")
    save_pretrained(model, "my_gpt2", tokenizer)   # AutoModelForCausalLM.from_pretrained reads it

Nothing is executed and nothing unpickled. Before memory is taken for a tensor, its name, dtype and
shape in the file are compared with those that `config.json` implies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError

from common.data.hub_tokenizer import save_hub_tokenizer
from common.errors import ModelError
from common.models.base import BaseLanguageModel
from common.models.decoder import Decoder
from common.models.folders import find_model_folder
from common.models.hub_config import decoder_arguments, hub_config
from common.models.hub_weights import (
    ROOTS,
    WeightFiles,
    check_weights,
    fill_model,
    hub_parts,
    hub_tensors,
    read_bounded_json,
)
from common.models.mixers.attention import RotaryEmbedding
from common.models.readback import check_logits, probe, run_reader
from common.utils.files import atomic_folder, write_json_atomic

if TYPE_CHECKING:
    from common.data.tokenizers import Tokenizer

_LARGEST_CONFIG = 2**20  # bytes
_LARGEST_ROPE_TABLE = 2**28
_FEWEST_TENSORS = 9  # of a layer


def load_pretrained(folder: Path | str, *, context_length: int | None = None) -> Decoder:
    """The GPT-2, Llama, Qwen2 or Qwen3 of a folder as a Decoder, in float32 on the CPU, no dropout.

    Args:
        folder: with `config.json` and `model.safetensors` or `model.safetensors.index.json`; or the
            name of one in assets/models, for models of the hub OWNER/NAME.
        context_length: the most tokens it has to see, where that is less than it could.

    Raises ModelError for what is damaged, missing, or computed in a way that a Decoder does not.
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
        except RuntimeError as error:  # the allocator's own kind
            size = 4 * model.num_parameters() / 2**30
            raise ModelError(f"{folder} needs {size:.1f} GiB of memory in float32") from error
        for module in model.modules():
            if isinstance(module, RotaryEmbedding):
                module.compute_tables()
        fill_model(model, parts, tensors)
    return model


def save_pretrained(
    model: BaseLanguageModel, folder: Path | str, tokenizer: Tokenizer | None = None
) -> Path:
    """Write a Decoder, and its tokenizer, to the new `folder`, for AutoModelForCausalLM; return it.

    The weights keep their dtype. Biases that a GPT-2 has and the Decoder has not are written as 0.
    transformers reads it back, and has to give the logits of `model`, before the folder has its name.

    Raises ModelError for a model that no architecture of transformers computes, for a folder that
    holds something, and for a full disk; DataError for a tokenizer that transformers does not have.
    """
    folder = Path(folder)
    if type(model) is not Decoder:
        raise ModelError(
            f"a {type(model).__name__} cannot be written in the format of Hugging Face",
            "transformers has no code for it; it is written for a Decoder (common/models/decoder.py)",
        )
    config = hub_config(model)
    if tokenizer is not None:
        if tokenizer.vocab_size > model.vocab_size:
            raise ModelError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.vocab_size}"
            )
        config |= dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.end_of_text)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} exists already", "name another folder, or move it away")
    try:
        with atomic_folder(folder) as building:
            write_json_atomic(building / "config.json", config)
            if tokenizer is not None:
                save_hub_tokenizer(tokenizer, building, model.context_limit)
            # In files of at most 5 GB, and an index where there are several.
            save_torch_state_dict(hub_tensors(model, config), building)
            _run_back(model, building)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot write {folder}: {error}", "free some disk space") from error
    return folder


def _run_back(model: Decoder, folder: Path) -> None:
    """Raise ModelError unless transformers gives the logits of `model`, both in float32."""
    import transformers  # 2 s

    def compute() -> list[torch.Tensor]:
        theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        theirs.eval()
        with torch.no_grad():
            return [theirs(ids).logits for ids, _ in probes]

    probes, reader = probe(model), f"transformers {transformers.__version__}"
    dtype = {torch.float16: "f16", torch.bfloat16: "bf16"}.get(
        next(model.parameters()).dtype, "f32"
    )
    with _quiet(transformers.utils.logging):
        found = run_reader(reader, compute)
    check_logits(probes, found, dtype, reader)


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """transformers without progress bars and notes, where the user has not turned them off."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_counts(arguments: dict[str, Any], num_tensors: int) -> None:
    """What costs memory and is not the shape of a tensor in the file."""
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
