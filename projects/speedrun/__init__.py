"""A speedrun to a target loss, with a table of records."""
