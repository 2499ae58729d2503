"""Sampling, decoding sessions and the fast CPU path."""
