"""Model FLOPs utilisation (MFU): achieved model FLOP/s as a fraction of the device's peak.

Chowdhery et al. 2022, "PaLM", appendix B: MFU = tokens per second / (peak FLOP/s / FLOPs per
token), where recomputation and other overhead do not count.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import nn

from common.models.base import BaseLanguageModel
from common.models.decoder import Decoder


class Peak(NamedTuple):
    """Dense (not sparse) TFLOP/s, from data sheets; None: not supported by the device."""

    bf16: float | None  # tensor cores, fp32 accumulation
    tf32: float | None
    fp32: float  # without tensor cores


# Patterns of torch.cuda.get_device_name() after "NVIDIA ", "Tesla " or "GeForce ". The full name
# must match: a MIG slice, a laptop or a "4090 D" is another device. Figures published only with
# sparsity are halved.
_PEAKS: dict[str, Peak] = {
    # "NVIDIA A100 Tensor Core GPU" data sheet
    r"A100-(SXM4|PCIE)-(40|80)GB|A100 80GB PCIe": Peak(312, 156, 19.5),
    # "NVIDIA H100 Tensor Core GPU Architecture" v1.04: SXM5, then PCIe
    r"H100 80GB HBM3": Peak(989.4, 494.7, 66.9),
    r"H100 PCIe": Peak(756, 378, 51.2),
    # "NVIDIA H100 Tensor Core GPU" data sheet
    r"H100 NVL": Peak(835.5, 417.5, 60),
    # "NVIDIA H200 Tensor Core GPU" data sheet: SXM, then NVL
    r"H200": Peak(989.5, 494.5, 67),
    r"H200 NVL": Peak(835.5, 417.5, 60),
    # "NVIDIA L4 Tensor Core GPU" data sheet
    r"L4": Peak(121, 60, 30.3),
    # "NVIDIA L40" and "NVIDIA L40S" data sheets
    r"L40": Peak(181.05, 90.5, 90.5),
    r"L40S": Peak(362.05, 183, 91.6),
    # "NVIDIA A10" and "NVIDIA A40" data sheets; the A10G is another device
    r"A10": Peak(125, 62.5, 31.2),
    r"A40": Peak(149.7, 74.8, 37.4),
    # "NVIDIA Ampere GA102 GPU Architecture" v2, appendix A (GeForce) and C (RTX A6000)
    r"RTX 3090": Peak(71, 35.6, 35.6),
    r"RTX A6000": Peak(154.8, 77.4, 38.7),
    # "NVIDIA Ada GPU Architecture" v2, appendix A
    r"RTX 4090": Peak(165.2, 82.6, 82.6),
    # "NVIDIA V100 Tensor Core GPU" data sheet: SXM2, PCIe, V100S
    r"V100-SXM2-(16|32)GB": Peak(None, None, 15.7),
    r"V100-PCIE-(16|32)GB": Peak(None, None, 14),
    r"V100S-PCIE-32GB": Peak(None, None, 16.4),
    # "NVIDIA T4 Tensor Core GPU" data sheet
    r"T4": Peak(None, None, 8.1),
}


def flops_per_token(
    num_parameters: int, num_layers: int, num_heads: int, head_size: int, context_length: int
) -> int:
    """6 N + 12 L H Q T: forward and backward, of which a third is forward (PaLM, appendix B).

    6 per parameter of a matrix product; 12 L H Q T for queries times keys and weights times values,
    as if every token saw all `context_length` tokens (the masked half counts).
    """
    return 6 * num_parameters + 12 * num_layers * num_heads * head_size * context_length


def model_flops_per_token(model: BaseLanguageModel, context_length: int) -> int | None:
    """FLOPs per token of training `model` on sequences of `context_length` tokens.

    A Decoder adds up its layers. None for a model of which it is not known: one with LoRA adapters, and
    one that is not made of attention or LSTM layers and plain feed-forward layers, as its `arguments` say.
    """
    if model.lora:  # frozen weights have no gradient: 4 FLOPs, or 2 before the first adapter
        return None
    if isinstance(model, Decoder):
        mixing = sum(mixer.flops_per_token(context_length) for mixer in model.mixers)
        idle = model.num_parameters() - model.num_active_parameters()
        return round(6 * (_multiplied(model) - idle) + 3 * mixing)
    arguments = model.arguments
    mixer = arguments.get("mixer", "attention")
    is_dense = arguments.get("feedforward", "mlp") in ("mlp", "swiglu", "none")
    shape = [arguments.get(key) for key in ("num_layers", "num_heads", "hidden_size")]
    if mixer not in ("attention", "lstm") or not is_dense or None in shape:
        return None
    layers, heads, hidden = (int(size) for size in shape if size is not None)
    if mixer == "lstm":
        layers = 0  # all its FLOPs are products with its weights
    head_size = int(arguments.get("head_size") or hidden // heads)
    return flops_per_token(_multiplied(model), layers, heads, head_size, context_length)


def _multiplied(model: BaseLanguageModel) -> int:
    """Number of parameters in matrix products, which excludes embedding look-ups.

    (Kaplan et al. 2020, section 2.1, exclude embeddings too. PaLM's are tied and count.)
    """
    looked_up = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
    tied = model.vocab_size * int(model.arguments["hidden_size"])
    is_tied = looked_up and model.arguments.get("tie_embeddings", False)
    return model.num_parameters() - looked_up + (tied if is_tied else 0)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of the device, None if unknown. `precision`: bf16 or fp32."""
    if device.type != "cuda":
        return None
    uses_tf32 = precision == "fp32" and torch.get_float32_matmul_precision() != "highest"
    return peak_flops_of(torch.cuda.get_device_name(device), "tf32" if uses_tf32 else precision)


def peak_flops_of(device_name: str, precision: str) -> float | None:
    """`peak_flops` by the CUDA device name. `precision`: bf16, tf32 or fp32."""
    name = re.sub(r"^(NVIDIA )?(Tesla |GeForce )?", "", device_name)
    for pattern, peak in _PEAKS.items():
        if re.fullmatch(pattern, name):
            found: float | None = peak._asdict().get(precision)
            return None if found is None else found * 1e12
    return None
