"""A transformer with a hand-written backward pass."""
