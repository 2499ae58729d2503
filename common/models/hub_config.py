"""Convert `config.json` of Hugging Face's GPT-2, Llama, Qwen2 and Qwen3 to arguments of a Decoder.

Every key is either read, known not to affect logits, or refused by name: features that a Decoder
does not compute, unknown keys, and values of a wrong type. The file is untrusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from common.errors import ModelError

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu_squared": "relu2"}
_ACTIVATIONS_READ = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
_ACTIVATIONS_READ["gelu_pytorch_tanh"] = "gelu_tanh"
# Keys that change the computation, and the values at which they do not.
_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    # Code shipped with a model is never run.
    "auto_map": (None,),
    "trust_remote_code": (None, False),
    "quantization_config": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "partial_rotary_factor": (None, 1),
    "rope_interleaved": (None, False),
    "original_max_position_embeddings": (None,),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "scale_attn_weights": (None, True),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "is_causal": (True,),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (None, False),
    "use_mrope": (None, False),
}
# Keys that do not affect logits: tokenizer, origin of the file, generation settings, dropout and
# initialisation in training, kernels and tasks of transformers.
_IRRELEVANT_KEYS = """
    model_type architectures _name_or_path name_or_path _commit_hash transformers_version
    transformers.js_config tokenizer_class prefix model_max_length unsloth_version unsloth_fixed
    is_llama_config torch_dtype dtype use_bfloat16 torchscript tf_legacy_loss
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id use_cache initializer_range gradient_checkpointing is_decoder
    attention_dropout resid_pdrop embd_pdrop attn_pdrop hidden_dropout classifier_dropout
    output_hidden_states output_attentions output_scores output_past return_dict
    return_dict_in_generate use_return_dict tie_last_hidden_states
    id2label label2id num_labels _num_labels problem_type finetuning_task task_specific_params
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    summary_last_dropout predict_special_tokens n_ctx
    pretraining_tp chunk_size_feed_forward reorder_and_upcast_attn
    attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled
    max_length max_new_tokens min_length min_new_tokens do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p min_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
"""
# Keys that a family's code ignores.
_UNREAD = {"qwen2": {"attention_bias"}}
_ROPE_KEYS = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor"),
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_LAYER_TYPES = ("full_attention", "sliding_attention")
_LARGEST = 2**31 - 1  # of any size or count


@dataclass(frozen=True)
class _Keys:
    """The keys of a JSON object, each read with its type; `null` means absent."""

    values: Mapping[str, Any]
    inside: str = ""  # key of this object and a dot
    read: set[str] = field(default_factory=set)

    def refuse(self, key: str, reason: str, hint: str = "") -> ModelError:
        shown = repr(self.values.get(key))
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        return ModelError(f"config.json: {self.inside}{key} = {shown}: {reason}", hint)

    def get(self, key: str) -> Any:
        """Any value, or None."""
        self.read.add(key)
        return self.values.get(key)

    def check_all_read(self, irrelevant: Set[str]) -> None:
        for key in self.values:
            if key not in self.read and key not in irrelevant:
                raise self.refuse(
                    key, "not supported", "if it changes nothing, remove it from the file"
                )

    def _read(self, key: str, default: Any, kinds: tuple[type, ...], what: str) -> Any:
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"config.json: {self.inside}{key} is missing")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.refuse(key, f"expected {what}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value: int = self._read(key, default, (int,), "a whole number")
        if not 1 <= value <= _LARGEST:
            raise self.refuse(key, f"expected a number from 1 to {_LARGEST}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._read(key, default, (int, float), "a number")
        if not 0 < value <= 1e30:  # nor NaN
            raise self.refuse(key, "expected a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value: bool = self._read(key, default, (bool,), "true or false")
        return value

    def choice(self, key: str, default: str | None, choices: Mapping[str, Any]) -> str:
        value: str = self._read(key, default, (str,), "a text")
        if value not in choices:
            raise self.refuse(key, f"supported: {', '.join(choices)}")
        return value

    def inner(self, key: str) -> _Keys:
        return _Keys(self._read(key, {}, (dict,), "an object"), f"{self.inside}{key}.")

    def check_without_effect(self, *names: str) -> None:
        for key in names:
            value, allowed = self.get(key), _WITHOUT_EFFECT[key]
            if key in self.values and not any(_same(value, other) for other in allowed):
                raise self.refuse(key, "not supported")


def _same(value: object, other: object) -> bool:
    """Strict equality: `1` equals `1.0` but not `true`."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def decoder_arguments(
    config: object, context_length: int | None = None
) -> tuple[int, dict[str, Any]]:
    """Return vocabulary size and Decoder arguments of a parsed `config.json`.

    `context_length` shortens the context. Dropout is 0, since it belongs to training, not to the
    model.
    Raises ModelError for anything missing, malformed or unsupported.
    """
    if not isinstance(config, dict):
        raise ModelError("config.json: expected an object")
    keys = _Keys(config)
    family = keys.choice("model_type", None, ARCHITECTURES)
    keys.check_without_effect(*_WITHOUT_EFFECT)
    arguments = _gpt2_arguments(keys) if family == "gpt2" else _llama_arguments(keys, family)
    longest = arguments["context_length"]
    if context_length is not None:
        if not 2 <= context_length <= longest:
            raise ModelError(f"context_length must be from 2 to {longest}, got {context_length}")
        arguments["context_length"] = context_length
    if family.startswith("qwen"):
        _check_windows(keys, arguments["num_layers"], arguments["context_length"])
    vocab_size = keys.integer("vocab_size")
    keys.check_all_read(set(_IRRELEVANT_KEYS.split()) | _UNREAD.get(family, set()))
    return vocab_size, arguments


