"""Looking inside a trained model: what surprises it, what it attends to, which tokens are alike.

Each kind of look is two files, one that computes arrays and one that draws them (`*_page.py`).
"""
