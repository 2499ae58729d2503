"""Evaluate a trained run: bits per dimension of the test images."""

from common.cli import evaluate_main

if __name__ == "__main__":
    evaluate_main(__file__)
