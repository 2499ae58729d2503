"""How tokens see each other: attention, recurrences, convolutions; base.py says what a mixer is."""
