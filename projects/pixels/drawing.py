"""Draw images from a model, pixel by pixel, and save them as one picture."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from common.data.image_sources import ImageDataset
from common.models import Decoder
from common.training import Callback
from common.training.pixel_likelihood import to_images, to_tokens
from common.utils.files import atomic_path
from common.utils.logging import get_logger
from common.utils.seeding import derive_seed
from common.visualization.image_grid import image_grid

if TYPE_CHECKING:
    from common.training import Trainer
    from projects.pixels.train import Config

log = get_logger("samples")


def draw(
    model: Decoder,
    shape: tuple[int, int, int],
    labels: torch.Tensor,
    *,
    temperature: float = 1.0,
    begun: torch.Tensor | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Sample one image for each first token.

    Args:
        shape: (channels, height, width).
        labels: (batch,) int64: classes, or zeros for a model without them.
        begun: (batch, channels, rows, width), the upper part of every image; None: nothing.
    Returns: (batch, *shape) float32 from 0 to 1.
    """
    channels, height, width = shape
    levels = model.vocab_size
    if begun is None:
        begun = torch.zeros(len(labels), channels, 0, width)
    tokens = to_tokens(begun, levels, labels)
    missing = 1 + channels * height * width - tokens.shape[1]
    tokens = model.generate(tokens, missing, temperature=temperature, seed=seed)
    return to_images(tokens.cpu(), levels, shape)


def save_grid(images: torch.Tensor, columns: int, path: Path) -> None:
    """Save images (batch, channels, height, width) from 0 to 1 as a PNG of rows of `columns`."""
    grid = image_grid(images.permute(0, 2, 3, 1).numpy(), columns)
    with atomic_path(path) as temporary:
        grid.save(temporary, format="PNG")


class ImageSamples(Callback):
    """Draws images at every evaluation into the run's `samples/step_<n>.png`, a column for each class.

    Their generator is their own, so that training is the same without them.
    """

    def __init__(self, images: ImageDataset, config: Config) -> None:
        self.shape, self.config = images.shape, config
        self.columns = len(images.classes)

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
        if trainer.run is None or not isinstance(trainer.model, Decoder):
            return
        labels = torch.arange(self.config.samples.num_images) % self.columns
        images = draw(
            trainer.model,
            self.shape,
            labels if self.config.by_class else torch.zeros_like(labels),
            temperature=self.config.samples.temperature,
            seed=derive_seed(self.config.seed, trainer.step),
        )
        path = trainer.run.directory / "samples" / f"step_{trainer.step}.png"
        try:
            save_grid(images, self.columns, path)
        except OSError as error:  # as for sampled texts, a full disk does not end a training
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            log.warning(f"{path}: {error.strerror}; the samples of this step are not saved")
