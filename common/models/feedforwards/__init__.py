"""What happens to each token alone, between the mixers; base.py says what a feed-forward layer is."""
