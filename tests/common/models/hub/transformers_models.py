"""Models of transformers with random weights and random odd shapes, for every family that load_pretrained reads."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VOCABULARY, CONTEXT = 97, 48


class _Transformers:
    """The package, imported when something of it is asked for: it takes seconds."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("transformers"), name)


transformers: Any = _Transformers()


def _shape(rng: random.Random) -> dict[str, Any]:
    """Sizes, ties and grouped heads; as many heads as divide the width, since most configurations insist on it."""
    heads = rng.choice([2, 3, 4, 6])
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": heads * rng.choice([6, 10, 12]),
        "num_hidden_layers": rng.choice([2, 3, 4]),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([n for n in (1, 2, 3, heads) if heads % n == 0]),
        "intermediate_size": rng.choice([17, 40, 51]),
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": rng.random() < 0.5,
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-2]),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _rope(rng: random.Random, *types: str) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": rng.choice([1e2, 1e4, 5e5])}
    kind = rng.choice(["default", *types])
    if kind == "linear":
        rope |= {"factor": 2.5}
    elif kind == "llama3":
        rope |= {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope |= {"original_max_position_embeddings": 16}
    elif kind == "yarn":
        rope |= {"factor": 3.0, "original_max_position_embeddings": 16}
        rope |= rng.choice([{}, {"beta_fast": 8.0, "beta_slow": 2.0}, {"attention_factor": 1.3}])
        rope |= rng.choice([{}, {"truncate": False}])
    return {"rope_type": kind, **rope}


def _head_size(rng: random.Random) -> int:
    return rng.choice([4, 8, 14])


def _window(rng: random.Random) -> int:
    return rng.choice([3, 7, 20])


def _layer_types(rng: random.Random, count: int) -> list[str]:
    kinds = ["sliding_attention", "full_attention"]
    return [*kinds, *rng.choices(kinds, k=count)][:count]


def _experts(rng: random.Random) -> dict[str, Any]:
    number = rng.choice([3, 4, 7])
    return {"num_experts_per_tok": rng.choice([1, 2, 3]), "num_experts": number}


def gpt2(rng: random.Random) -> Any:
    heads = rng.choice([2, 3, 4])
    return transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=heads * rng.choice([6, 10]),
        n_layer=rng.choice([1, 2]),
        n_head=heads,
        n_inner=rng.choice([None, 17]),
        activation_function=rng.choice(["gelu_new", "gelu", "relu2"]),
        tie_word_embeddings=rng.random() < 0.5,
        bos_token_id=None,
        eos_token_id=None,
    )


def llama(rng: random.Random) -> Any:
    bias = rng.random() < 0.5
    return transformers.LlamaConfig(
        **_shape(rng),
        head_dim=_head_size(rng),
        attention_bias=bias,
        mlp_bias=bias,
        rope_parameters=_rope(rng, "linear", "llama3", "yarn"),
    )


def mistral(rng: random.Random) -> Any:
    window = rng.choice([None, _window(rng)])
    return transformers.MistralConfig(
        **_shape(rng), head_dim=_head_size(rng), sliding_window=window
    )


def qwen2(rng: random.Random) -> Any:
    shape = _shape(rng)
    windows = {"use_sliding_window": True, "sliding_window": _window(rng), "max_window_layers": 1}
    return transformers.Qwen2Config(
        **shape, **rng.choice([{}, windows]), rope_parameters=_rope(rng, "yarn")
    )


def qwen3(rng: random.Random) -> Any:
    shape = _shape(rng)
    types = _layer_types(rng, shape["num_hidden_layers"])
    windows = {"use_sliding_window": True, "sliding_window": _window(rng), "layer_types": types}
    return transformers.Qwen3Config(
        **shape, head_dim=_head_size(rng), **rng.choice([{}, windows]), rope_parameters=_rope(rng)
    )


def gpt_neox(rng: random.Random) -> Any:
    shape = _shape(rng)
    del shape["num_key_value_heads"], shape["rms_norm_eps"]
    shape["hidden_size"] = shape["num_attention_heads"] * 16
    return transformers.GPTNeoXConfig(
        **shape,
        layer_norm_eps=rng.choice([1e-5, 1e-2]),
        hidden_act=rng.choice(["gelu", "gelu_new"]),
        use_parallel_residual=rng.random() < 0.7,
        rotary_pct=rng.choice([0.25, 0.5, 1.0]),
        rotary_emb_base=rng.choice([100, 10_000]),
    )


