"""The likelihood of images, pixel by pixel: an objective that turns batches of images into tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from common.data.batch import Batch, num_rows
from common.errors import DataError
from common.training.objective import NextToken


class PixelLikelihood(NextToken):
    """Predict each pixel from those before it, row by row (van den Oord et al. 2016, "Pixel Recurrent Neural Networks").

    A token is a grey level, and a row of tokens is an image: a first token that is given (the class, or 0), then
    every pixel, of which each is predicted. So the vocabulary has only grey levels, and all probability is on images.

    Args:
        levels: number of grey levels. Bits per dimension compare only at the same number.
        num_classes: images are predicted given their class; None: without.
    """

    unit = "pixels"

    def __init__(self, levels: int = 256, num_classes: int | None = None) -> None:
        super().__init__(levels)
        if num_classes is not None and num_classes > levels:
            raise DataError(
                f"{num_classes} classes need as many grey levels, there are {levels}",
                "the first token names the class: raise the levels, or do without classes",
            )
        self.levels, self.num_classes = levels, num_classes

    def prepare(self, given: Any, index: int) -> Batch:
        """Convert {"inputs": (batch, channels, height, width) from 0 to 1, "labels": (batch,)}, see `to_tokens`."""
        if not isinstance(given, Mapping) or not {"inputs", "labels"} <= given.keys():
            raise DataError("a batch of images has no inputs and labels", "use ShuffledImages")
        labels = given["labels"] if self.num_classes is not None else None
        tokens = to_tokens(given["inputs"], self.levels, labels)
        return super().prepare(tokens, index)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        return super().measure(model, batch) | {"images": float(num_rows(batch))}

    def loss_metrics(self, loss: float) -> dict[str, float]:
        return {"loss": loss, "bits_per_dim": loss / math.log(2)}

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Loss (nats per pixel and channel), bits_per_dim, nats_per_image, num_pixels, num_images."""
        images = {"num_images": int(sums["images"])} if sums["targets"] else {}
        return super().report(sums) | images | {"nats_per_image": sums["loss"] / sums["images"]}

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Format the metrics of an evaluation as one line."""
        given = "" if self.num_classes is None else ", given its class"
        return (
            f"{metrics['bits_per_dim']:.4f} bits per dimension at {self.levels} grey levels, "
            f"{metrics['nats_per_image']:.2f} nats per image{given} ({int(metrics['num_images']):,} images)"
        )


def to_tokens(
    images: torch.Tensor, levels: int, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """Convert images to grey levels, row by row, the channels of a pixel one after the other.

    Args:
        images: (batch, channels, height, width) from 0 to 1, in equal intervals for the levels.
        labels: (batch,) int64, the first tokens; None: 0.
    Returns: (batch, 1 + height * width * channels) int64.
    """
    tokens = (images * levels).long().clamp(0, levels - 1).permute(0, 2, 3, 1).flatten(1)
    first = tokens.new_zeros(len(tokens)) if labels is None else labels.to(tokens)
    return torch.cat([first[:, None], tokens], dim=1)


def to_images(tokens: torch.Tensor, levels: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """The inverse of `to_tokens`, for (batch, 1 + ...) of whole images: level 0 is 0, the last is 1.

    Args:
        shape: (channels, height, width).
    Returns: (batch, *shape) float32.
    """
    channels, height, width = shape
    pixels = tokens[:, 1:].reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    return pixels.float() / (levels - 1)
