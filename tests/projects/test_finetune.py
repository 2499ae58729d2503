"""Training goes on from the weights of a folder in Hugging Face's format."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import common.data
from apps.export.hub_format import save_pretrained
from common.config import load_config
from common.data.tokenizers import BPETokenizer
from common.errors import ModelError
from common.models import Decoder
from common.training import load_run
from projects.finetune.train import Config, build

TEXT = "the cat sat on the mat; the dog did not. "
OPTIONS = (
    "model.pretrained=owner/tiny",
    *("model.context_length=16", "data.batch_size=2", "data.dataset=pets", "training.max_steps=2"),
    *("training.eval_every_steps=2", "training.precision=fp32", "training.compile=false"),
    *("optimizer.lr=1e-9", "optimizer.weight_decay=0", "samples.max_new_tokens=4"),
)


@pytest.fixture
def tiny(assets_dir: Path) -> Decoder:
    """Also in assets/models, and a text for it."""
    torch.manual_seed(0)
    tokenizer = BPETokenizer.train([TEXT], 300)
    model = Decoder(
        tokenizer.vocab_size, num_layers=1, hidden_size=16, num_heads=2, context_length=32
    )
    save_pretrained(model, assets_dir / "models" / "owner--tiny", tokenizer)
    text = assets_dir / "datasets" / "pets" / "pets.txt"
    text.parent.mkdir(parents=True)
    text.write_text(TEXT * 50)
    return model


@pytest.mark.slow
def test_a_run_begins_with_the_pretrained_weights(
    run_tool, tiny: Decoder, assets_dir: Path
) -> None:
    script, config = "projects/finetune/train.py", "configs/quickstart.yaml"
    result = run_tool(script, "--config", config, "--name", "exp_001", *OPTIONS)
    assert result.returncode == 0, result.stderr
    run = assets_dir / "outputs" / "runs" / "exp_001"
    trained = load_run(run.name).model
    # Two steps of 1e-9 change nothing that could be seen; another beginning would.
    for name, parameter in tiny.named_parameters():
        theirs = trained.get_parameter(name)
        torch.testing.assert_close(theirs, parameter[: len(theirs)], atol=1e-7, rtol=0)
    assert trained.config.context_length == 16  # of 32
    sampled = run_tool("projects/finetune/sample.py", "exp_001", "--prompt", "the cat")
    assert sampled.returncode == 0 and sampled.stdout.startswith("the cat"), sampled.stderr


def test_what_is_not_there_or_does_not_fit_is_told(
    run_tool, tiny: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, config = "projects/finetune/train.py", "configs/quickstart.yaml"
    missing = run_tool(script, "--config", config, *OPTIONS, "model.pretrained=owner/tinny")
    assert missing.returncode == 2
    assert "no model 'owner/tinny'" in missing.stderr
    assert "did you mean 'owner/tiny'" in missing.stderr and "prepared" not in missing.stderr
    other = run_tool(script, "--config", config, *OPTIONS, "data.tokenizer=bpe")
    assert other.returncode == 2 and "only the ids of its own tokenizer" in other.stderr
    loaded = load_config(Path("configs/quickstart.yaml"), Config, [*OPTIONS], [_project()])
    large = SimpleNamespace(vocab_size=9999)
    monkeypatch.setattr(common.data, "prepare", lambda config: large)
    with pytest.raises(ModelError, match="tiny has 9999 tokens, the model"):
        build(loaded)


def _project() -> Path:
    return Path(__file__).parents[2] / "projects" / "finetune"
