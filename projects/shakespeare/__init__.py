"""A small GPT-2 on Shakespeare's plays in byte-level BPE tokens."""
