"""Evaluate a trained run on its whole validation text."""

from common.cli import evaluate_main

if __name__ == "__main__":
    evaluate_main(__file__)
