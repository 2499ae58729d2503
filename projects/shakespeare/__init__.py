"""A GPT-2 in small on Shakespeare's plays, in the tokens of a byte-level BPE."""
