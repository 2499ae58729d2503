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
