"""Feed-forward layers, applied to each token separately. base.py defines the interface."""
