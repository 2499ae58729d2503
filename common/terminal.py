"""Safe terminal output of untrusted text (names, tags, notes, samples)."""

from __future__ import annotations

import re
import sys
from typing import TextIO

# Control characters except tab and newline, bidirectional controls, and halves of surrogate pairs.
# Compiled on first use.
_STEERING = "[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"


def printable(text: str) -> str:
    r"""Escape terminal control characters in `text`: ESC becomes `\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return re.sub(_STEERING, _visible, text)


def _visible(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def show(text: str, end: str = "\n", file: TextIO | None = None) -> None:
    """Print `text` unbuffered: unchanged to a file or a pipe, `printable` on a terminal."""
    file = file or sys.stdout
    print(printable(text) if file.isatty() else text, end=end, file=file, flush=True)
