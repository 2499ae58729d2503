"""Argument types shared by tools and papers."""

from __future__ import annotations

import argparse


def positive_int(text: str) -> int:
    """Argument `type` of a positive integer. Raises ArgumentTypeError for anything else."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return number


def utf8_text(text: str) -> str:
    """Argument `type` of text. Raises ArgumentTypeError for bytes that are not UTF-8."""
    if not is_utf8(text):
        raise argparse.ArgumentTypeError(f"must be UTF-8 text, got {text!a}")
    return text


def is_utf8(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8: no undecoded bytes, no half of a surrogate pair."""
    return text.isascii() or text.encode(errors="ignore").decode() == text


def seed(text: str) -> int:
    """Argument `type` of a seed for PyTorch's generators. Raises ArgumentTypeError for anything else."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(
            f"must be an integer from 0 to 9223372036854775807, got {text}"
        )
    return number
