"""Token mixers: attention, recurrences and convolutions. base.py defines the interface."""
