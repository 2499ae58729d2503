"""Images -> batches. A training batch is a pure function of (seed, index), without state.

A batch is {"inputs": (batch, channels, height, width) float32 from 0 to 1, "labels": (batch,) int64}.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from common.data.batch import Batch
from common.data.config import AugmentConfig
from common.data.image_sources import Images

_DRAWS = 7  # uniform numbers per image; each augmentation has its own


class ShuffledImages:
    """Epochs of all images in random order; the last batch of an epoch is smaller.

    The order is that of a DataLoader(shuffle=True) in the Trainer (data/batch.py). The augmentation
    of an image follows from the seed, its index and the epoch.
    """

    def __init__(
        self,
        images: Images,
        *,
        batch_size: int,
        seed: int = 0,
        augment: AugmentConfig | None = None,
    ) -> None:
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._augment = augment or AugmentConfig()
        self._batches = -(-len(images) // batch_size)
        self._epoch: tuple[int, npt.NDArray[np.int64]] | None = None

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Identify the order for a resume."""
        return {
            "rows": len(self._images),
            "batch_size": self._batch_size,
            "drop_last": False,
            "order": f"shuffled with seed {self._seed}",
        }

    def epochs(self, batches: int) -> float:
        """Convert a number of batches to epochs."""
        return batches / self._batches

    def batch(self, index: int) -> Batch:
        """Return batch `index`."""
        epoch, place = divmod(index, self._batches)
        rows = self._order(epoch)[place * self._batch_size : (place + 1) * self._batch_size]
        batch = image_batch(self._images[rows])
        if self._augment != AugmentConfig():
            draws = np.stack([self._uniform(int(row), epoch) for row in rows])
            batch["inputs"] = augment(batch["inputs"], self._augment, torch.from_numpy(draws))
        return batch

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._epoch is None or self._epoch[0] != epoch:
            generator = self._generator(0, epoch, 4)
            self._epoch = (epoch, generator.permutation(len(self._images)))
        return self._epoch[1]

    def _uniform(self, row: int, epoch: int) -> npt.NDArray[np.float64]:
        return self._generator(row, epoch, 5).random(_DRAWS)

    def _generator(self, row: int, epoch: int, purpose: int) -> np.random.Generator:
        key = self._seed % 2**64
        return np.random.Generator(np.random.Philox(key=key, counter=[0, row, epoch, purpose]))


class OrderedImages:
    """One pass over all images in order, for an evaluation."""

    def __init__(self, images: Images, batch_size: int) -> None:
        self._images = images
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._images) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self._images), self._batch_size):
            yield image_batch(self._images[first : first + self._batch_size])


def image_batch(images: Images) -> Batch:
    """Convert a split to one batch."""
    # A copy: torch takes the strides of a view of one channel for channels_last, and sums otherwise.
    pixels = torch.from_numpy(np.array(images.pixels.transpose(0, 3, 1, 2), order="C"))
    return {
        "inputs": pixels.float() / images.maximum,
        "labels": torch.from_numpy(np.array(images.labels)),
    }


def augment(inputs: torch.Tensor, config: AugmentConfig, draws: torch.Tensor) -> torch.Tensor:
    """Change every image by its own random numbers; what moves in from outside is black.

    Args:
        inputs: (batch, channels, height, width) float32.
        draws: (batch, 7) uniform in [0, 1), for shift (2), rotation, scale, flip, erased square (2).
    Returns: as `inputs`.
    """
    size = torch.tensor(inputs.shape[2:])
    if config.shift or config.rotate or config.scale or config.flip:
        inputs = _moved(inputs, config, draws, size)
    if config.erase:
        side = max(1, round(config.erase * int(size[0])))
        corner = (draws[:, 5:7] * (size - side + 1).clamp(min=1)).floor()  # (batch, 2)
        rows, columns = (
            (torch.arange(int(length)) >= first[:, None])
            & (torch.arange(int(length)) < first[:, None] + side)
            for length, first in zip(size, corner.T, strict=True)
        )
        inputs = inputs.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
    return inputs


def _moved(
    inputs: torch.Tensor, config: AugmentConfig, draws: torch.Tensor, size: torch.Tensor
) -> torch.Tensor:
    """Rotate, scale, flip and shift around the centre, by one bilinear interpolation."""
    height, width = (int(length) for length in size)
    # Whole pixels: a mere shift does not blur.
    shifts = (draws[:, :2] * (2 * config.shift + 1)).floor() - config.shift
    angle = (2 * draws[:, 2] - 1) * math.radians(config.rotate)
    factor = 1 + (2 * draws[:, 3] - 1) * config.scale
    mirror = torch.where(draws[:, 4] < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(angle)
    # affine_grid maps places of the result to those of the input, from -1 to 1 along each axis.
    cos, sin = angle.cos() / factor, angle.sin() / factor
    theta = torch.stack(
        [
            torch.stack([mirror * cos, -mirror * sin * (height / width), shifts[:, 1]], 1),
            torch.stack([sin * (width / height), cos, shifts[:, 0]], 1),
        ],
        dim=1,
    )
    theta[:, :, 2] *= 2 / torch.tensor([width, height])
    grid = F.affine_grid(theta, list(inputs.shape), align_corners=False).to(inputs.dtype)
    return F.grid_sample(inputs, grid, padding_mode="zeros", align_corners=False)
