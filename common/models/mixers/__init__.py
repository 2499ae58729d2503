"""Token mixers, a file each: attention, lstm.

A mixer maps (batch, time, hidden_size) to the same shape, causally. `new_cache` creates the state
for step-by-step generation; `forward(x, cache)` reads and updates it in place.
"""
