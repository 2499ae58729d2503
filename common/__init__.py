"""The shared library: models, training, data, experiments. Imports nothing from projects or tools."""
