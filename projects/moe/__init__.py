"""Mixtures of experts and a dense decoder, at equal active parameters per token, on the same text."""
