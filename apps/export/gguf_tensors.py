"""Convert the weights of a Decoder to names and layout of llama.cpp."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from apps.export.gguf_architectures import (
    GPT2,
    Architecture,
    Gemma2,
    Gemma3,
    GPTNeoX,
    Llama,
    OLMo2,
    OLMoE,
    Phi3,
    Qwen2,
    Qwen3,
    Qwen3MoE,
    SmolLM3,
)
from apps.export.gguf_recurrent import DeepSeek2, Mamba2, Qwen3Next
from apps.export.hub_format import hub_tensors
from common.errors import ModelError
from common.models.decoder import Decoder

# By `model_type` of transformers.
ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": GPT2(),
    "gpt_neox": GPTNeoX(),
    **dict.fromkeys(("llama", "mistral", "mixtral"), Llama()),
    "smollm3": SmolLM3(),
    "qwen2": Qwen2(),
    "qwen3": Qwen3(),
    "qwen3_moe": Qwen3MoE(),
    "qwen3_next": Qwen3Next(),
    **dict.fromkeys(("olmo2", "olmo3"), OLMo2()),
    "olmoe": OLMoE(),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), DeepSeek2()),
    "mamba2": Mamba2(),
    "gemma2": Gemma2(),
    "gemma3_text": Gemma3(),
    "phi3": Phi3(),
}
_EXPERT = re.compile(r"(.+\.experts)\.\d+\.(\w+\.weight)")
# Matrices that llama.cpp reads in float32: positions, routers, and what recurrent layers do not multiply by.
IN_FLOAT32 = re.compile(r"position_embd|ffn_gate_inp|ssm_(conv1d|norm|a|d)\b")


def gguf_tensors(
    model: Decoder, config: dict[str, Any], architecture: Architecture
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of a Decoder whose config.json is `config`; matrices are (out, in), those of experts stacked."""
    import gguf

    number = next(i for i, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(number, model.config.num_layers)
    tensors = _with_stacked_experts(hub_tensors(model, config))
    for theirs in [*tensors]:
        for name, tensor in architecture.convert(theirs, tensors.pop(theirs).float(), model.config):
            written = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if written is None:
                raise ModelError(f"llama.cpp's {architecture.name} has no tensor for {name}")
            yield written, tensor
    yield from architecture.extra(model.config)
    if model.head is None and not architecture.ties:
        yield "output.weight", model.token_embedding.weight


def _with_stacked_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Replace the matrices of single experts by (experts, out, in)."""
    matrices: dict[str, list[torch.Tensor]] = defaultdict(list)
    for name in [*tensors]:
        if found := _EXPERT.fullmatch(name):
            matrices[f"{found[1]}.{found[2]}"].append(tensors.pop(name))
    return tensors | {name: torch.stack(stack) for name, stack in matrices.items()}
