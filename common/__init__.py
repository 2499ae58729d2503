"""The shared library: models, training, data, experiments. Imports nothing from projects or tools."""

from __future__ import annotations

import os

# libgomp, the OpenMP runtime of PyTorch's Linux wheels, spins for milliseconds after each parallel
# region, on a core that another process could use: two concurrent trainings on two cores became 2
# to 30 times slower. 3,000 spins avoid that and suffice for a single training, which sleeping at
# once (OMP_WAIT_POLICY=passive) slows down. The number of threads, and with it every sum, is
# unchanged. Set here because libgomp reads this when torch is imported.
if os.environ.keys().isdisjoint({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}):
    os.environ["GOMP_SPINCOUNT"] = "3000"
