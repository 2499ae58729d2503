"""config.json of Hugging Face, read as arguments of a Decoder and written from its configuration. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from common.errors import ModelError
from common.models.config import DecoderConfig
from common.models.hub.families import FAMILIES
from common.models.hub.families.base import Family
from common.models.hub.keys import Keys

# Of a mixture of experts in training.
_TRAINING = {"balance", "loss_weight", "bias_step"}
_OF_ATTENTION = (
    *("num_kv_heads", "qk_norm", "attention_scale", "attention_soft_cap"),
    *("attention_gate", "qkv_bias"),
)
_OF_ROPE = ("rope_theta", "rope_fraction", "rope_scaling")


def read_config(
    config: object, context_length: int | None = None
) -> tuple[Family, int, dict[str, Any]]:
    """Return the family, the vocabulary size and Decoder arguments of a parsed `config.json`.

    `context_length` shortens the context. Dropout is 0, since it belongs to training, not to the
    model. Raises ModelError for anything missing, malformed or unsupported.
    """
    if not isinstance(config, dict):
        raise ModelError("config.json: expected an object")
    keys = Keys(config)
    family = FAMILIES[keys.choice("model_type", None, FAMILIES)]
    arguments = family.arguments(keys)
    longest = arguments["context_length"]
    if context_length is not None:
        if not 2 <= context_length <= longest:
            raise ModelError(f"context_length must be from 2 to {longest}, got {context_length}")
        arguments["context_length"] = context_length
        _drop_long_windows(arguments, context_length)
    vocab_size = keys.integer("vocab_size")
    keys.check_rest(family.unread)
    return family, vocab_size, arguments


def _drop_long_windows(arguments: dict[str, Any], context_length: int) -> None:
    """Replace local attention whose window is no shorter than the context, and which has no RoPE of its own."""
    options = arguments.get("options", {}).get("local_attention")
    if options is not None and options.keys() == {"window"} and options["window"] >= context_length:
        del arguments["options"]["local_attention"]
        names = arguments["layers"].split()
        renamed = ["attention" if name == "local_attention" else name for name in names]
        arguments["layers"] = " ".join(renamed)


def write_config(config: DecoderConfig) -> tuple[Family, dict[str, Any]]:
    """Return the first family that computes the same as a Decoder, and the keys of its `config.json`.

    A family is tried by writing its keys, reading them again, and comparing the settings. Raises ModelError, with
    what differs from the nearest family, if there is none.
    """
    wanted = settings(config)
    differences: dict[str, list[str]] = {}
    for family in FAMILIES.values():
        differences[family.model_type] = wrong = _wrong_layers(family, config)
        if wrong:
            continue
        written = family.config(config, wanted)
        try:
            keys = Keys({**written, "model_type": family.model_type})
            read = settings(DecoderConfig(**family.arguments(keys)))
        except (ModelError, ValidationError) as error:
            wrong.append(str(error).splitlines()[0])
            continue
        for name in sorted((wanted.keys() | read.keys()) - family.free):
            if wanted.get(name) != read.get(name):
                wrong.append(f"{name}={read.get(name)}")
        if not wrong:
            return family, written
    unlike = len(wanted)  # more than any number of other differences
    nearest = min(
        differences,
        key=lambda name: sum(
            unlike if wrong.startswith("layers") else 1 for wrong in differences[name]
        ),
    )
    raise ModelError(
        "no architecture of transformers computes the same as this Decoder: "
        f"{nearest} would need {', '.join(differences[nearest])}",
        f"supported: {', '.join(FAMILIES)}",
    )


def _wrong_layers(family: Family, config: DecoderConfig) -> list[str]:
    """What differs before any key is written."""
    used = {*config.mixers, *config.feedforward_kinds}
    wrong = []
    if used - family.layers or family.required - used:
        wrong = [f"layers of {', '.join(sorted(family.layers))}"]
    if family.divides_width and config.hidden_size % config.num_heads:
        wrong.append(f"hidden_size={config.hidden_size // config.num_heads * config.num_heads}")
    return wrong


def settings(config: DecoderConfig) -> dict[str, Any]:
    """Everything that changes the logits, with defaults resolved; options as `layer.key`.

    Two configurations with equal settings compute the same with the same weights.
    """
    single = {"preset", "dropout", "mixer", "feedforward", "options"}
    values = config.model_dump(exclude=single) | {
        "layers": config.mixers,
        "feedforwards": config.feedforward_kinds,
        "head_size": config.size_of_heads,
        "num_kv_heads": config.num_kv_heads or config.num_heads,
        "qkv_bias": config.bias if config.qkv_bias is None else config.qkv_bias,
        "norm_eps": config.norm_eps or (1e-5 if config.norm == "layernorm" else 1e-6),
    }
    used = {*config.mixers, *config.feedforward_kinds}
    dense = used & {"mlp", "swiglu", "geglu"}
    values["intermediate_size"] = config.hidden_units(min(dense)) if dense else None
    if not used & {"mlp", "geglu"}:
        del values["activation"]
    if not used & {"attention", "local_attention", "nope_attention"}:
        for name in _OF_ATTENTION:
            del values[name]
    if not any(config.options_of(name).splits_width for name in config.mixers):
        del values["num_heads"], values["head_size"]
    if config.positions != "rope":
        for name in _OF_ROPE:
            del values[name]
    for name in used - {"none"}:
        options = config.options_of(name).model_dump(exclude=_TRAINING)
        _resolve(name, options, config)
        values |= {f"{name}.{key}": value for key, value in options.items()}
    return values


def _resolve(name: str, options: dict[str, Any], config: DecoderConfig) -> None:
    """Fill in the defaults of options that follow from other settings."""
    if name == "moe":
        options["expert_size"] = config.hidden_units_of_experts()
        shared = options["num_shared"]
        options["shared_size"] = (options["shared_size"] or options["expert_size"]) if shared else 0
        options["shared_gate"] = bool(shared) and options["shared_gate"]
        if options["num_groups"] == 1:
            options["group_score"] = None
    elif name == "local_attention":
        options["rope_theta"] = options["rope_theta"] or config.rope_theta
        options["rope_scaling"] = config.rope_scaling is None or options["rope_scaling"]
    elif name == "latent_attention":
        options["value_size"] = options["value_size"] or config.size_of_heads
    elif name in ("delta_net", "gated_delta_net"):
        options["key_size"] = options["key_size"] or config.size_of_heads
        options["value_size"] = options["value_size"] or options["key_size"]
        options["num_key_heads"] = options["num_key_heads"] or config.num_heads
        options["num_value_heads"] = options["num_value_heads"] or options["num_key_heads"]
