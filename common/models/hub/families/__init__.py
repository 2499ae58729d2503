"""The families of models in Hugging Face format, a file for those that have much in common. Imports no torch."""

from __future__ import annotations

from common.models.hub.families.base import Family
from common.models.hub.families.deepseek import DeepseekV2, DeepseekV3
from common.models.hub.families.gemma import Gemma2, Gemma3
from common.models.hub.families.gpt2 import GPT2
from common.models.hub.families.gpt_neox import GPTNeoX
from common.models.hub.families.llama import Llama, Mistral, Phi3, Qwen2, Qwen3, SmolLM3
from common.models.hub.families.mamba2 import Mamba2
from common.models.hub.families.mixture import Mixtral, OLMoE, Qwen3MoE
from common.models.hub.families.olmo import OLMo2, OLMo3
from common.models.hub.families.qwen3_next import Qwen3Next

# A Decoder that several compute is written as the first.
_CLASSES: tuple[type[Family], ...] = (
    *(GPT2, Llama, Qwen2, Qwen3, Mistral, GPTNeoX, OLMo2, OLMo3, OLMoE, Mixtral, Qwen3MoE),
    *(DeepseekV2, DeepseekV3, Mamba2, Qwen3Next, SmolLM3, Gemma2, Gemma3, Phi3),
)
FAMILIES: dict[str, Family] = {family.model_type: family() for family in _CLASSES}
