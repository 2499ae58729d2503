"""Evaluate a trained run on the digits that it has not seen."""

from common.cli import evaluate_main

if __name__ == "__main__":
    evaluate_main(__file__)
