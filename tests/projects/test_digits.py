"""Digits: another task than text, through every command: trained, killed, resumed, ranked and evaluated."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

from common.data.batch import LoaderBatches
from common.errors import MissingPackageError, ModelError
from common.utils import query_experiments
from common.utils.paths import REPOSITORY_ROOT, get_runs_dir
from projects.digits.networks import SequenceClassifier, create_model
from projects.digits.train import Config, ModelConfig, build
from tests.fork_server import ForkServer
from tests.torchrun import fork_processes

SCRIPT = REPOSITORY_ROOT / "projects" / "digits" / "train.py"
SHORT = (
    *("--config", "configs/cnn.yaml", "training.max_steps=200", "training.eval_every_steps=50"),
    *("training.device=cpu", "training.precision=fp32", "training.compile=false"),
)


def final_weights(name: str, step: int = 200) -> dict[str, torch.Tensor]:
    return load_file(get_runs_dir() / name / "checkpoints" / f"step_{step}" / "model.safetensors")


@pytest.mark.slow
def test_a_cnn_reads_digits_is_resumed_bit_for_bit_ranked_and_evaluated(
    fork_server: ForkServer, run_tool, tmp_path: Path
) -> None:
    whole = run_tool(SCRIPT, *SHORT, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    accuracy = re.search(r"accuracy (\S+)% \(360 images\)", whole.stdout)
    assert accuracy is not None and float(accuracy[1]) >= 97

    assert query_experiments("SELECT tokens FROM runs WHERE tokens IS NOT NULL").empty, "images"

    kill = {"count": 1, "signal": signal.SIGKILL, "change": "step_150", "reads": False}
    with (tmp_path / "log").open("w+") as log:
        arguments = (*SHORT, "--name", "cut")
        cut = fork_server.start(
            SCRIPT, *arguments, stdin=log, stdout=log, stderr=log, strikes=[kill]
        )
        assert cut.wait() == -signal.SIGKILL
    assert not (get_runs_dir() / "cut" / "checkpoints" / "step_200").exists()
    resumed = run_tool(SCRIPT, "--name", "cut", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    weights = final_weights("cut")
    for name, expected in final_weights("whole").items():
        assert torch.equal(weights[name], expected), name

    ranked = run_tool("tools/query_experiments.py", "--best", "accuracy", "--format", "csv")
    assert ranked.returncode == 0 and {"whole", "cut"} <= set(re.findall(r"\w+", ranked.stdout))
    evaluate = "projects/digits/evaluate.py"
    evaluated = run_tool(evaluate, "whole", "--checkpoint", "last")
    assert f"accuracy {accuracy[1]}% (360 images)" in evaluated.stdout, evaluated.stderr
    for script, *more in (
        (evaluate, "--data", "x.txt"),
        (evaluate, "--split", "train"),
        ("projects/baseline/sample.py", "--prompt", "7"),
    ):
        refused = run_tool(script, "whole", *more)
        assert refused.returncode == 2 and refused.stdout == "", refused.stdout
        assert refused.stderr.startswith("error [usage]: 'whole' ")
        assert refused.stderr.count("error [") == 1 and "Traceback" not in refused.stderr


@pytest.mark.slow
def test_two_processes_train_as_one_does(fork_server: ForkServer, run_tool) -> None:
    short = (*SHORT, "training.max_steps=20", "training.eval_every_steps=20")
    assert run_tool(SCRIPT, *short, "model.dropout=0", "--name", "one").returncode == 0
    for strategy in ("ddp", "fsdp"):
        several = (*short, "model.dropout=0", f"training.distributed={strategy}")
        code, output = fork_processes(fork_server, 2, SCRIPT, *several, "--name", strategy)
        assert code == 0, output
    rows = query_experiments(
        "SELECT experiment_name, loss, accuracy FROM experiments WHERE split = 'val' AND step = 20"
    ).set_index("experiment_name")
    for strategy in ("ddp", "fsdp"):
        assert rows.loc[strategy, "loss"] == pytest.approx(rows.loc["one", "loss"], rel=1e-4)
        assert rows.loc[strategy, "accuracy"] == pytest.approx(
            rows.loc["one", "accuracy"], abs=0.01
        )


VIT = {
    "model": {"kind": "sequence", "patch_size": 2},
    "decoder": {"num_layers": 2, "hidden_size": 16},
    "augment": {"shift": 1, "rotate": 10, "scale": 0.1, "flip": True, "erase": 0.2},
}


def vit(name: str, *more: str) -> list[str]:
    """A small ViT with every augmentation, for a few steps."""
    keys = {"model": "model", "decoder": "model.decoder", "augment": "data.augment"}
    given = [f"{keys[part]}.{k}={v}" for part, values in VIT.items() for k, v in values.items()]
    short = ("training.max_steps=60", "training.eval_every_steps=20", "data.batch_size=30")
    return [*SHORT, *given, *short, *more, "--name", name]


@pytest.mark.slow
def test_a_vit_with_augmentations_is_resumed_bit_for_bit_and_two_processes_train_as_one(
    fork_server: ForkServer, run_tool, tmp_path: Path
) -> None:
    whole = run_tool(SCRIPT, *vit("whole"))
    assert whole.returncode == 0, whole.stderr
    kill = {"count": 1, "signal": signal.SIGKILL, "change": "step_40", "reads": False}
    with (tmp_path / "log").open("w+") as log:
        cut = fork_server.start(
            SCRIPT, *vit("cut"), stdin=log, stdout=log, stderr=log, strikes=[kill]
        )
        assert cut.wait() == -signal.SIGKILL
    resumed = run_tool(SCRIPT, "--name", "cut", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    weights = final_weights("cut", 60)
    for name, expected in final_weights("whole", 60).items():
        assert torch.equal(weights[name], expected), name

    for strategy in ("ddp", "fsdp"):
        several = vit(strategy, f"training.distributed={strategy}")
        code, output = fork_processes(fork_server, 2, SCRIPT, *several)
        assert code == 0, output
    losses = query_experiments(
        "SELECT experiment_name, loss FROM experiments WHERE split = 'val' AND step = 60"
    ).set_index("experiment_name")["loss"]
    assert losses.loc[["cut", "ddp", "fsdp"]].to_numpy() == pytest.approx(losses["whole"], rel=1e-3)


def test_patches_are_read_row_by_row_and_a_pixel_is_a_token() -> None:
    def model(patch_size: int) -> SequenceClassifier:
        config = ModelConfig(kind="sequence", patch_size=patch_size)
        return SequenceClassifier(config, (3, 4, 6), 5)

    image = torch.arange(3 * 4 * 6.0).view(1, 3, 4, 6)
    seen: list[torch.Tensor] = []
    for size, count in ((1, 24), (2, 6)):
        net = model(size)
        net.embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        assert net(image)["logits"].shape == (1, 5)
        patches = seen[-1][0].view(count, 3, size, size)
        for number in range(count):
            row, column = divmod(number, 6 // size)
            rows, columns = (slice(at * size, (at + 1) * size) for at in (row, column))
            assert torch.equal(patches[number], image[0, :, rows, columns])
    with pytest.raises(ModelError, match="4 x 6 pixels have no whole patches of 4"):
        model(4)


@pytest.mark.parametrize("mixer", ["min_gru", "mamba2", "gated_delta_net"])
def test_the_last_token_of_a_causal_mixer_sees_the_first_pixel(mixer: str) -> None:
    torch.manual_seed(0)
    decoder = {"mixer": mixer, "num_layers": 1, "hidden_size": 16}
    model = create_model(
        ModelConfig(kind="sequence", patch_size=1, pool="last", decoder=decoder), (1, 4, 4), 3
    )
    image = torch.zeros(1, 1, 4, 4, requires_grad=True)
    model(image)["logits"].sum().backward()
    assert image.grad is not None and (image.grad != 0).all()


def test_the_test_images_are_the_same_for_every_seed() -> None:
    first, other = (list(build(Config(seed=seed)).val_data or ()) for seed in (0, 1))
    assert torch.equal(first[0]["inputs"], other[0]["inputs"]) and len(first[0]["inputs"]) == 360


def test_a_configuration_of_an_earlier_version_loads_and_its_data_is_the_same() -> None:
    earlier = Config.model_validate({"batch_size": 32, "test_images": 100})
    assert (earlier.data.batch_size, earlier.data.test_images) == (32, 100)
    digest = "20def7f70a702f0af9732fbba4375e147a7d54fe70d8c45569b8e7c1c7010c10"
    loader = {"rows": 1437, "batch_size": 64, "drop_last": False, "order": "shuffled with seed 0"}
    experiment = build(Config())
    assert experiment.fingerprint == {**loader, "images": digest}

    digits = load_digits()
    data = TensorDataset(
        torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    )
    train, _ = random_split(data, [1437, 360], torch.Generator().manual_seed(0))
    order = torch.Generator().manual_seed(0)
    earlier_batches = LoaderBatches(DataLoader(train, 64, shuffle=True, generator=order))
    for index in (0, 22, 23):
        inputs, labels = earlier_batches.batch(index)
        batch = experiment.batch(index)
        assert torch.equal(batch["inputs"], inputs) and torch.equal(batch["labels"], labels)
        assert batch["inputs"].stride() == inputs.stride(), "else convolutions round differently"


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackageError, match=r"sklearn is not installed .*\.\[digits\]"):
        build(Config())
