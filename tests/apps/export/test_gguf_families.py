"""Every family of the hub in llama.cpp, on random odd shapes: the same greedy text, the same log-probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apps.export.config import GGUFDtype
from apps.export.gguf import export_gguf
from apps.export.gguf_tensors import ARCHITECTURES
from apps.export.gguf_vocabulary import Vocabulary, vocabulary_of
from apps.export.llama_cpp import server_log_probabilities
from apps.export.readback import relative_error
from common.data.tokenizers import BPETokenizer
from common.models import Decoder, load_pretrained
from common.models.hub.families import FAMILIES
from tests.apps.export.llama_cpp_models import LlamaCpp, without_limits
from tests.budget import budget
from tests.common.models.hub.transformers_models import CONFIGS, CONTEXT, make

pytest.importorskip("gguf")
pytestmark = [pytest.mark.slow, pytest.mark.attack]

PROMPT_TOKENS, NEW_TOKENS = 7, 24
# Of log-probabilities, relative to their spread. llama.cpp has a table of half floats for GELU.
TOLERANCE, TOLERANCE_OF_GELU = 1e-4, 5e-3


@pytest.fixture(scope="module")
def vocabulary(tokenizer: BPETokenizer) -> Vocabulary:
    return vocabulary_of(tokenizer)


def loaded(family: str, seed: int, vocab_size: int, folder: Path) -> Decoder:
    def change(config: object) -> None:
        without_limits(config)
        config.vocab_size = vocab_size  # type: ignore[attr-defined]

    make(family, seed, change).save_pretrained(folder)
    return load_pretrained(folder).eval()


def test_every_family_has_an_architecture() -> None:
    assert ARCHITECTURES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("seed", range(budget(1, 12)))
@pytest.mark.parametrize("family", CONFIGS)
def test_llama_cpp_writes_what_the_model_writes(
    family: str, seed: int, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    model = loaded(family, seed, len(vocabulary.tokens), tmp_path / "theirs")
    path = export_gguf(model, vocabulary, tmp_path / "a.gguf", "f32")
    llama_cpp = LlamaCpp(path, CONTEXT)
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(1, model.vocab_size, (1, PROMPT_TOKENS), generator=generator)
    ours = model.generate(prompt, NEW_TOKENS, temperature=0)[0].tolist()
    new = ours[PROMPT_TOKENS:]
    if vocabulary.end_of_text in new:
        new = new[: new.index(vocabulary.end_of_text)]
    theirs = llama_cpp.greedy(ours[:PROMPT_TOKENS], NEW_TOKENS)
    assert [token for token in theirs if token != vocabulary.end_of_text] == new
    with torch.no_grad():
        expected = model(torch.tensor([ours]))["logits"][0].log_softmax(dim=-1)
    has_gelu = not {"mlp", "geglu"}.isdisjoint(model.config.feedforward_kinds)
    tolerance = TOLERANCE_OF_GELU if has_gelu else TOLERANCE
    for length in (1, PROMPT_TOKENS, 20, len(ours)):
        found = torch.tensor(server_log_probabilities(llama_cpp.server, ours[:length]))
        assert relative_error(found, expected[length - 1]) < tolerance


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "mamba2", "gemma3_text"])
def test_other_types_are_accepted_by_llama_cpp(
    family: str, dtype: GGUFDtype, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """Rows of 32 numbers, and float32 where llama.cpp reads nothing else."""

    def change(config: object) -> None:
        without_limits(config)
        sizes = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 64}
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 32}
        sizes |= {
            "kv_lora_rank": 32,
            "v_head_dim": 32,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 8,
        }
        if family == "mamba2":
            sizes |= {"num_heads": 4, "head_dim": 32, "n_groups": 2}
        else:
            sizes |= {"head_dim": 8 if family == "deepseek_v3" else 32, "qk_head_dim": 40}
        for key, value in {**sizes, "vocab_size": len(vocabulary.tokens)}.items():
            if hasattr(config, key):
                setattr(config, key, value)

    make(family, 0, change).save_pretrained(tmp_path / "theirs")
    model = load_pretrained(tmp_path / "theirs").eval()
    export_gguf(model, vocabulary, tmp_path / "a.gguf", dtype)  # compares logits
