"""Grokking: networks that fit their training set early and generalise much later."""
