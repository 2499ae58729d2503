"""Analysis of a trained model: surprisal, attention, token embeddings.

Each analysis is two files, one that computes arrays and one that draws them (`*_page.py`).
"""
