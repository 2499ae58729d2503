"""One seed gives the same numbers from every generator, and their state can be put back."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from common.utils.seeding import get_rng_state, seed_everything, set_rng_state


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),  # keeps a second value back
        float(np.random.standard_normal()),  # so does this
        float(torch.randn(())),
        float(torch.rand(())),
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_the_same_seed_gives_the_same_numbers(seed: int) -> None:
    seed_everything(seed)
    first = draw()
    seed_everything(seed + 1 if seed < 2**62 else 0)
    other = draw()
    seed_everything(seed)
    assert draw() == first
    assert not set(first) & set(other)


def test_a_state_that_went_through_json_goes_on_where_it_was() -> None:
    seed_everything(3)
    draw()
    values, tensors = get_rng_state()
    expected = [draw() for _ in range(3)]
    seed_everything(99)
    set_rng_state(json.loads(json.dumps(values)), {k: v.clone() for k, v in tensors.items()})
    assert [draw() for _ in range(3)] == expected
