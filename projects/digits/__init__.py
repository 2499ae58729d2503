"""Handwritten digits, 8 x 8 pixels: another task on the same Trainer."""
