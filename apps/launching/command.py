"""The command line of a trial, its environment, and the configuration that a sweep starts from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError


@dataclass(frozen=True)
class Command:
    """`python SCRIPT --config CONFIG key=value ...`, with torchrun if `nproc` is set."""

    script: str
    config: str | None = None
    overrides: tuple[str, ...] = ()
    nproc: int | None = None

    def arguments(
        self, values: Mapping[str, str], *options: str, python: str = sys.executable
    ) -> list[str]:
        """The full command line with `values` of swept keys, and further `options` of the script."""
        launcher = [python]
        if self.nproc is not None:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += [f"--nproc-per-node={self.nproc}"]
        config = ["--config", self.config] if self.config else []
        swept = [f"{key}={value}" for key, value in values.items()]
        return [*launcher, self.script, *config, *options, *self.overrides, *swept]

    def resolved_configs(self, trials: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        """Validate the configuration of each of `trials` with the script's --print-configs.

        Raises ConfigError with the script's error about the first invalid one.
        """
        if not Path(self.script).is_file():
            raise ConfigError(f"no such script: {self.script}", "pass a project's train.py")
        command = Command(self.script, self.config, self.overrides).arguments({}, "--print-configs")
        lines = [json.dumps([f"{key}={value}" for key, value in each.items()]) for each in trials]
        result = subprocess.run(
            command, input="\n".join(lines), capture_output=True, text=True, timeout=600
        )
        if result.returncode != 0:
            raise _complaint(self.script, result)
        try:
            answers: list[dict[str, Any]] = [
                json.loads(line) for line in result.stdout.splitlines()
            ]
        except ValueError:
            answers = []
        if len(answers) != len(trials):
            raise ConfigError(f"{self.script} --print-configs prints no configurations")
        refused = [answer for answer in answers if "error" in answer]
        if refused:
            more = f" (and {len(refused) - 1:,} more of {len(answers):,} trials)"
            message = refused[0]["error"] + (more if len(refused) > 1 else "")
            raise ConfigError(message, refused[0]["hint"])
        return [answer["config"] for answer in answers]


def _complaint(script: str, result: subprocess.CompletedProcess[str]) -> ConfigError:
    lines = result.stderr.strip().splitlines() or ["no output"]
    for number, line in enumerate(lines):
        code, _, message = line.partition("]: ")
        if code.startswith("error [") and message:
            hints = [rest.partition("hint: ")[2] for rest in lines[number:] if "hint: " in rest]
            return ConfigError(message, hints[0] if hints else "")
    return ConfigError(
        f"{script} --print-configs exited with code {result.returncode}: {lines[-1]}",
        "only scripts with the command line of a project's train.py can be launched",
    )


def trial_environment(parallel: int, nproc: int | None) -> dict[str, str]:
    """Our environment, with the cores divided among `parallel` trials of `nproc` processes each.

    More threads than cores gain nothing (and cost with runtimes other than libgomp, see
    common/__init__.py), so OMP_NUM_THREADS is lowered to the share, but never raised. A single
    process is left to PyTorch, which counts physical cores.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # for following the log
    processes = parallel * (nproc or 1)
    if processes > 1:
        share = max(1, available_cores() // processes)
        given = environment.get("OMP_NUM_THREADS", "")
        threads = min(share, int(given)) if given.isdecimal() and int(given) else share
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def available_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))  # may be limited in a container or a job
    return os.cpu_count() or 1


def share_gpus(gpus: int, parallel: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each of `parallel` trials with `gpus` GPUs each. Raises ConfigError for too few."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = _installed_gpus() if listed is None else [d for d in listed.split(",") if d]
    if len(devices) < gpus * parallel:
        raise ConfigError(
            f"{parallel} parallel trials of {gpus} GPUs need {gpus * parallel}, found {len(devices)}",
            "lower --parallel or --gpus",
        )
    return [",".join(devices[i * gpus : (i + 1) * gpus]) for i in range(parallel)]


def _installed_gpus() -> Sequence[str]:
    try:
        result = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return []
    lines = [line for line in result.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]
