"""Pixels: images as tokens and back, bits per dimension, exact resumes, and pictures."""

from __future__ import annotations

import math
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.config import make_config
from common.data.image_batches import image_batch
from common.data.image_sources import Images
from common.errors import ConfigError, DataError
from common.models import Decoder
from common.training import Evaluator
from common.training.pixel_likelihood import PixelLikelihood, to_images, to_tokens
from common.utils import query_experiments
from common.utils.paths import REPOSITORY_ROOT, get_runs_dir
from projects.pixels.drawing import draw
from projects.pixels.train import Config
from tests.fork_server import ForkServer
from tests.torchrun import fork_processes

PROJECT = REPOSITORY_ROOT / "projects" / "pixels"
SHORT = (
    *("--config", "configs/digits.yaml", "training.max_steps=40", "training.eval_every_steps=20"),
    *("training.device=cpu", "training.precision=fp32", "training.compile=false"),
    *("model.hidden_size=16", "model.num_layers=1", "data.augment.shift=1"),
)


@pytest.mark.parametrize("maximum", [255, 16])
def test_every_grey_level_is_one_token_and_comes_back(maximum: int) -> None:
    levels = maximum + 1
    pixels = np.arange(levels, dtype=np.uint8).repeat(3)[: levels // 4 * 12].reshape(-1, 2, 2, 3)
    inputs = image_batch(Images(pixels, np.zeros(len(pixels), np.int64), maximum))["inputs"]
    tokens = to_tokens(inputs, levels, torch.arange(len(pixels)) % 5)
    assert torch.equal(tokens[:, 0], torch.arange(len(pixels)) % 5)
    assert torch.equal(tokens[:, 1:], torch.from_numpy(pixels.reshape(len(pixels), -1)).long())
    assert torch.equal(to_images(tokens, levels, (3, 2, 2)), inputs)
    few = to_tokens(inputs, 4)[:, 1:]
    assert few.min() == 0 and few.max() == 3 and not to_tokens(inputs, 4)[:, 0].any()


def test_bits_per_dimension_count_every_pixel() -> None:
    """Against the sum of log-probabilities in float64, pixel by pixel."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 17, (7, 3, 4, 1), dtype=np.uint8), rng.integers(0, 3, 7), 16)
    batches = [image_batch(images[:4]), image_batch(images[4:])]
    model = Decoder(17, num_layers=1, hidden_size=16, num_heads=2, context_length=13)
    for by_class in (True, False):
        found = Evaluator(model, objective=PixelLikelihood(17, 3 if by_class else None)).evaluate(
            batches
        )
        nats = 0.0
        double = Decoder(17, **model.arguments).double()
        double.load_state_dict(model.state_dict())
        for pixels, label in zip(images.pixels, images.labels, strict=True):
            tokens = [int(label) if by_class else 0]
            for pixel in pixels.reshape(-1):
                logits = double(torch.tensor([tokens]))["logits"][0, -1]
                nats -= float(logits.detach().log_softmax(dim=0)[pixel])
                tokens.append(int(pixel))
        assert found["num_images"] == 7 and found["num_pixels"] == 7 * 12
        assert found["nats_per_image"] == pytest.approx(nats / 7, rel=1e-5)
        assert found["bits_per_dim"] == pytest.approx(nats / (7 * 12) / math.log(2), rel=1e-5)
        assert found["loss"] == pytest.approx(nats / (7 * 12), rel=1e-5)


def test_a_uniform_model_has_the_bits_of_its_levels() -> None:
    model = Decoder(256, num_layers=1, hidden_size=16, context_length=5)
    torch.nn.init.zeros_(model.token_embedding.weight)
    batch = {"inputs": torch.rand(3, 1, 2, 2), "labels": torch.zeros(3, dtype=torch.int64)}
    found = Evaluator(model, objective=PixelLikelihood(256)).evaluate([batch])
    assert found["bits_per_dim"] == pytest.approx(8, abs=1e-5)


def test_more_classes_than_levels_and_other_batches_are_errors() -> None:
    with pytest.raises(DataError, match="10 classes need as many grey levels, there are 4"):
        PixelLikelihood(4, 10)
    with pytest.raises(DataError, match="no inputs and labels"):
        PixelLikelihood(4).prepare([torch.zeros(2, 3)], 0)
    with pytest.raises(ConfigError, match="a pixel would see itself"):
        make_config(Config, {"model": {"causal": False}})


def test_a_completion_keeps_what_was_begun_and_sampling_follows_its_probabilities() -> None:
    torch.manual_seed(0)
    model = Decoder(4, num_layers=1, hidden_size=16, num_heads=2, context_length=5)
    begun = torch.tensor([[[[0.0, 1.0]]]]).expand(4000, 1, 1, 2)
    labels = torch.zeros(4000, dtype=torch.int64)
    images = draw(model, (1, 2, 2), labels, begun=begun, seed=1)
    assert torch.equal(images[:, :, :1], begun)
    logits = model(torch.tensor([[0, 0, 3]]))["logits"][0, -1]
    shares = torch.bincount((images[:, 0, 1, 0] * 3).round().long(), minlength=4) / 4000
    torch.testing.assert_close(shares, logits.softmax(dim=0).detach(), rtol=0, atol=0.04)
    assert torch.equal(images, draw(model, (1, 2, 2), labels, begun=begun, seed=1))


@pytest.mark.slow
def test_pixels_are_trained_killed_resumed_drawn_and_evaluated(
    fork_server: ForkServer, run_tool, tmp_path: Path
) -> None:
    script = PROJECT / "train.py"
    whole = run_tool(script, *SHORT, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    shown = re.search(r"(\S+) bits per dimension at 17 grey levels.*\(360 images\)", whole.stdout)
    assert shown is not None and float(shown[1]) < math.log2(17)

    kill = {"count": 1, "signal": signal.SIGKILL, "change": "step_20", "reads": False}
    with (tmp_path / "log").open("w+") as log:
        arguments = (*SHORT, "--name", "cut", "samples.num_images=0")
        cut = fork_server.start(
            script, *arguments, stdin=log, stdout=log, stderr=log, strikes=[kill]
        )
        assert cut.wait() == -signal.SIGKILL
    assert run_tool(script, "--name", "cut", "--resume").returncode == 0
    weights = [
        load_file(get_runs_dir() / name / "checkpoints" / "step_40" / "model.safetensors")
        for name in ("whole", "cut")
    ]
    for name, expected in weights[0].items():
        assert torch.equal(weights[1][name], expected), f"{name}, with and without samples"

    code, output = fork_processes(fork_server, 2, script, *SHORT, "--name", "two")
    assert code == 0, output
    bits = query_experiments(
        "SELECT experiment_name, bits_per_dim FROM experiments WHERE split = 'val' AND step = 40"
    ).set_index("experiment_name")["bits_per_dim"]
    assert bits["two"] == pytest.approx(bits["whole"], rel=1e-4)

    evaluated = run_tool(PROJECT / "evaluate.py", "whole", "--checkpoint", "last")
    assert f"{shown[1]} bits per dimension" in evaluated.stdout, evaluated.stderr
    folder = get_runs_dir() / "whole"
    assert {path.name for path in (folder / "samples").iterdir()} == {"step_20.png", "step_40.png"}
    for more, columns, rows in (
        ((), 10, 2),
        (("--label", "3"), 10, 2),
        (("--complete", "0.5"), 10, 4),
    ):
        drawn = run_tool(PROJECT / "sample.py", "whole", "--num-images", "20", *more)
        assert drawn.returncode == 0, drawn.stderr
        with Image.open(folder / "samples.png") as picture:
            assert picture.size == (2 * (columns * 10 + 2), 2 * (rows * 10 + 2))
    for more, reason in (
        (("--label", "x"), "there is no class 'x'"),
        (("--complete", "1.5"), "--complete must be between 0 and 1"),
        (("--temperature", "nan"), "--temperature must be"),
        (("--num-images", "0"), "must be an integer of at least 1"),
    ):
        refused = run_tool(PROJECT / "sample.py", "whole", *more)
        assert refused.returncode == 2 and reason in refused.stderr, refused.stderr
        assert "Traceback" not in refused.stderr
