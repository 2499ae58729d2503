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
from common.models.config import DecoderConfig
from common.models.decoder import Decoder
from common.models.hub_config import ACTIVATIONS, ARCHITECTURES, decoder_arguments
from common.models.hub_weights import parts_of
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
    config = model.config
    family = _family_of(config)
    intermediate_size = model.get_parameter("blocks.0.feedforward.input.weight").shape[0]
    common = {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if family != "gpt2":
        return common | _llama_config(config, family, intermediate_size)
    return common | {
        "n_positions": config.context_length,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": intermediate_size,
        "activation_function": ACTIVATIONS[config.activation],
        "layer_norm_epsilon": config.norm_eps or 1e-5,
        **dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), config.dropout),
    }


def _llama_config(config: DecoderConfig, family: str, intermediate_size: int) -> dict[str, Any]:
    written: dict[str, Any] = {
        "max_position_embeddings": config.context_length,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads or config.num_heads,
        "head_dim": config.size_of_heads,
        "intermediate_size": intermediate_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps or 1e-6,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "attention_dropout": config.dropout,
    }
    if family != "qwen2":
        written["attention_bias"] = config.bias
    if family == "llama":
        written["mlp_bias"] = config.bias
    if scaling := config.rope_scaling:
        written["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_context_length,
        }
    return written


def _family_of(config: DecoderConfig) -> str:
    """The family of a Decoder. Raises ModelError with the requirements of the nearest one."""
    has = config.model_dump() | {
        "qkv_bias": config.bias if config.qkv_bias is None else config.qkv_bias,
        "num_kv_heads": config.num_kv_heads or config.num_heads,
        "head_size": config.size_of_heads,
    }
    wrong: dict[str, list[str]] = {}
    for family, needs in _needs(config).items():
        wrong[family] = [f"{k}={value}" for k, value in needs.items() if has[k] != value]
        if not wrong[family]:
            return family
    nearest = min(wrong, key=lambda family: len(wrong[family]))
    raise ModelError(
        "no architecture of transformers computes the same as this Decoder: "
        f"{nearest} would need {', '.join(wrong[nearest])}",
        f"supported: {', '.join(ARCHITECTURES)}",
    )


def _needs(config: DecoderConfig) -> dict[str, dict[str, Any]]:
    """Required settings of a Decoder by family; others are free."""
    gpt2 = {"positions": "learned", "norm": "layernorm", "feedforward": "mlp", "qk_norm": False}
    llama = {
        **{"mixer": "attention", "positions": "rope", "norm": "rmsnorm"},
        **{"feedforward": "swiglu", "qk_norm": False},
    }
    plain: dict[str, Any] = {
        "layers": None,
        "feedforwards": None,
        "options": {},
        "attention_soft_cap": None,
    }
    gpt2, llama = gpt2 | plain, llama | plain
    heads, whole = config.num_heads, config.hidden_size // config.num_heads
    return {
        "gpt2": {**gpt2, "mixer": "attention", "num_kv_heads": heads, "head_size": whole},
        # transformers requires this although it accepts head_dim.
        "llama": {**llama, "qkv_bias": config.bias, "hidden_size": whole * heads},
        "qwen2": {**llama, "bias": False, "qkv_bias": True},
        "qwen3": {**llama, "bias": False, "qkv_bias": False, "qk_norm": True},
    }


@torch.no_grad()
def hub_tensors(model: Decoder, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The parameters under the names for `load_pretrained`, each in separate memory."""
    vocab_size, arguments = decoder_arguments(config)
    with torch.device("meta"):
        read_again = Decoder(vocab_size, **arguments)
    ours: dict[str, torch.Tensor] = dict(model.named_parameters())
    tensors = {}
    for name, parameter in read_again.named_parameters():
        value = ours.get(name)
        if value is None:  # a bias that a GPT-2 has
            value = model.token_embedding.weight.new_zeros(parameter.shape)
        start = 0
        for part in parts_of(read_again, config, name, parameter):
            size = part.shape[-1 if part.transposed else 0]
            rows = value[start : start + size]
            rows = rows.t() if part.transposed else rows
            tensors[part.name] = rows.to("cpu").clone(memory_format=torch.contiguous_format)
            start += size
    return tensors
