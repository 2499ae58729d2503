"""Llama (Touvron et al. 2023) and the dense families that differ from it in a few places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from common.models.config import DecoderConfig
from common.models.hub.families.base import Family, Layout, Rows, shortest_pattern
from common.models.hub.keys import Keys
from common.models.hub.rope import (
    read_longrope,
    read_rope,
    rope_keys,
    write_rope,
)

_LAYER_TYPES = {"full_attention": "attention", "sliding_attention": "local_attention"}


class Llama(Family):
    """Llama 2 and 3."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "swiglu"})
    divides_width: ClassVar[bool] = True
    activation: ClassVar[str] = "silu"
    activation_key: ClassVar[str] = "hidden_act"
    norm_eps: ClassVar[float] = 1e-6  # defaults of absent keys ...
    rope_theta: ClassVar[float] = 10_000.0
    tied: ClassVar[bool] = False
    head_dim: ClassVar[int | None] = None  # ... None: hidden_size / num_attention_heads
    has_head_dim: ClassVar[bool] = True  # whether heads may have another size
    names: ClassVar[Mapping[str, str]] = {
        "token_embedding": "model.embed_tokens",
        "final_norm": "model.norm",
        "head": "lm_head",
        "mixer_norm": "model.layers.*.input_layernorm",
        "mixer.output": "model.layers.*.self_attn.o_proj",
        "mixer.query_norm": "model.layers.*.self_attn.q_norm",
        "mixer.key_norm": "model.layers.*.self_attn.k_norm",
        "feedforward_norm": "model.layers.*.post_attention_layernorm",
        "feedforward.gate": "model.layers.*.mlp.gate_proj",
        "feedforward.input": "model.layers.*.mlp.up_proj",
        "feedforward.output": "model.layers.*.mlp.down_proj",
    }

    def layouts(self) -> Mapping[str, Layout]:
        return {"mixer.query_key_value": _three_projections}

    def arguments(self, keys: Keys) -> dict[str, Any]:
        keys.choice(self.activation_key, self.activation, [self.activation])
        hidden_size, num_heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
        whole = max(hidden_size // num_heads, 1)
        head_size = keys.integer("head_dim", self.head_dim or whole)
        if not self.has_head_dim and head_size != whole:
            raise keys.refuse("head_dim", f"expected {whole}, hidden_size / num_attention_heads")
        num_layers = keys.integer("num_hidden_layers")
        return {
            "preset": "llama",
            "context_length": keys.integer("max_position_embeddings"),
            "num_layers": num_layers,
            "hidden_size": hidden_size,
            "num_heads": num_heads,
            "num_kv_heads": keys.integer("num_key_value_heads", num_heads),
            "head_size": head_size,
            "intermediate_size": keys.integer("intermediate_size"),
            "norm_eps": keys.number("rms_norm_eps", self.norm_eps),
            "tie_embeddings": keys.flag("tie_word_embeddings", self.tied),
            **self.biases(keys),
            **self.rope(keys),
            **self.mixers(keys, num_layers),
        }

    def biases(self, keys: Keys) -> dict[str, Any]:
        """The arguments about biases."""
        bias = keys.flag("attention_bias", False)
        if keys.flag("mlp_bias", False) != bias:
            raise keys.refuse("mlp_bias", "differs from attention_bias: not supported")
        return {"bias": bias}

    def rope(self, keys: Keys) -> dict[str, Any]:
        """The arguments about RoPE."""
        return read_rope(keys, self.rope_theta)

    def mixers(self, keys: Keys, num_layers: int) -> dict[str, Any]:
        """The arguments about the kinds of layers."""
        return {}

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        written = {
            "max_position_embeddings": config.context_length,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads or config.num_heads,
            "intermediate_size": settings["intermediate_size"],
            self.activation_key: self.activation,
            "rms_norm_eps": settings["norm_eps"],
            "tie_word_embeddings": config.tie_embeddings,
            "attention_dropout": config.dropout,
        }
        if self.has_head_dim:
            written["head_dim"] = config.size_of_heads
        return written | self.written_biases(config) | self.written_rope(config)

    def written_biases(self, config: DecoderConfig) -> dict[str, Any]:
        """The inverse of `biases`."""
        return {"attention_bias": config.bias, "mlp_bias": config.bias}

    def written_rope(self, config: DecoderConfig) -> dict[str, Any]:
        """The inverse of `rope`."""
        return write_rope(config)


def _three_projections(config: DecoderConfig, count: int) -> list[Rows]:
    key_heads = config.num_kv_heads or config.num_heads
    heads = {"q": config.num_heads, "k": key_heads, "v": key_heads}
    return [
        Rows(f"model.layers.*.self_attn.{name}_proj", number * config.size_of_heads)
        for name, number in heads.items()
    ]


def read_windows(window: int | None, kinds: Sequence[str], longest: int) -> dict[str, Any]:
    """Arguments for layers of some `layer_types`; a window as long as the context has no effect."""
    mixers = [_LAYER_TYPES[kind] for kind in kinds]
    if window is None or window >= longest or "local_attention" not in mixers:
        return {}
    return {"layers": shortest_pattern(mixers), "options": {"local_attention": {"window": window}}}


def written_layer_types(config: DecoderConfig) -> list[str]:
    """The inverse of `read_windows`."""
    local = "local_attention"
    return ["sliding_attention" if mixer == local else "full_attention" for mixer in config.mixers]


def written_window(config: DecoderConfig) -> int | None:
    """The window of the local layers, None without any."""
    if "local_attention" not in config.mixers:
        return None
    window: int = config.options_of("local_attention").window
    return window


class WithoutBiases(Llama):
    """Base of families without biases: `attention_bias` and `mlp_bias` must be false."""

    def biases(self, keys: Keys) -> dict[str, Any]:
        return {"bias": False}

    def written_biases(self, config: DecoderConfig) -> dict[str, Any]:
        return {}


class Mistral(WithoutBiases):
    """Llama with a window of `sliding_window` tokens (Jiang et al. 2023)."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "local_attention", "swiglu"})
    divides_width: ClassVar[bool] = False
    window: ClassVar[int | None] = 4096

    def mixers(self, keys: Keys, num_layers: int) -> dict[str, Any]:
        window = keys.optional_integer("sliding_window", self.window)
        kinds = ["sliding_attention"] * num_layers
        return read_windows(window, kinds, keys.integer("max_position_embeddings"))

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        return super().config(config, settings) | {"sliding_window": written_window(config)}


class Qwen2(Llama):
    """Biases on queries, keys and values; a window in the last layers (Qwen team 2024)."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "local_attention", "swiglu"})
    divides_width: ClassVar[bool] = False
    unread: ClassVar[frozenset[str]] = frozenset({"attention_bias"})
    preset: ClassVar[str] = "qwen2"

    def arguments(self, keys: Keys) -> dict[str, Any]:
        return super().arguments(keys) | {"preset": self.preset}

    def biases(self, keys: Keys) -> dict[str, Any]:
        return {"bias": False}

    def written_biases(self, config: DecoderConfig) -> dict[str, Any]:
        return {}

    def mixers(self, keys: Keys, num_layers: int) -> dict[str, Any]:
        used = keys.flag("use_sliding_window", False)
        window = keys.optional_integer("sliding_window", 4096)
        first = keys.integer("max_window_layers", 28, least=0)
        kinds = keys.names("layer_types", num_layers, _LAYER_TYPES)
        if kinds is None:
            kinds = [
                "sliding_attention" if layer >= first else "full_attention"
                for layer in range(num_layers)
            ]
        elif not (used and window) and "sliding_attention" in kinds:
            raise keys.refuse(
                "layer_types", "sliding_attention needs use_sliding_window and a size"
            )
        longest = keys.integer("max_position_embeddings")
        return read_windows(window if used else None, kinds, longest)

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        written = super().config(config, settings)
        window = written_window(config)
        if window is not None:
            written |= {"use_sliding_window": True, "sliding_window": window}
            written |= {"layer_types": written_layer_types(config)}
        return written


class Qwen3(Qwen2):
    """Norms of queries and keys instead of the biases (Qwen team 2025)."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    unread: ClassVar[frozenset[str]] = frozenset()
    preset: ClassVar[str] = "qwen3"
    head_dim: ClassVar[int | None] = 128

    def written_biases(self, config: DecoderConfig) -> dict[str, Any]:
        return {"attention_bias": False}


class SmolLM3(Llama):
    """Llama whose every fourth layer has no positions (Hugging Face 2025)."""

    model_type = "smollm3"
    architecture = "SmolLM3ForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "nope_attention", "swiglu"})
    rope_theta: ClassVar[float] = 2_000_000.0
    tied: ClassVar[bool] = True
    has_head_dim: ClassVar[bool] = False

    def mixers(self, keys: Keys, num_layers: int) -> dict[str, Any]:
        if keys.flag("use_sliding_window", False):
            raise keys.refuse("use_sliding_window")
        keys.optional_integer("sliding_window")
        keys.names("layer_types", num_layers, ["full_attention"])
        interval = keys.integer("no_rope_layer_interval", 4)
        rotates = keys.get("no_rope_layers")  # 1 where a layer has RoPE
        if rotates is None:
            rotates = [int((layer + 1) % interval != 0) for layer in range(num_layers)]
        if not isinstance(rotates, list) or not all(value in (0, 1) for value in rotates):
            raise keys.refuse("no_rope_layers", "expected a list of 0 and 1")
        if len(rotates) != num_layers:
            raise keys.refuse("no_rope_layers", f"expected {num_layers} of them")
        if not any(rotates):
            raise keys.refuse("no_rope_layers", "without RoPE in any layer: not supported")
        names = ["attention" if value else "nope_attention" for value in rotates]
        return {"layers": shortest_pattern(names)}

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        rotates = [int(mixer != "nope_attention") for mixer in config.mixers]
        return super().config(config, settings) | {"no_rope_layers": rotates}


class Phi3(WithoutBiases):
    """Fused projections, LongRoPE and a window (Abdin et al. 2024)."""

    model_type = "phi3"
    architecture = "Phi3ForCausalLM"
    layers: ClassVar[frozenset[str]] = frozenset({"attention", "local_attention", "swiglu"})
    norm_eps: ClassVar[float] = 1e-5
    has_head_dim: ClassVar[bool] = False
    fewest_tensors = 6
    names: ClassVar[Mapping[str, str]] = {
        **{name: theirs for name, theirs in Llama.names.items() if "_proj" not in theirs},
        "mixer.query_key_value": "model.layers.*.self_attn.qkv_proj",
        "mixer.output": "model.layers.*.self_attn.o_proj",
        "feedforward.output": "model.layers.*.mlp.down_proj",
    }

    def layouts(self) -> Mapping[str, Layout]:
        fused = "model.layers.*.mlp.gate_up_proj"
        return {
            "feedforward.gate": lambda config, count: [Rows(fused, count, 0, 2 * count)],
            "feedforward.input": lambda config, count: [Rows(fused, count, count, 2 * count)],
        }

    def rope(self, keys: Keys) -> dict[str, Any]:
        rope = rope_keys(keys)
        fraction = rope.number("partial_rotary_factor", keys.number("partial_rotary_factor", 1.0))
        original = keys.integer("original_max_position_embeddings", 4096)
        types = ("default", "longrope", "su")  # its first name
        read = read_rope(keys, self.rope_theta, rope=rope, types=types, partial=True)
        if read["rope_scaling"] is not None:
            heads = keys.integer("hidden_size") // keys.integer("num_attention_heads")
            rotated = int(heads * fraction)
            read["rope_scaling"] = read_longrope(keys, rope, original, rotated)
        return {"rope_fraction": fraction, **read}

    def mixers(self, keys: Keys, num_layers: int) -> dict[str, Any]:
        window = keys.optional_integer("sliding_window")
        kinds = ["sliding_attention"] * num_layers
        return read_windows(window, kinds, keys.integer("max_position_embeddings"))

    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        written = super().config(config, settings)
        scaling = config.rope_scaling
        original = getattr(scaling, "original_context_length", config.context_length)
        return written | {
            "sliding_window": written_window(config),
            "partial_rotary_factor": config.rope_fraction,
            "original_max_position_embeddings": original,
        }