def olmo2(rng: random.Random) -> Any:
    return transformers.Olmo2Config(**_shape(rng), rope_parameters=_rope(rng, "yarn"))


def olmo3(rng: random.Random) -> Any:
    shape = _shape(rng)
    full = _rope(rng, "yarn")
    full.pop("truncate", None)  # transformers looks for it outside
    return transformers.Olmo3Config(
        **shape,
        sliding_window=_window(rng),
        layer_types=_layer_types(rng, shape["num_hidden_layers"]),
        rope_parameters={"full_attention": full, "sliding_attention": _rope(rng)},
    )


def olmoe(rng: random.Random) -> Any:
    return transformers.OlmoeConfig(
        **_shape(rng),
        **_experts(rng),
        norm_topk_prob=rng.random() < 0.5,
        rope_parameters=_rope(rng),
    )


def mixtral(rng: random.Random) -> Any:
    experts = _experts(rng)
    return transformers.MixtralConfig(
        **_shape(rng),
        num_local_experts=experts["num_experts"],
        num_experts_per_tok=experts["num_experts_per_tok"],
        head_dim=_head_size(rng),
        sliding_window=rng.choice([None, _window(rng)]),
    )


def qwen3_moe(rng: random.Random) -> Any:
    return transformers.Qwen3MoeConfig(
        **_shape(rng),
        **_experts(rng),
        head_dim=_head_size(rng),
        moe_intermediate_size=13,
        norm_topk_prob=rng.random() < 0.5,
        mlp_only_layers=rng.choice([[], [0]]),
        decoder_sparse_step=rng.choice([1, 1, 2]),
    )


def _latent(rng: random.Random) -> dict[str, Any]:
    shape = _shape(rng)
    shape["num_key_value_heads"] = shape["num_attention_heads"]
    rope = _rope(rng)
    if rng.random() < 0.5:
        rope |= {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 16}
        rope |= rng.choice([{}, {"mscale": 0.7, "mscale_all_dim": 0.7}, {"mscale": 1.0}])
    return shape | {
        "rms_norm_eps": 1e-6,
        "kv_lora_rank": rng.choice([10, 16]),
        "q_lora_rank": rng.choice([None, 11]),
        "qk_nope_head_dim": rng.choice([6, 8]),
        "qk_rope_head_dim": rng.choice([4, 6]),
        "v_head_dim": rng.choice([6, 12]),
        "moe_intermediate_size": 13,
        "first_k_dense_replace": rng.choice([0, 1]),
        "n_routed_experts": 8,
        "num_experts_per_tok": rng.choice([1, 3]),
        "n_shared_experts": rng.choice([1, 2]),
        "rope_parameters": rope,
    }


def deepseek_v2(rng: random.Random) -> Any:
    groups = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    scale = rng.choice([1.0, 2.5])
    return transformers.DeepseekV2Config(
        **_latent(rng), **rng.choice([{}, groups]), routed_scaling_factor=scale
    )


def deepseek_v3(rng: random.Random) -> Any:
    groups = {"n_group": rng.choice([2, 4]), "topk_group": 1 + (rng.random() < 0.5)}
    latent = _latent(rng) | {"num_experts_per_tok": rng.choice([1, 2])}
    return transformers.DeepseekV3Config(**latent, **groups, norm_topk_prob=rng.random() < 0.5)


def mamba2(rng: random.Random) -> Any:
    groups, heads = rng.choice([(1, 3), (2, 4), (3, 6)])
    size = rng.choice([4, 8])
    return transformers.Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=heads * size // 2,
        num_hidden_layers=rng.choice([2, 3]),
        num_heads=heads,
        head_dim=size,
        expand=2,
        n_groups=groups,
        state_size=rng.choice([5, 16]),
        conv_kernel=rng.choice([2, 4]),
        use_bias=rng.random() < 0.5,
        use_conv_bias=rng.random() < 0.5,
        chunk_size=rng.choice([8, 64]),
        tie_word_embeddings=rng.random() < 0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def qwen3_next(rng: random.Random) -> Any:
    shape = _shape(rng)
    types = ["linear_attention", "full_attention"]
    count = shape["num_hidden_layers"]
    key_heads = rng.choice([1, 2])
    return transformers.Qwen3NextConfig(
        **shape,
        **_experts(rng),
        head_dim=rng.choice([8, 16]),
        layer_types=[*types, *rng.choices(types, k=count)][:count],
        partial_rotary_factor=rng.choice([0.25, 0.5]),
        linear_key_head_dim=rng.choice([4, 8]),
        linear_value_head_dim=rng.choice([4, 6]),
        linear_num_key_heads=key_heads,
        linear_num_value_heads=key_heads * rng.choice([1, 3]),
        linear_conv_kernel_dim=rng.choice([2, 4]),
        moe_intermediate_size=13,
        shared_expert_intermediate_size=rng.choice([11, 13]),
        norm_topk_prob=rng.random() < 0.5,
        mlp_only_layers=rng.choice([[], [0]]),
    )


