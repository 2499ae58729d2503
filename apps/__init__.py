"""Programs on top of the library; none imports another."""
