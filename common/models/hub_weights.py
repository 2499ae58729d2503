"""Map weights of Hugging Face's GPT-2, Llama, Qwen2 and Qwen3 to parameters of a Decoder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from common.errors import ModelError
from common.models.decoder import Decoder
from common.models.weight_files import NO_WEIGHTS, WeightFiles, shown

# Our parameter names without `blocks.N` and `.weight` or `.bias`; * is the number of the block.
_LLAMA = {
    "token_embedding": ("model.embed_tokens",),
    "final_norm": ("model.norm",),
    "head": ("lm_head",),
    "mixer_norm": ("model.layers.*.input_layernorm",),
    "mixer.query_key_value": tuple(f"model.layers.*.self_attn.{x}_proj" for x in "qkv"),
    "mixer.output": ("model.layers.*.self_attn.o_proj",),
    "mixer.query_norm": ("model.layers.*.self_attn.q_norm",),
    "mixer.key_norm": ("model.layers.*.self_attn.k_norm",),
    "feedforward_norm": ("model.layers.*.post_attention_layernorm",),
    "feedforward.gate": ("model.layers.*.mlp.gate_proj",),
    "feedforward.input": ("model.layers.*.mlp.up_proj",),
    "feedforward.output": ("model.layers.*.mlp.down_proj",),
}
_GPT2 = {
    "token_embedding": ("transformer.wte",),
    "position_embedding": ("transformer.wpe",),
    "final_norm": ("transformer.ln_f",),
    "head": ("lm_head",),
    "mixer_norm": ("transformer.h.*.ln_1",),
    "mixer.query_key_value": ("transformer.h.*.attn.c_attn",),
    "mixer.output": ("transformer.h.*.attn.c_proj",),
    "feedforward_norm": ("transformer.h.*.ln_2",),
    "feedforward.input": ("transformer.h.*.mlp.c_fc",),
    "feedforward.output": ("transformer.h.*.mlp.c_proj",),
}
ROOTS = {"gpt2": "transformer.", **dict.fromkeys(("llama", "qwen2", "qwen3"), "model.")}


@dataclass(frozen=True)
class Part:
    """A tensor of the file: some rows of one of our parameters, perhaps transposed."""

    name: str
    shape: tuple[int, ...]
    transposed: bool


def hub_parts(model: Decoder, config: dict[str, Any]) -> dict[str, list[Part]]:
    """Map our parameter names to their slices in the file."""
    return {
        name: parts_of(model, config, name, parameter)
        for name, parameter in model.named_parameters()
    }


def parts_of(
    model: Decoder, config: dict[str, Any], name: str, parameter: torch.Tensor
) -> list[Part]:
    """The slices in the file that make up one of our parameters."""
    is_gpt2 = config["model_type"] == "gpt2"
    module, _, kind = name.rpartition(".")
    block = re.match(r"blocks\.(\d+)\.", module)
    names = (_GPT2 if is_gpt2 else _LLAMA)[module[block.end() :] if block else module]
    # transformers' Conv1D, which only GPT-2 has, multiplies by a weight of the shape (in, out).
    transposed = is_gpt2 and block is not None and parameter.ndim == 2
    rows, *columns = parameter.shape
    sizes = [config["n_positions"]] if module == "position_embedding" else [rows]
    if len(names) == 3:
        shape = model.config
        key_heads = shape.num_kv_heads or shape.num_heads
        sizes = [n * shape.size_of_heads for n in (shape.num_heads, key_heads, key_heads)]
    number = block[1] if block else ""
    return [
        Part(
            f"{theirs.replace('*', number)}.{kind}",
            (*columns, size) if transposed else (size, *columns),
            transposed,
        )
        for theirs, size in zip(names, sizes, strict=True)
    ]


def check_weights(parts: dict[str, list[Part]], tensors: WeightFiles, tied: bool) -> None:
    """Raise ModelError unless the files contain exactly the tensors of the model."""
    expected = {part.name: part.shape for parts_of in parts.values() for part in parts_of}
    for name, shape in expected.items():
        if name not in tensors.shapes:
            raise ModelError(f"{tensors.folder} has no tensor '{name}'")
        if tensors.shapes[name] != shape:
            found = list(tensors.shapes[name])
            raise ModelError(
                f"{tensors.folder}: '{name}' has the shape {found}, config.json implies {list(shape)}"
            )
    if tied and "lm_head.weight" in tensors.shapes:
        (embedding,) = parts["token_embedding.weight"]
        if not tensors.are_equal("lm_head.weight", embedding.name):
            raise ModelError(
                f"{tensors.folder}: 'lm_head.weight' is not '{embedding.name}', to which "
                "config.json ties it",
                'set "tie_word_embeddings": false if the model was trained so',
            )
        expected["lm_head.weight"] = expected[embedding.name]
    for name in tensors.shapes:
        if name not in expected and not NO_WEIGHTS.fullmatch(name):
            raise ModelError(f"{tensors.folder}: {shown(name)} belongs to no part of the model")


@torch.no_grad()
def fill_model(model: Decoder, parts: dict[str, list[Part]], tensors: WeightFiles) -> None:
    """Copy the tensors of the files into the parameters of `model`."""
    for name, parameter in model.named_parameters():
        start = 0
        for part in parts[name]:
            rows = part.shape[1] if part.transposed else part.shape[0]
            into = parameter[start : start + rows]  # fewer rows if the context is cut
            tensors.copy_rows(part.name, into.t() if part.transposed else into)
            start += rows
