"""Command-line tools: parse, call common, print."""
