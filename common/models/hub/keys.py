"""Read an untrusted config.json: every key is read with its type, known not to affect logits, or refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from common.errors import ModelError

# Keys that change the computation, and the values at which they do not. A family may read them itself.
_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    # Code shipped with a model is never run; the family's own code is in transformers.
    "auto_map": (None,),
    "trust_remote_code": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "partial_rotary_factor": (None, 1),
    "rope_interleaved": (None, False),
    "original_max_position_embeddings": (None,),
    "sliding_window": (None,),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "clip_qkv": (None,),
    "use_bidirectional_attention": (None, False),
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
# Keys that do not affect logits, or are read elsewhere (quantization_config): tokenizer, origin of the
# file, generation settings, dropout, noise and
# initialisation in training, kernels and tasks of transformers.
_IRRELEVANT_KEYS = set(
    [
        "model_type",
        "architectures",
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "transformers_version",
        "quantization_config",
        "transformers.js_config",
        "tokenizer_class",
        "prefix",
        "model_max_length",
        "unsloth_version",
        "unsloth_fixed",
        "is_llama_config",
        "torch_dtype",
        "dtype",
        "use_bfloat16",
        "torchscript",
        "tf_legacy_loss",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "unk_token_id",
        "sep_token_id",
        "cls_token_id",
        "mask_token_id",
        "decoder_start_token_id",
        "use_cache",
        "initializer_range",
        "gradient_checkpointing",
        "is_decoder",
        "attention_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "hidden_dropout",
        "classifier_dropout",
        "output_hidden_states",
        "output_attentions",
        "output_scores",
        "output_past",
        "return_dict",
        "output_router_logits",
        "router_jitter_noise",
        "return_dict_in_generate",
        "use_return_dict",
        "tie_last_hidden_states",
        "id2label",
        "label2id",
        "num_labels",
        "_num_labels",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "summary_last_dropout",
        "predict_special_tokens",
        "n_ctx",
        "pretraining_tp",
        "chunk_size_feed_forward",
        "reorder_and_upcast_attn",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_flash_attn_2_enabled",
        "max_length",
        "max_new_tokens",
        "min_length",
        "min_new_tokens",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "num_return_sequences",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "cache_implementation",
    ]
)
_LARGEST = 2**31 - 1  # of any size or count


@dataclass(frozen=True)
class Keys:
    """The keys of a JSON object, each read with its type; `null` means absent."""

    values: Mapping[str, Any]
    inside: str = ""  # key of this object and a dot
    read: set[str] = field(default_factory=set)

    def refuse(self, key: str, reason: str = "not supported", hint: str = "") -> ModelError:
        """The error to raise for the value of `key`."""
        shown = repr(self.values.get(key))
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        return ModelError(f"config.json: {self.inside}{key} = {shown}: {reason}", hint)

    def get(self, key: str) -> Any:
        """Any value, or None."""
        self.read.add(key)
        return self.values.get(key)

    def expect(self, key: str, *allowed: object) -> None:
        """Raise ModelError unless the key is absent, null or one of `allowed`."""
        value = self.get(key)
        if value is not None and not any(_same(value, other) for other in allowed):
            raise self.refuse(key)

    def check_rest(self, ignored: Set[str]) -> None:
        """Raise ModelError for a key that was not read, unless it is known not to affect logits."""
        for key, value in self.values.items():
            if key in self.read or key in ignored or key in _IRRELEVANT_KEYS:
                continue
            if key not in _WITHOUT_EFFECT:
                raise self.refuse(
                    key, "not supported", "if it changes nothing, remove it from the file"
                )
            if not any(_same(value, other) for other in _WITHOUT_EFFECT[key]):
                raise self.refuse(key)

    def _read(self, key: str, default: Any, kinds: tuple[type, ...], what: str) -> Any:
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"config.json: {self.inside}{key} is missing")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.refuse(key, f"expected {what}")
        return value

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` up."""
        value: int = self._read(key, default, (int,), "a whole number")
        if not least <= value <= _LARGEST:
            raise self.refuse(key, f"expected a number from {least} to {_LARGEST}")
        return value

    def optional_integer(self, key: str, default: int | None = None) -> int | None:
        """A positive whole number, or None for null; `default` if the key is absent."""
        if self.get(key) is None:
            return None if key in self.values else default
        return self.integer(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._read(key, default, (int, float), "a number")
        if not 0 < value <= 1e30:  # nor NaN
            raise self.refuse(key, "expected a positive number")
        return float(value)

    def optional_number(self, key: str, default: float | None = None) -> float | None:
        """A positive number, or None for null; `default` if the key is absent."""
        if self.get(key) is None:
            return None if key in self.values else default
        return self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value: bool = self._read(key, default, (bool,), "true or false")
        return value

    def choice(self, key: str, default: str | None, choices: Iterable[str]) -> str:
        """One of some texts."""
        value: str = self._read(key, default, (str,), "a text")
        if value not in choices:
            raise self.refuse(key, f"supported: {', '.join(choices)}")
        return value

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of `count` positive numbers."""
        values = self._read(key, None, (list,), "a list of numbers")
        if len(values) != count or not all(
            isinstance(v, int | float) and not isinstance(v, bool) and 0 < v <= 1e30 for v in values
        ):
            raise self.refuse(key, f"expected {count} positive numbers")
        return [float(value) for value in values]

    def names(self, key: str, count: int, choices: Iterable[str]) -> list[str] | None:
        """A list of `count` of some texts, or None if the key is absent."""
        values = self.get(key)
        if values is None:
            return None
        known = isinstance(values, list) and all(
            isinstance(value, str) and value in choices for value in values
        )
        if not known:
            raise self.refuse(key, f"supported: {', '.join(choices)}")
        if len(values) != count:
            raise self.refuse(key, f"expected {count} of them, one for each layer")
        return [str(value) for value in values]

    def inner(self, key: str) -> Keys:
        """An object inside this one; empty if absent."""
        return Keys(self._read(key, {}, (dict,), "an object"), f"{self.inside}{key}.")


def _same(value: object, other: object) -> bool:
    """Strict equality: `1` equals `1.0` but not `true`."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
