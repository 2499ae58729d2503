"""The settings of training.py for its benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ExperimentError
from tools.benchmarks import networks
from tools.benchmarks.turns import Contestant, beside, module_command


@dataclass(frozen=True)
class Plan:
    """`folder` is a temporary folder for all output."""

    folder: Path
    nanogpt: Path | None = None  # None: without it
    accelerate: Path | None = None  # Hugging Face's Trainer needs it; None: without that Trainer
    text: Path | None = None
    networks: Sequence[str] = ("0.8M", "10.6M", "30M")
    rounds: int = 7
    seconds: float = 3.0  # per turn
    warmup_seconds: float = 5.0
    repetitions: int = 3  # of whole trainings
    agreement_steps: int = 20
    memory_steps: int = 20
    overhead_pairs: int = 60  # of a block of steps with and one without
    overhead_steps: int = 20  # in a block
    loss: float = 1.885  # nats per token of the whole validation split
    parameters: int = 900_000
    ours_command: str = ""

    def tokens(self, network: str) -> Path:
        """The token file of a network, created on first use."""
        path = self.folder / f"{network}.bin"
        if not path.exists():
            networks.write_tokens(networks.NETWORKS[network], path)
        return path

    def starts(self, network: str, options: Mapping[str, object]) -> Path:
        """The file with the windows of our Trainer, so that the peers need not import it."""
        accumulation = int(str(options.get("accumulation", 1)))
        path = self.folder / f"{network}.starts_{accumulation}.npy"
        if not path.exists():
            tokens = networks.open_tokens(self.tokens(network))
            networks.write_starts(tokens, networks.NETWORKS[network], accumulation, path)
        return path

    def ours(self, network: str, **options: object) -> Contestant:
        return Contestant(self._command("train_ours", network, **options), may_fail=False)

    def of_nanogpt(self, network: str, **options: object) -> Contestant:
        options |= {"nanogpt": self.nanogpt, "starts": self.starts(network, options)}
        return Contestant(self._command("train_nanogpt", network, **options))

    def of_huggingface(self, network: str, **options: object) -> Contestant:
        assert self.accelerate is not None
        options["starts"] = self.starts(network, options)
        command = self._command("train_huggingface", network, **options)
        return Contestant(command, beside(self.accelerate))

    def needed_text(self, work: str) -> Path:
        """The text. Raises ExperimentError if none was given."""
        if self.text is None:
            raise ExperimentError(f"{work} needs a text", "pass one: --text FILE")
        return self.text

    def _command(self, module: str, network: str, **options: object) -> list[str]:
        shared = {"network": network, "tokens": self.tokens(network)}
        if options.get("steps") is None:
            shared["warmup_seconds"] = self.warmup_seconds
        return module_command(sys.executable, module, **shared, **options)
