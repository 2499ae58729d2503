"""Evaluate a trained run on the task that it was trained on."""

from common.cli import evaluate_main

if __name__ == "__main__":
    evaluate_main(__file__)
