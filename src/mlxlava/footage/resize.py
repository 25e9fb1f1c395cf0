"""The one resizer of frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlxlava.footage.crop import Box


def resize(
    image: Image.Image | npt.NDArray[np.uint8], size: tuple[int, int], box: Box | None = None
) -> npt.NDArray[np.uint8]:
    """Crop and resize a picture.

    A smaller picture takes the mean over the source pixels that fall into each of its pixels (area
    resampling), so nothing flickers. A larger one is interpolated (bicubic).

    Args:
        image: RGB; an array is uint8 (H′, W′, 3).
        size: height and width, H and W.
        box: the region to take; the whole picture when None.

    Returns:
        uint8 (H, W, 3).
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    x, y, width, height = box or (0, 0, *image.size)
    reducing = width >= size[1] and height >= size[0]
    how = Image.Resampling.BOX if reducing else Image.Resampling.BICUBIC
    return np.asarray(image.resize((size[1], size[0]), how, box=(x, y, x + width, y + height)))
