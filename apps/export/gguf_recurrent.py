"""llama.cpp's architectures of latent attention and of recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch

from apps.export.gguf_architectures import Architecture, Named, Settings
from common.models.config import DecoderConfig
from common.models.rope_scaling import YarnScaling

if TYPE_CHECKING:
    from gguf import GGUFWriter


# Queries and keys of a gated DeltaNet are divided by their lengths, by llama.cpp if above norm_eps.
_LENGTH_EPS = 1e-6


class DeepSeek2(Architecture):
    """DeepSeek-V2 and V3. Keys and values are read from the latent: one head of keys, which all queries share."""

    name = "deepseek2"
    scalings: ClassVar[frozenset[str]] = frozenset({"yarn"})

    def limits(self, config: DecoderConfig, found: Settings) -> Iterator[str]:
        yield from super().limits(config, found)
        if isinstance(config.rope_scaling, YarnScaling) and config.rope_scaling.factor <= 1:
            yield "YaRN with a factor up to 1"

    def limits_of_experts(self, config: DecoderConfig, found: Settings) -> Iterator[str]:
        if _limits_groups(found) and found["moe.group_score"] != "top2_sum":
            yield "moe.group_score=max"

    def add_keys(self, writer: GGUFWriter, config: DecoderConfig, found: Settings) -> None:
        super().add_keys(writer, config, found)
        kinds = config.feedforward_kinds
        writer.add_leading_dense_block_count(kinds.index("moe"))

    def add_mixers(self, writer: GGUFWriter, config: DecoderConfig) -> None:
        options = config.options_of("latent_attention")
        writer.add_head_count(config.num_heads)
        writer.add_head_count_kv(1)
        writer.add_q_lora_rank(options.query_latent_size or 0)
        writer.add_kv_lora_rank(options.latent_size)
        writer.add_key_length(options.latent_size + options.rope_size)
        writer.add_value_length(options.latent_size)
        writer.add_key_length_mla(config.size_of_heads + options.rope_size)
        writer.add_value_length_mla(options.value_size or config.size_of_heads)
        self.add_rope(writer, config, options.rope_size)

    def add_yarn_factors(self, writer: GGUFWriter, scaling: YarnScaling) -> None:
        """llama.cpp multiplies rotated queries and keys by its attention factor A, and scores by
        (A * (1 + 0.1 * L * ln(factor)))^2; it reads 0.1 * L."""
        turned = scaling.table_factor()
        wanted = scaling.magnitude(scaling.mscale_all) if scaling.mscale_all else 1.0
        if wanted == turned:  # L = 0, with which A has its default as a factor
            super().add_yarn_factors(writer, scaling)
            return
        writer.add_rope_scaling_attn_factors(turned)
        writer.add_rope_scaling_yarn_log_mul((wanted / turned - 1) / math.log(scaling.factor))

    def add_experts(self, writer: GGUFWriter, found: Settings) -> None:
        import gguf

        super().add_experts(writer, found)
        scores = gguf.ExpertGatingFuncType
        sigmoid = found["moe.scores"] == "sigmoid"
        writer.add_expert_gating_func(scores.SIGMOID if sigmoid else scores.SOFTMAX)
        writer.add_expert_shared_count(found["moe.num_shared"])
        writer.add_expert_weights_scale(found["moe.scale"])
        writer.add_expert_weights_norm(found["moe.normalize"])
        if _limits_groups(found):
            writer.add_expert_group_count(found["moe.num_groups"])
            writer.add_expert_group_used_count(found["moe.top_groups"])

    def convert(self, name: str, tensor: torch.Tensor, config: DecoderConfig) -> Iterator[Named]:
        if name.endswith(".kv_b_proj.weight"):
            of_heads = tensor.reshape(
                config.num_heads, -1, tensor.shape[1]
            )  # (heads, sizes, latent)
            keys, values = of_heads.tensor_split([config.size_of_heads], dim=1)
            yield name.replace("kv_b_proj", "k_b_proj"), keys.transpose(1, 2)
            yield name.replace("kv_b_proj", "v_b_proj"), values
        else:
            yield name.replace("e_score_correction_bias", "e_score_correction.bias"), tensor


def _limits_groups(found: Settings) -> bool:
    return bool(found["moe.top_groups"] < found["moe.num_groups"])


class Mamba2(Architecture):
    """Mixers without feed-forward layers."""

    name = "mamba2"

    def limits(self, config: DecoderConfig, found: Settings) -> Iterator[str]:
        options = config.options_of("mamba2")
        if options.min_step > 0 or options.max_step is not None:
            yield "limits of the step"
        if config.bias:
            yield "projections with biases"

    def add_mixers(self, writer: GGUFWriter, config: DecoderConfig) -> None:
        options = config.options_of("mamba2")
        inner = round(options.expansion * config.hidden_size)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(options.kernel_size)
        writer.add_ssm_inner_size(inner)
        writer.add_ssm_state_size(options.state_size)
        writer.add_ssm_time_step_rank(inner // options.head_size)
        writer.add_ssm_group_count(options.num_groups)

    def convert(self, name: str, tensor: torch.Tensor, config: DecoderConfig) -> Iterator[Named]:
        options = config.options_of("mamba2")
        if name.endswith((".A_log", ".D")):
            tensor = tensor[:, None]
        elif name.endswith(".mixer.norm.weight"):
            tensor = tensor.reshape(options.num_groups, -1)
        yield from _recurrent(name, tensor)
        if name.endswith("conv1d.weight") and not options.convolution_bias:  # required by loaders
            yield name.replace("weight", "bias"), tensor.new_zeros(tensor.shape[0])


class Qwen3Next(Architecture):
    """Gated DeltaNet and gated attention."""

    name = "qwen3next"

    def limits(self, config: DecoderConfig, found: Settings) -> Iterator[str]:
        yield from super().limits(config, found)
        if found.get("gated_delta_net.key_size") != found.get("gated_delta_net.value_size"):
            yield "gated_delta_net with keys shorter or longer than values"
        if found["norm_eps"] > _LENGTH_EPS:
            yield f"norm_eps above {_LENGTH_EPS}"

    def add_mixers(self, writer: GGUFWriter, config: DecoderConfig) -> None:
        super().add_mixers(writer, config)
        options = config.options_of("gated_delta_net")
        key_heads = options.num_key_heads or config.num_heads
        value_heads = options.num_value_heads or key_heads
        size = options.key_size or config.size_of_heads
        writer.add_ssm_conv_kernel(options.kernel_size)
        writer.add_ssm_state_size(size)
        writer.add_ssm_group_count(key_heads)
        writer.add_ssm_time_step_rank(value_heads)
        writer.add_ssm_inner_size(value_heads * (options.value_size or size))
        recurrent = [mixer == "gated_delta_net" for mixer in config.mixers]
        writer.add_array("qwen3next.attention.recurrent_layers", recurrent)

    def add_experts(self, writer: GGUFWriter, found: Settings) -> None:
        super().add_experts(writer, found)
        writer.add_expert_shared_feed_forward_length(found["moe.shared_size"])

    def convert(self, name: str, tensor: torch.Tensor, config: DecoderConfig) -> Iterator[Named]:
        if ".linear_attn." not in name:
            yield from super().convert(name, tensor, config)
        elif name.endswith(".in_proj_qkvz.weight"):
            yield from self._split(name, tensor, config)
        else:
            yield from _recurrent(name, tensor)

    def _split(self, name: str, tensor: torch.Tensor, config: DecoderConfig) -> Iterator[Named]:
        """From queries, keys, values and gates of each key head to all queries, all keys, all values; all gates."""
        options = config.options_of("gated_delta_net")
        key_heads = options.num_key_heads or config.num_heads
        size = options.key_size or config.size_of_heads
        of_heads = tensor.reshape(key_heads, -1, tensor.shape[1])
        values = (of_heads.shape[1] - 2 * size) // 2
        parts = of_heads.split_with_sizes([size, size, values, values], dim=1)
        query, key, value, gate = (part.flatten(0, 1) for part in parts)
        yield name.replace("qkvz", "qkv"), torch.cat([query, key, value])
        yield name.replace("qkvz", "z"), gate


def _recurrent(name: str, tensor: torch.Tensor) -> Iterator[Named]:
    """What Mamba-2 and Gated DeltaNet have in common."""
    if name.endswith(".A_log"):
        tensor = -tensor.exp()
    elif name.endswith("conv1d.weight"):
        tensor = tensor[:, 0]  # (channels, 1, kernel)
    yield name.replace(".dt_bias", ".dt_proj.bias"), tensor
