"""The race to a loss: as little time as possible, with a table of records."""
