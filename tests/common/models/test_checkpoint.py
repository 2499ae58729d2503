"""Checkpoints: whole or refused. Every byte is guarded, a kill at any moment leaves one that loads."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import CheckpointError
from common.models import Decoder, checkpoint


def decoder(seed: int = 0, hidden_size: int = 8) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(7, num_layers=1, num_heads=2, hidden_size=hidden_size, context_length=4)


def save_training(model: Decoder, path: Path, state: dict[str, Any], tensors: Any) -> Path:
    state = {"model": checkpoint.identity_of(model), **state}
    return checkpoint.save_checkpoint(path, checkpoint.weights_of(model), state, tensors)


def save(directory: Path, step: int, seed: int = 0) -> Path:
    """A checkpoint with all four files."""
    tensors = {"rng.torch": torch.get_rng_state(), "optimizer.0.step": torch.tensor(3.0)}
    path = directory / f"step_{step}"
    return save_training(decoder(seed), path, {"step": step}, tensors)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "checkpoints", 5)


def test_what_is_saved_comes_back(saved: Path) -> None:
    found = checkpoint.load_checkpoint(saved)
    assert found.state["step"] == 5 and found.path == saved
    assert float(found.tensors["optimizer.0.step"]) == 3.0
    assert found.state["model"]["class"] == "common.models.decoder.Decoder"
    loaded = Decoder.load_checkpoint(saved)
    for name, value in decoder().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_sha256sum_agrees_with_the_sums_file(saved: Path) -> None:
    result = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=saved,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    named = sorted(line.split(":")[0] for line in result.stdout.splitlines())
    assert named == ["model.safetensors", "state.json", "training.safetensors"]
    assert sorted(p.name for p in saved.iterdir()) == sorted([*named, "SHA256SUMS"])


def test_no_file_is_a_pickle(saved: Path) -> None:
    for file in saved.iterdir():
        content = file.read_bytes()
        assert not content.startswith((b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")), file
        if file.suffix == ".safetensors":
            size = int.from_bytes(content[:8], "little")
            json.loads(content[8 : 8 + size])
    json.loads((saved / "state.json").read_text())


FILES = ["model.safetensors", "training.safetensors", "state.json", "SHA256SUMS"]


def positions(size: int, generator: np.random.Generator) -> list[int]:
    """All of a small file; of a large one its ends and a sample."""
    if size <= 300:
        return list(range(size))
    inside = generator.integers(0, size, 60).tolist()
    return sorted({0, 1, 7, 8, 9, size - 2, size - 1, *inside})


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_anywhere_is_found(saved: Path, name: str) -> None:
    file = saved / name
    content = file.read_bytes()
    generator = np.random.default_rng(0)
    missed = []
    for position in positions(len(content), generator):
        for flip in {1 << int(generator.integers(8)), 0x01, 0x20, 0xFF}:
            damaged = bytearray(content)
            damaged[position] ^= flip
            file.write_bytes(damaged)
            try:
                checkpoint.verify(saved)
                missed.append((position, flip))
            except CheckpointError as error:
                assert str(saved) in error.message
    file.write_bytes(content)
    checkpoint.verify(saved)
    assert not missed


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_found(saved: Path, name: str) -> None:
    file = saved / name
    content = file.read_bytes()
    missed = []
    for size in positions(len(content), np.random.default_rng(1)):
        file.write_bytes(content[:size])
        try:
            checkpoint.verify(saved)
            missed.append(size)
        except CheckpointError:
            pass
    assert not missed


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_longer_is_found(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content + b"x")
    with pytest.raises(CheckpointError):
        checkpoint.verify(saved)
    (saved / name).unlink()
    with pytest.raises(CheckpointError):
        Decoder.load_checkpoint(saved)


def test_a_damaged_checkpoint_is_never_loaded(saved: Path) -> None:
    file = saved / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for target in (Decoder, decoder(1)):
        with pytest.raises(CheckpointError, match=r"damaged: model\.safetensors"):
            target.load_checkpoint(saved)


# Interruptions

KILLED_SAVES = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    import torch
    from common.models import Decoder
    from common.models import checkpoint

    def save(path, seed):
        torch.manual_seed(seed)
        model = Decoder(7, num_layers=1, num_heads=2, hidden_size=8, context_length=4)
        state = {"seed": seed, "model": checkpoint.identity_of(model)}
        weights = checkpoint.weights_of(model)
        checkpoint.save_checkpoint(path, weights, state, {"x": torch.ones(3) * seed})

    def die_at(moment, folder):
        seen = 0
        def hook(event, arguments):
            nonlocal seen
            changes = event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove")
            if changes or (event == "open" and str(arguments[0]).startswith(folder)):
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)

    root = Path(sys.argv[1])
    save(root / "warm" / "saved", 0)
    moment = 0
    while True:
        moment += 1
        path = root / str(moment) / "saved"
        save(path, 1)
        child = os.fork()
        if child == 0:
            die_at(moment, str(path.parent))
            save(path, 2)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
    print(moment)
    """)


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_save_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path,
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED_SAVES, str(tmp_path)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    moments = int(result.stdout)
    assert moments > 10
    lost, seeds = [], []
    for moment in range(1, moments + 1):
        path = tmp_path / str(moment) / "saved"
        try:
            found = checkpoint.load_checkpoint(path)
            Decoder.load_checkpoint(path)
            assert float(found.tensors["x"][0]) == found.state["seed"]
            seeds.append(found.state["seed"])
        except CheckpointError as error:
            lost.append((moment, error.message))
    assert not lost
    assert seeds == sorted(seeds) and set(seeds) == {1, 2}


def test_an_interrupted_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_training(decoder(), tmp_path / "new", {"x": object()}, {})
    assert list(tmp_path.iterdir()) == []
    save(tmp_path, 5)
    with pytest.raises(TypeError):
        save_training(decoder(1), tmp_path / "step_5", {"x": object()}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step_5"]
    checkpoint.verify(tmp_path / "step_5")


@pytest.mark.parametrize("hidden_size", [80, 128, 256])
def test_a_full_disk_is_one_clear_error_and_earlier_checkpoints_load(
    small_disk: Callable[[str], Path], hidden_size: int
) -> None:
    disk = small_disk("256k")
    first = save(disk, 1)
    large = decoder(hidden_size=hidden_size)
    tensors = {"optimizer.0.exp_avg": torch.zeros(hidden_size, 200)}
    with pytest.raises(CheckpointError) as caught:
        for step in range(2, 9):
            save_training(large, disk / f"step_{step}", {"step": step}, tensors)
    message = caught.value.message
    assert "\n" not in message and f"cannot save {disk}" in message and "space" in message
    assert "disk space" in caught.value.hint
    assert not [p for p in disk.iterdir() if p.name.startswith(".")]
    Decoder.load_checkpoint(first)
    assert f"step_{len(list(disk.iterdir())) + 1}" in message


def test_a_file_size_limit_is_one_clear_error(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot save") as caught:
            save_training(decoder(hidden_size=64), tmp_path / "step_2", {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in caught.value.message
    assert [p.name for p in tmp_path.iterdir() if p.name != "assets"] == ["step_1"]
    Decoder.load_checkpoint(first)


def test_a_folder_without_permission_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((CheckpointError, OSError)):
        decoder().save_checkpoint(tmp_path / "file" / "saved")
