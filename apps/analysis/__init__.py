"""Analysis of a trained model: surprisal, attention, expert routing, recurrent states, token embeddings.

Each analysis is two files, one that computes arrays and one that draws them (`*_page.py`).
"""
