"""Save Decoders in the format of `transformers`: `config.json` and safetensors, the inverse of `load_pretrained`.

save_pretrained(model, "my_gpt2", tokenizer)   # AutoModelForCausalLM.from_pretrained reads it
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError

from apps.export.hub_tokenizer import save_hub_tokenizer
from apps.export.readback import check_logits, probe, run_reader
from common.data.tokenizers import Tokenizer
from common.errors import ModelError
from common.models.base import BaseLanguageModel
from common.models.decoder import Decoder
from common.models.hub.config import read_config, write_config
from common.models.hub.weights import parts_of, take, weights_of
from common.utils.files import atomic_folder, write_json_atomic


def save_pretrained(
    model: BaseLanguageModel, folder: Path | str, tokenizer: Tokenizer | None = None
) -> Path:
    """Write a Decoder, and its tokenizer, to the new `folder`, for AutoModelForCausalLM; return it.

    The weights keep their dtype. Biases of GPT-2 that the Decoder lacks are written as 0. Before
    the folder is published, transformers loads it and must reproduce the logits of `model`.

    Raises ModelError for a model that no architecture of transformers computes, a non-empty folder,
    and a full disk; DataError for a tokenizer that transformers does not support.
    """
    folder = Path(folder)
    if type(model) is not Decoder:
        raise ModelError(
            f"a {type(model).__name__} cannot be written in Hugging Face format",
            "transformers has no code for it; only a Decoder can be (common/models/decoder.py)",
        )
    config = hub_config(model)
    if tokenizer is not None:
        if tokenizer.vocab_size > model.vocab_size:
            raise ModelError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.vocab_size}"
            )
        config |= dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.end_of_text)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} already exists", "choose another folder, or move it away")
    try:
        with atomic_folder(folder) as building:
            write_json_atomic(building / "config.json", config)
            if tokenizer is not None:
                save_hub_tokenizer(tokenizer, building, model.context_limit)
            # In files of at most 5 GB, with an index if there are several.
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
            folder, dtype=torch.float32, local_files_only=True, **loops
        )
        theirs.eval()
        with torch.no_grad():
            return [theirs(ids).logits for ids, _ in probes]

    # Its grouped matrix product, the default, refuses experts of odd sizes.
    loops = {"experts_implementation": "eager"} if model.experts else {}
    probes, reader = probe(model), f"transformers {transformers.__version__}"
    dtype = {torch.float16: "f16", torch.bfloat16: "bf16"}.get(
        next(model.parameters()).dtype, "f32"
    )
    with _quiet(transformers.utils.logging):
        found = run_reader(reader, compute)
    check_logits(probes, found, dtype, reader, has_experts=bool(model.experts))


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Silence progress bars and messages of transformers temporarily."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def hub_config(model: Decoder) -> dict[str, Any]:
    """Create the `config.json` with which transformers computes the same as `model`.

    Raises ModelError, with the mismatches, for a Decoder of none of the families.
    """
    family, written = write_config(model.config)
    return {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "vocab_size": model.vocab_size,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        **written,
    }


@torch.no_grad()
def hub_tensors(model: Decoder, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights under the names for `load_pretrained`, each in separate memory."""
    family, vocab_size, arguments = read_config(config)
    with torch.device("meta"):
        read_again = Decoder(vocab_size, **arguments)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in weights_of(read_again).items():
        value = _weight(model, name)
        if value is None:  # a bias that a GPT-2 has
            value = model.token_embedding.weight.new_zeros(weight.shape)
        parts = parts_of(family, read_again.config, name, weight)
        if not parts and value.any():
            raise ModelError(
                f"{family.model_type} has no {name}", "train experts with balance: loss or none"
            )
        take(value, parts, tensors)
    return tensors


def _weight(model: Decoder, name: str) -> torch.Tensor | None:
    """A parameter or buffer, dequantised; None if the model has none of that name."""
    module: Any = model
    for part in name.split("."):
        module = getattr(module, part, None)
    weight: torch.Tensor | None = module
    return weight
