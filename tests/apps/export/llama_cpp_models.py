"""Models of transformers that llama.cpp computes, and llama.cpp in this process."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.common.models.hub.transformers_models import CONTEXT


def without_limits(config: Any) -> None:
    """Change a configuration of transformers that llama.cpp does not compute."""
    layers, rope = config.num_hidden_layers, getattr(config, "rope_parameters", None) or {}
    rope.pop("truncate", None)
    changes: dict[str, Any] = {}
    match config.model_type:
        case "gpt2":
            relu_squared = config.activation_function == "relu2"
            changes["activation_function"] = "gelu" if relu_squared else config.activation_function
        case "mistral" | "mixtral":
            changes["sliding_window"] = None
        case "qwen2" | "qwen3":
            changes |= {"use_sliding_window": False, "sliding_window": None}
            changes["layer_types"] = ["full_attention"] * layers
        case "olmo3":
            rope["sliding_attention"]["rope_theta"] = rope["full_attention"]["rope_theta"]
        case "olmoe":
            changes |= {"norm_topk_prob": False, "num_key_value_heads": config.num_attention_heads}
        case "qwen3_moe" | "qwen3_next":
            changes |= {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1}
        case "deepseek_v2":
            changes["topk_method"] = "greedy"
        case "mamba2":
            changes["use_bias"] = False
        case "smollm3":
            changes["no_rope_layers"] = [int(layer % 4 != 3) for layer in range(layers)]
        case "gemma2":
            changes |= {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
            changes["tie_word_embeddings"] = True
        case "phi3":
            rope.pop("original_max_position_embeddings", None)
            changes |= {"sliding_window": None, "original_max_position_embeddings": CONTEXT}
    if config.model_type == "qwen3_next":
        changes["linear_value_head_dim"] = config.linear_key_head_dim
        changes["rms_norm_eps"] = 1e-6
    for key, value in changes.items():
        setattr(config, key, value)


class LlamaCpp:
    """llama.cpp in this process, with one thread, as `apps.export.llama_cpp` starts it to verify a file."""

    def __init__(self, path: Path, context_length: int) -> None:
        pytest.importorskip("xllamacpp")
        from apps.export.llama_cpp import open_server

        self.server = open_server(path, context_length, threads=1)

    def post(self, command: str, **body: Any) -> Any:
        """Send a request of llama-server."""
        url = f"{self.server.listening_address}/{command}"
        request = urllib.request.Request(url, json.dumps(body).encode())
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.post("tokenize", content=text, add_special=True)["tokens"]
        return ids

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """Continue a prompt by `count` tokens, or up to an end of text."""
        options = {"n_predict": count, "temperature": 0, "return_tokens": True}
        ids: list[int] = self.post("completion", prompt=list(prompt), **options)["tokens"]
        return ids
