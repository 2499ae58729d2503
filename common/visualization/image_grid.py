"""Many small images as one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

_GAP = 2  # pixels between images, before they are enlarged
_BACKGROUND = 96


def image_grid(images: npt.NDArray[np.floating], columns: int, enlarge: int = 2) -> Image:
    """Arrange images in rows of `columns`, each pixel `enlarge` pixels wide.

    Args:
        images: (n, height, width, channels) from 0 to 1, of 1 or 3 channels.
    """
    from PIL import Image as pillow

    count, height, width, channels = images.shape
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    size = rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP
    grid = np.full((*size, channels), _BACKGROUND, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = row * (height + _GAP) + _GAP, column * (width + _GAP) + _GAP
        grid[top : top + height, left : left + width] = np.rint(np.clip(image, 0, 1) * 255)
    picture = pillow.fromarray(grid[..., 0] if channels == 1 else grid)
    return picture.resize(
        (picture.width * enlarge, picture.height * enlarge), pillow.Resampling.NEAREST
    )
