"""Evaluation of trained runs by other programs."""
