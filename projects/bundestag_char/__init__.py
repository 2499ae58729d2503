"""The characters of German parliamentary speeches."""
