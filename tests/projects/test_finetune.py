"""Training goes on from the weights of a folder in Hugging Face's format."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file

import common.data
from apps.export.hub_format import save_pretrained
from common.config import load_config
from common.data.tokenizers import BPETokenizer
from common.errors import CheckpointError, ModelError
from common.models import Decoder
from common.training import load_run
from projects.finetune.train import Config, build
from tests.fork_server import ForkServer

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


LORA = (
    *(option for option in OPTIONS if not option.startswith(("training.max", "optimizer.lr"))),
    *("training.max_steps=6", "optimizer.lr=1e-2", "training.activation_checkpointing=true"),
    "model.lora={rank: 2, targets: [query_key_value, feedforward.output], dropout: 0.1, base_dtype: bfloat16}",
    "training.ema_decay=0.5",
)


@pytest.mark.slow
def test_lora_resumes_bit_equal_and_exports_merged(
    fork_server: ForkServer, run_tool, tiny: Decoder, assets_dir: Path, tmp_path: Path
) -> None:
    script, arguments = "projects/finetune/train.py", ("--config", "configs/quickstart.yaml", *LORA)
    whole = run_tool(script, *arguments, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    kill = {"count": 1, "signal": signal.SIGKILL, "change": "step_4", "reads": False}
    with (tmp_path / "log").open("w+") as log:
        streams = {"stdin": log, "stdout": log, "stderr": log}
        cut = fork_server.start(script, *arguments, "--name", "cut", **streams, strikes=[kill])
        assert cut.wait() == -signal.SIGKILL
    resumed = run_tool(script, "--name", "cut", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    weights, training = (
        [load_file(_last(assets_dir, name) / file) for name in ("whole", "cut")]
        for file in ("model.safetensors", "training.safetensors")
    )
    for expected, found in (weights, training):
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert {name.rpartition(".")[2] for name in weights[0]} == {"lora_a", "lora_b"}

    run = load_run("cut", "last")
    assert run.model.lora is None
    base = tiny.get_parameter("blocks.0.feedforward.output.weight").bfloat16().float()
    a, b = (weights[0][f"blocks.0.feedforward.output.lora_{x}"].double() for x in "ab")
    trained = run.model.get_parameter("blocks.0.feedforward.output.weight")
    torch.testing.assert_close(trained.double(), base.double() + 16 / 2 * b @ a)
    last = ("--checkpoint", "last")
    evaluated = run_tool("projects/finetune/evaluate.py", "cut", *last)
    assert evaluated.returncode == 0, evaluated.stderr
    for format in ("hub", "gguf"):
        exported = run_tool("tools/export.py", "--name", "cut", "--format", format, *last)
        assert exported.returncode == 0, exported.stderr
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        assets_dir / "outputs" / "runs" / "cut" / "exports" / "cut"
    )
    ids = torch.arange(16)[None]
    with torch.no_grad():
        logits = run.model.eval()(ids)["logits"]
        torch.testing.assert_close(theirs.eval()(ids).logits, logits, rtol=1e-5, atol=1e-5)

    folder = assets_dir / "models" / "owner--tiny"
    shutil.rmtree(folder)
    with torch.no_grad():
        tiny.final_norm.bias += 1
    save_pretrained(tiny, folder, BPETokenizer.train([TEXT], 300))
    with pytest.raises(CheckpointError, match="base_sha256 was"):
        load_run("cut", "last")


def test_a_target_that_is_not_there_names_those_that_are(run_tool, tiny: Decoder) -> None:
    arguments = ("--config", "configs/quickstart.yaml", *OPTIONS, "model.lora.targets=[q_proj]")
    wrong = run_tool("projects/finetune/train.py", *arguments)
    assert wrong.returncode == 2 and "no linear layer matches 'q_proj'" in wrong.stderr
    assert "mixer.query_key_value, mixer.output, feedforward.input" in wrong.stderr


def _last(assets_dir: Path, name: str) -> Path:
    return assets_dir / "outputs" / "runs" / name / "checkpoints" / "step_6"


def _project() -> Path:
    return Path(__file__).parents[2] / "projects" / "finetune"
