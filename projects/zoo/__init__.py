"""Every mixer in one stack, at equal parameters, on the same text."""
