"""German parliamentary speeches in GPT-2's tokens."""
