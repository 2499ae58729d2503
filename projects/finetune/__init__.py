"""Fine-tune a model of the hub, or your own run, on another text."""
