"""Independent research projects; none imports another."""
