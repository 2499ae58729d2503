"""Every family of the hub beside transformers, on random odd shapes: loaded, run, saved and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apps.export.hub_format import save_pretrained
from common.errors import ModelError
from common.models import Decoder, load_pretrained
from common.models.hub.families import FAMILIES
from tests.budget import budget
from tests.common.models.hub.transformers_models import (
    CONFIGS,
    CONTEXT,
    VOCABULARY,
    from_transformers,
    make,
    transformers_of,
)

pytestmark = [pytest.mark.slow, pytest.mark.attack]
SEEDS = range(budget(2, 20))


def tokens(rows: int, length: int = CONTEXT) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_logits(ours: Decoder, theirs: Any) -> None:
    """To 1e-4, in texts longer than the windows and than the context before LongRoPE, and shorter."""
    inputs = tokens(rows=3)
    expected = theirs(inputs).logits
    assert expected.std() > 0.1  # else the tolerance says nothing
    found = ours.eval()(inputs)["logits"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    short = tokens(rows=2, length=9)
    torch.testing.assert_close(ours(short)["logits"], theirs(short).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def without_cache(model: Decoder, prompt: torch.Tensor, count: int) -> torch.Tensor:
    for _ in range(count):
        best = model(prompt)["logits"][:, -1].argmax(dim=-1, keepdim=True)
        prompt = torch.cat([prompt, best], dim=1)
    return prompt


def assert_same_text(ours: Decoder, theirs: Any) -> None:
    """Greedy, at batch 1 and 3, from a cache and without."""
    for rows in (1, 3):
        prompt = tokens(rows, length=7)
        count = CONTEXT - 8
        greedy = theirs.generate(prompt, max_new_tokens=count, do_sample=False, pad_token_id=0)
        assert ours.generate(prompt, count, temperature=0).tolist() == greedy.tolist()
        assert without_cache(ours, prompt, count).tolist() == greedy.tolist()


def test_every_family_is_tested() -> None:
    assert CONFIGS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_theirs_to_ours_and_back(name: str, seed: int, tmp_path: Path) -> None:
    theirs = make(name, seed)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    assert_same_logits(ours, theirs)
    assert_same_text(ours, theirs)
    save_pretrained(ours, tmp_path / "back")
    again = from_transformers(tmp_path / "back")
    with torch.no_grad():
        torch.testing.assert_close(
            again(tokens(3)).logits, theirs(tokens(3)).logits, atol=1e-5, rtol=0
        )
    if again.config.model_type == theirs.config.model_type:
        written, original = (
            load_file(tmp_path / folder / "model.safetensors") for folder in ("back", "theirs")
        )
        assert written.keys() == original.keys()
        assert all(torch.equal(written[key], original[key]) for key in written)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen3_moe", "deepseek_v3", "qwen3_next"])
def test_padding_of_a_batch_changes_no_token_before_it(name: str, tmp_path: Path) -> None:
    """Experts drop no token, so that padding takes no room of others (transformers 28505)."""
    theirs = make(name, 1)
    theirs.save_pretrained(tmp_path / "a")
    ours = load_pretrained(tmp_path / "a").eval()
    inputs, lengths = tokens(3, 20), [20, 13, 5]
    attention_mask = torch.stack([torch.arange(20) < length for length in lengths]).long()
    with torch.no_grad():
        expected = theirs(inputs, attention_mask=attention_mask).logits
        found = ours(inputs * attention_mask)["logits"]
    for row, length in enumerate(lengths):
        torch.testing.assert_close(
            found[row, :length], expected[row, :length], atol=1e-4, rtol=1e-4
        )


# Added to any config.json. Each is right or refused, whatever transformers reads of it and whatever not.
FOREIGN: dict[str, Any] = {
    **{"is_causal": False, "is_encoder_decoder": True, "use_qk_norm": True, "pretraining_tp": 2},
    **{"attention_bias": True, "mlp_bias": True, "attention_chunk_size": 4, "clip_qkv": 0.5},
    **{"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1, "head_dim": 8},
    **{"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "n_inner": 9},
    **{"per_layer_config": {"1": {"rms_norm_eps": 0.5, "layer_norm_epsilon": 0.5}}},
    **{"rms_norm_eps": 0.5, "layer_norm_epsilon": 0.5, "layer_norm_eps": 0.5, "norm_eps": 0.5},
    **{"rope_theta": 99.0, "partial_rotary_factor": 0.5, "rotary_pct": 0.5},
    **{"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    **{"rope_parameters": {"rope_type": "yarn", "rope_theta": 50.0, "factor": 2.0}},
    **{"hidden_act": "relu", "activation_function": "relu", "hidden_activation": "relu"},
    **{"attn_logit_softcapping": 1.0, "final_logit_softcapping": 1.0, "logit_scale": 0.1},
    **{"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "n_group": 2},
    **{"routed_scaling_factor": 3.0, "topk_method": "greedy", "scoring_func": "sigmoid"},
    **{"pruned_heads": {"0": [1]}, "use_bidirectional_attention": True, "": 0},
    **{"use_cache": False, "attention_dropout": 0.5, "initializer_range": 0.5, "eos_token_id": [3]},
}


def mutations(value: Any) -> list[Any]:
    """Other values of the same type."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, max(value // 2, 1)]
    if isinstance(value, float):
        return [value * 2, 0.37]
    if isinstance(value, list):
        return [value[::-1], value[:1], value + value[:1]]
    if isinstance(value, dict):
        return [{**value, key: new} for key in value for new in mutations(value[key])]
    return [3, 0.5, True] if value is None else ["other"]


def edits(config: dict[str, Any]) -> list[tuple[str, Any]]:
    own = [(key, new) for key, value in config.items() for new in mutations(value)]
    return [(key, new) for key, new in [*own, *FOREIGN.items()] if config.get(key, ...) != new]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_edit_of_a_configuration_is_right_or_refused(name: str, tmp_path: Path) -> None:
    make(name, 0).save_pretrained(tmp_path / "a")
    path, right = tmp_path / "a" / "config.json", 0
    original = json.loads(path.read_text())
    for key, value in edits(original)[:: budget(4, 1)]:
        path.write_text(json.dumps(original | {key: value}))
        try:
            ours = load_pretrained(tmp_path / "a").eval()
        except ModelError as error:
            assert "\n" not in error.message
            continue
        inputs = tokens(2, min(CONTEXT, ours.context_limit or CONTEXT))
        try:
            with torch.no_grad():
                expected = transformers_of(tmp_path / "a")(inputs).logits
        except Exception:  # of any kind: it refuses, or cannot compute it
            continue
        found = ours(inputs)["logits"]
        message = f"{key} = {value}"
        torch.testing.assert_close(
            found, expected, atol=1e-4, rtol=1e-4, msg=lambda text, m=message: f"{m}: {text}"
        )
        right += 1
    assert right >= budget(3, 20)  # not by refusing everything
