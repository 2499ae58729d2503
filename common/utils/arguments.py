"""What the command lines of tools and papers share."""

from __future__ import annotations

import argparse


def positive_int(text: str) -> int:
    """The `type` of an argument that counts something. Raises ArgumentTypeError for what is no such number."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return number


def utf8_text(text: str) -> str:
    """The `type` of a text. Raises ArgumentTypeError for bytes that are none, which a shell hands over."""
    if not is_utf8(text):
        raise argparse.ArgumentTypeError(f"must be UTF-8 text, got {text!a}")
    return text


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold `text`: no byte that was not decoded, and no half of a surrogate pair."""
    return text.isascii() or text.encode(errors="ignore").decode() == text


def seed(text: str) -> int:
    """The `type` of a seed that PyTorch's generators take. Raises ArgumentTypeError for any other."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 0 to 9223372036854775807, got {text}"
        )
    return number
