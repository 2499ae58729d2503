"""Generate text with a trained run."""

from common.cli import sample_main

if __name__ == "__main__":
    sample_main(__file__)
