"""Options of export and compression. Imports no torch, so that a mistake is reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from common.errors import ConfigError, did_you_mean

Format = Literal["gguf", "onnx", "hub"]
GGUFDtype = Literal["f32", "f16", "bf16", "q8_0"]
FORMATS: tuple[Format, ...] = get_args(Format)
GGUF_DTYPES: tuple[GGUFDtype, ...] = get_args(GGUFDtype)

PruningKind = Literal["magnitude", "global_magnitude", "heads", "neurons"]


@dataclass(frozen=True)
class Pruning:
    """`share` of the weights (of each layer, or of all together), of the heads or of the neurons."""

    kind: PruningKind
    share: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(PruningKind):
            hint = did_you_mean(str(self.kind), list(get_args(PruningKind)))
            raise ConfigError(f"unknown kind of pruning '{self.kind}'", hint)
        if not 0 < self.share < 1:
            raise ConfigError(f"the share to prune must be between 0 and 1, got {self.share:g}")

    @classmethod
    def parse(cls, text: str) -> Pruning:
        """Parse `heads=0.25`. Raises ConfigError."""
        kind, _, share = text.partition("=")
        try:
            number = float(share)
        except ValueError:
            raise ConfigError(
                f"invalid pruning '{text}'", "write it as KIND=SHARE: neurons=0.25"
            ) from None
        return cls(kind, number)  # type: ignore[arg-type]  # it is checked there


def check_dtype(format: Format, dtype: str | None) -> None:
    """Raise ConfigError for a dtype that the format does not support."""
    if dtype is not None and (format != "gguf" or dtype not in GGUF_DTYPES):
        hint = f"gguf supports {', '.join(GGUF_DTYPES)}; the other formats only float32"
        raise ConfigError(f"--format {format} does not support --dtype {dtype}", hint)
