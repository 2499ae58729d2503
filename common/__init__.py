"""The shared library: models, training, data, experiments. Imports nothing from projects or tools."""

from __future__ import annotations

import os

# libgomp, the OpenMP runtime of PyTorch's Linux wheels, spins for milliseconds after each parallel
# region, on a core that another process could use: two trainings at once on two cores became 2 to 30
# times slower. 3,000 spins are too few for that and enough for one training alone, which sleeping
# at once (OMP_WAIT_POLICY=passive) slows down. The number of threads, and with it every sum, stays.
# libgomp reads this when torch is imported, hence here, before that.
if os.environ.keys().isdisjoint({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}):
    os.environ["GOMP_SPINCOUNT"] = "3000"
