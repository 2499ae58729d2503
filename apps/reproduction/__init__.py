"""Shared code of the reproductions in papers/: cached runs, comparison tables, figures."""
