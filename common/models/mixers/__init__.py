"""How tokens see each other, a file each: attention, lstm.

A mixer maps (batch, time, hidden_size) to the same shape, causally. `new_cache` makes the state that
lets it go on token by token; `forward(x, cache)` reads and updates it in place.
"""