def smollm3(rng: random.Random) -> Any:
    shape = _shape(rng)
    return transformers.SmolLM3Config(
        **shape,
        no_rope_layers=[1, 0, *rng.choices([0, 1], k=4)][: shape["num_hidden_layers"]],
        rope_parameters=_rope(rng, "yarn"),
    )


def gemma2(rng: random.Random) -> Any:
    shape, caps = _shape(rng), rng.choice([(50.0, 30.0), (2.0, None), (None, 3.0)])
    return transformers.Gemma2Config(
        **shape,
        head_dim=_head_size(rng),
        query_pre_attn_scalar=rng.choice([8, 13, 256]),
        sliding_window=_window(rng),
        layer_types=_layer_types(rng, shape["num_hidden_layers"]),
        attn_logit_softcapping=caps[0],
        final_logit_softcapping=caps[1],
        rope_parameters=_rope(rng, "linear"),
    )


def gemma3_text(rng: random.Random) -> Any:
    shape = _shape(rng)
    return transformers.Gemma3TextConfig(
        **shape,
        head_dim=_head_size(rng),
        query_pre_attn_scalar=rng.choice([8, 13, 256]),
        sliding_window=_window(rng),
        layer_types=_layer_types(rng, shape["num_hidden_layers"]),
        rope_parameters={"full_attention": _rope(rng, "linear"), "sliding_attention": _rope(rng)},
    )


def phi3(rng: random.Random) -> Any:
    shape, fraction = _shape(rng), rng.choice([0.5, 1.0])
    shape["hidden_size"] = shape["num_attention_heads"] * 8
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
    original = rng.choice([16, 40])
    if rng.random() < 0.7:
        pairs = int(8 * fraction) // 2
        factors = [[rng.uniform(1, 4) for _ in range(pairs)] for _ in range(2)]
        rope |= {"rope_type": "longrope", "short_factor": factors[0], "long_factor": factors[1]}
    return transformers.Phi3Config(
        **shape,
        sliding_window=rng.choice([None, _window(rng)]),
        partial_rotary_factor=fraction,
        original_max_position_embeddings=original,
        rope_parameters=rope,
    )


CONFIGS: dict[str, Callable[[random.Random], Any]] = {
    made.__name__: made
    for made in (
        *(gpt2, llama, mistral, qwen2, qwen3, gpt_neox, olmo2, olmo3, olmoe, mixtral, qwen3_moe),
        *(deepseek_v2, deepseek_v3, mamba2, qwen3_next, smollm3, gemma2, gemma3_text, phi3),
    )
}


def randomise(model: torch.nn.Module, generator: torch.Generator, std: float = 0.2) -> None:
    """Weights far from those of the start, so that no part of the network is without effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * std + (parameter.ndim == 1))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)


def _experts_in_loops(config: Any) -> dict[str, Any]:
    """Its grouped matrix product, the default, refuses odd sizes."""
    has_experts = any(hasattr(config, key) for key in ("num_experts", "num_local_experts"))
    return {"experts_implementation": "eager"} if has_experts else {}


def make(family: str, seed: int, change: Callable[[Any], None] | None = None) -> Any:
    """A model of transformers of random shape with random weights, in float32; `change` edits its configuration."""
    config = CONFIGS[family](random.Random(f"{family} {seed}"))
    if change is not None:
        change(config)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, **_experts_in_loops(config)
    )
    # With 0.2 the delta rule and gains of 2 amplify rounding: both are up to 5e-4 from float64.
    std = 0.1 if family in ("qwen3_next", "gemma2", "gemma3_text") else 0.2
    randomise(model, torch.Generator().manual_seed(seed), std)
    return model.eval()


def transformers_of(folder: Path, **options: Any) -> Any:
    """What transformers reads from a folder, in float32; with `output_loading_info` also its complaints."""
    config = transformers.AutoConfig.from_pretrained(folder)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **_experts_in_loops(config), **options
    )
    return loaded if options else loaded.eval()


def from_transformers(folder: Path) -> Any:
    """What transformers reads from a folder without any complaint, in float32."""
    model, info = transformers_of(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()
