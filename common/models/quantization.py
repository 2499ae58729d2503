"""Quantisation settings. Imports no torch, so that a mistake in a command is reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from common.errors import ConfigError

QuantizationKind = Literal["int8", "int4"]
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Quantization:
    """Quantisation settings of a model; `group_size` applies only to int4."""

    kind: QuantizationKind
    group_size: int = 32

    def __post_init__(self) -> None:
        if self.kind not in get_args(QuantizationKind):
            raise ConfigError(f"no quantisation '{self.kind}'", "choose from: int8, int4")
        if self.group_size not in GROUP_SIZES:
            choices = ", ".join(map(str, GROUP_SIZES))
            raise ConfigError(f"no group size {self.group_size}", f"choose from: {choices}")

    @property
    def bits(self) -> int:
        """Bits per weight."""
        return 8 if self.kind == "int8" else 4