def _gpt2_arguments(keys: _Keys) -> dict[str, Any]:
    hidden_size = keys.integer("n_embd")
    activation = keys.choice("activation_function", "gelu_new", _ACTIVATIONS_READ)
    return {
        "preset": "gpt2",
        "context_length": keys.integer("n_positions"),
        "num_layers": keys.integer("n_layer"),
        "hidden_size": hidden_size,
        "num_heads": keys.integer("n_head"),
        "activation": _ACTIVATIONS_READ[activation],
        "intermediate_size": keys.integer("n_inner", 4 * hidden_size),
        "norm_eps": keys.number("layer_norm_epsilon", 1e-5),
        "tie_embeddings": keys.flag("tie_word_embeddings", True),
    }


def _llama_arguments(keys: _Keys, family: str) -> dict[str, Any]:
    keys.choice("hidden_act", "silu", {"silu": None})
    bias = family != "qwen2" and keys.flag("attention_bias", False)
    if family == "llama" and keys.flag("mlp_bias", False) != bias:
        raise keys.refuse("mlp_bias", "differs from attention_bias: not supported")
    if family == "qwen3" and bias:
        raise keys.refuse("attention_bias", "not supported")
    hidden_size, num_heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    head_size = 128 if family == "qwen3" else max(hidden_size // num_heads, 1)
    return {
        "preset": family,
        "context_length": keys.integer("max_position_embeddings"),
        "num_layers": keys.integer("num_hidden_layers"),
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_kv_heads": keys.integer("num_key_value_heads", num_heads),
        "head_size": keys.integer("head_dim", head_size),
        "intermediate_size": keys.integer("intermediate_size"),
        "norm_eps": keys.number("rms_norm_eps", 1e-6),
        "bias": bias,
        "tie_embeddings": keys.flag("tie_word_embeddings", False),
        **_rope_arguments(keys),
    }


def _rope_arguments(keys: _Keys) -> dict[str, Any]:
    """Read `rope_theta` and `rope_scaling` (transformers 4), or `rope_parameters` (5)."""
    # If both are present, transformers reads rope_scaling.
    rope = keys.inner("rope_scaling" if keys.get("rope_scaling") else "rope_parameters")
    keys.read.add("rope_parameters")
    for key in rope.values:
        if key not in _ROPE_KEYS:
            raise rope.refuse(key, "not supported")
    rope.check_without_effect("partial_rotary_factor")
    kind = "type" if rope.get("rope_type") is None else "rope_type"
    theta = rope.number("rope_theta", keys.number("rope_theta", 10_000.0))
    if rope.choice(kind, "default", {"default": None, "llama3": None}) == "default":
        return {"rope_theta": theta}
    longest = keys.integer("max_position_embeddings")
    scaling = {
        "factor": rope.number("factor"),
        "low_frequency_factor": rope.number("low_freq_factor"),
        "high_frequency_factor": rope.number("high_freq_factor"),
        "original_context_length": rope.integer("original_max_position_embeddings", longest),
    }
    return {"rope_theta": theta, "rope_scaling": scaling}


def _check_windows(keys: _Keys, num_layers: int, context_length: int) -> None:
    """Accept a sliding window as long as the context, which has no effect; refuse a shorter one."""
    used, kinds = keys.flag("use_sliding_window", False), keys.get("layer_types")
    last_layer = keys.get("max_window_layers")
    keys.read.add("sliding_window")  # no effect if unused
    if kinds is None:
        slides = used and last_layer != num_layers
    elif isinstance(kinds, list) and all(kind in _LAYER_TYPES for kind in kinds):
        slides = "sliding_attention" in kinds
    else:
        raise keys.refuse("layer_types", f"supported: {', '.join(_LAYER_TYPES)}")
    window = keys.integer("sliding_window", 4096) if used else 0
    if slides and window < context_length:
        hint = f"load it with context_length={window}" if window > 1 else ""
        raise keys.refuse("sliding_window", "not supported below the context's length", hint)
