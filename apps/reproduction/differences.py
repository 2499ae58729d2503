"""Compare two runs of one experiment bit for bit: logged numbers and weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import CheckpointError
from common.utils.system_metrics import SYSTEM_METRICS

if TYPE_CHECKING:
    import torch

Row = Mapping[str, Any]  # row of the log: step, epoch, split, time, metrics
_TIMING = r"(^|_)(seconds?|time|throughput|mfu|memory_[gm]i?b)(_|$)"


def is_timing(metric: str) -> bool:
    """Whether a metric measures speed or memory, which differ between runs."""
    return metric in SYSTEM_METRICS or re.search(_TIMING, metric.lower()) is not None


@dataclass(frozen=True)
class Difference:
    """One logged number in both runs; None if not logged."""

    step: int
    split: str
    metric: str
    then: float | None
    now: float | None

    @property
    def relative(self) -> float | None:
        """|now - then| / |then|; None if one of them is not finite."""
        if self.then is None or self.now is None or not math.isfinite(self.now - self.then):
            return None
        return abs(self.now - self.then) / abs(self.then) if self.then else math.inf


@dataclass
class RowComparison:
    """Compares the rows of a run with those of its rerun, added with `add` as they are logged."""

    expected: Sequence[Row]
    first: Difference | None = None
    rows: int = 0  # of the rerun
    values: int = 0  # compared
    different: int = 0
    left_out: set[str] = field(default_factory=set)  # metrics of timing

    @property
    def is_full(self) -> bool:
        """Whether the rerun has all rows to compare."""
        return self.rows >= len(self.expected)

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            expected = self.expected[self.rows] if self.rows < len(self.expected) else None
            self.rows += 1
            if expected is not None and _place(expected) == _place(row):
                self._compare(row, self._values(expected), self._values(row))
                continue
            if expected is not None:
                self._compare(expected, self._values(expected), {})
            self._compare(row, {}, self._values(row))

    def end(self) -> None:
        """Mark the end of the rerun: missing rows count as different."""
        for expected in self.expected[self.rows :]:
            self._compare(expected, self._values(expected), {})

    def _values(self, row: Row) -> dict[str, float]:
        self.left_out |= {name for name in row["metrics"] if is_timing(name)}
        values = {k: v for k, v in row["metrics"].items() if k not in self.left_out}
        return values if row["epoch"] is None else values | {"epoch": row["epoch"]}

    def _compare(self, row: Row, then: Mapping[str, float], now: Mapping[str, float]) -> None:
        for name in dict.fromkeys((*then, *now)):
            before, after = then.get(name), now.get(name)
            self.values += 1
            if _bits(before) != _bits(after):
                self.different += 1
                if self.first is None:
                    self.first = Difference(row["step"], row["split"], name, before, after)


def _place(row: Row) -> tuple[int, str]:
    return row["step"], row["split"]


def _bits(value: float | None) -> str | None:
    """Bits for comparison: 0.0 is not -0.0, and NaN equals NaN."""
    return None if value is None else float(value).hex()


@dataclass(frozen=True)
class TensorDifference:
    """One tensor of a checkpoint; `largest` is the maximum absolute difference, None if shapes differ."""

    name: str
    largest: float | None
    reason: str


@dataclass(frozen=True)
class WeightComparison:
    step: int
    tensors: int
    different: list[TensorDifference]  # the largest difference first


def compare_weights(then: Path, now: Path, step: int) -> WeightComparison:
    """Compare `model.safetensors` of two checkpoint folders tensor by tensor, on the CPU.

    Raises CheckpointError if a file is unreadable.
    """
    from safetensors import SafetensorError, safe_open

    files = [folder / "model.safetensors" for folder in (then, now)]
    try:
        with safe_open(files[0], "pt") as before, safe_open(files[1], "pt") as after:
            mine, its = set(before.keys()), set(after.keys())
            different = [TensorDifference(n, None, "only then") for n in sorted(mine - its)]
            different += [TensorDifference(n, None, "only now") for n in sorted(its - mine)]
            for name in sorted(mine & its):
                found = _compare_tensors(name, before.get_tensor(name), after.get_tensor(name))
                different += [found] if found else []
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot compare the weights of {then} and {now}: {error}") from error
    different.sort(key=lambda d: math.inf if d.largest is None else d.largest, reverse=True)
    return WeightComparison(step, len(mine | its), different)


def _compare_tensors(name: str, then: torch.Tensor, now: torch.Tensor) -> TensorDifference | None:
    import torch

    if (then.shape, then.dtype) != (now.shape, now.dtype):
        shapes = " -> ".join(f"{tuple(t.shape)} {t.dtype}" for t in (then, now))
        return TensorDifference(name, None, shapes)
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = integers[then.element_size()]
    changed = then.flatten().view(kind) != now.flatten().view(kind)
    count = int(changed.sum())
    if not count:
        return None
    gap = (now.flatten()[changed].double() - then.flatten()[changed].double()).abs()
    largest = float(gap.nan_to_num(nan=math.inf, posinf=math.inf).max())
    return TensorDifference(name, largest, f"{count:,} of {changed.numel():,} numbers")
