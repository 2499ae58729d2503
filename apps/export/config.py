"""What can be asked of an export and of a compression. Imports no torch, so that a mistake is reported at once."""

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
            raise ConfigError(f"there is no pruning by '{self.kind}'", hint)
        if not 0 < self.share < 1:
            raise ConfigError(f"the share to prune must be between 0 and 1, got {self.share:g}")

    @classmethod
    def parse(cls, text: str) -> Pruning:
        """Read what is typed: `heads=0.25`. Raises ConfigError."""
        kind, _, share = text.partition("=")
        try:
            number = float(share)
        except ValueError:
            raise ConfigError(
                f"'{text}' is no pruning", "write it as KIND=SHARE: neurons=0.25"
            ) from None
        return cls(kind, number)  # type: ignore[arg-type]  # it is checked there


def check_dtype(format: Format, dtype: str | None) -> None:
    """Raises ConfigError for a dtype that files of this format have not."""
    if dtype is not None and (format != "gguf" or dtype not in GGUF_DTYPES):
        hint = f"gguf has {', '.join(GGUF_DTYPES)}; the other formats have float32 only"
        raise ConfigError(f"--format {format} has no --dtype {dtype}", hint)
