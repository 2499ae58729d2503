"""Make arbitrary names and numbers plottable."""

from __future__ import annotations

import textwrap

import numpy as np
import numpy.typing as npt

# Beyond these, differences and ratios of axis limits overflow.
_LARGEST, _SMALLEST = 1e300, 1e-300
_LONGEST = 48  # characters per legend entry


def plain(text: str, longest: int = _LONGEST) -> str:
    """`text` on one line, shortened in the middle, with `$` escaped.

    Matplotlib omits labels that start with `_` from legends: a leading space prevents that.
    """
    text = printable(text)
    if len(text) > longest:
        text = f"{text[: longest // 2]}...{text[-(longest // 2 - 3) :]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def printable(text: str) -> str:
    """`text` without line ends and terminal control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)


def wrapped(text: str, width: int) -> str:
    """A title of at most four lines."""
    lines = textwrap.wrap(text, width, max_lines=4, placeholder=" ...")
    return "\n".join(plain(line, width) for line in lines)


def drawable(values: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], str]:
    """Clip `values` (n,) to the plottable range, with NaN for non-finite ones, and describe the changes.

    The text is for a legend: empty, or such as `, 3 not finite, 1 beyond 1e300`.
    """
    numbers = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(numbers)
    beyond = finite & (np.abs(numbers) > _LARGEST)
    numbers = np.where(finite, np.clip(numbers, -_LARGEST, _LARGEST), np.nan)
    numbers = np.where(np.abs(numbers) < _SMALLEST, 0.0, numbers)
    notes = {"not finite": int((~finite).sum()), f"beyond {_LARGEST:g}": int(beyond.sum())}
    return numbers, "".join(f", {count} {what}" for what, count in notes.items() if count)
