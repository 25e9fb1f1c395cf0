"""Which region of a picture the frames are taken from: the centre, the moving part, or one that is given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mlxlava.errors import UserError

Box = tuple[int, int, int, int]  # x, y, width, height in source pixels

_MOTION_GRID_CELLS = 160  # cells along the longer side of the grid that motion is looked for on
_MIN_SAMPLE_PICTURES = 16  # pictures that show what moves
_MIN_DEVIATION_GREY_LEVELS = 2.0  # grey levels of 255: what varies less is noise
# Of the deviation of the part that moves most: what varies less is its glow.
_MIN_FRACTION_OF_MAX_DEVIATION = 0.25
_BOX_TO_MOTION_RATIO = 1.2  # size of the box over that of what moves: a tenth is left free on either side


def choose_box(
    crop: str,
    picture: tuple[int, int],
    size: tuple[int, int],
    runs: Iterable[Iterable[Image.Image]],
    path: Path,
) -> tuple[Box, bool]:
    """The region to take from each picture of a source.

    Args:
        crop: ``centre``, ``auto`` (the moving region) or ``X,Y,W,H`` in pixels.
        picture: width and height of the source.
        size: height and width of the frames, whose aspect the box gets unless it is given.
        runs: samples of the source's pictures, the cheapest first; read only for ``auto``.
        path: of the source, for errors.

    Returns:
        The box, and False where nothing moves, so that ``auto`` took the centre.

    Raises:
        UserError: ``crop`` cannot be read, or does not lie in the picture.
    """
    name = crop.strip().lower()
    if name in ("centre", "center"):
        return centre_box(picture, size), True
    if name == "auto":
        found = _box_around_motion(runs, picture, size)
        return found or centre_box(picture, size), found is not None
    return _parse_box(crop, picture, path), True


def centre_box(picture: tuple[int, int], size: tuple[int, int]) -> Box:
    """The largest box of the aspect of ``size`` (H, W) in the middle of a picture (width, height)."""
    return _box_around((picture[0] / 2, picture[1] / 2), (0, 0), picture, size)


def _parse_box(crop: str, picture: tuple[int, int], path: Path) -> Box:
    try:
        x, y, width, height = (int(part) for part in crop.split(","))
    except ValueError:
        raise UserError(
            f"footage: cannot read --crop {crop!r}; give centre, auto or X,Y,W,H in pixels"
        ) from None
    if min(x, y) < 0 or min(width, height) < 1 or x + width > picture[0] or y + height > picture[1]:
        raise UserError(
            f"footage: --crop {crop} does not lie in the picture of {path}, "
            f"which is {picture[0]} wide and {picture[1]} high"
        )
    return x, y, width, height


def _box_around(
    middle: tuple[float, float], least: tuple[float, float], picture: tuple[int, int], size: tuple[int, int]
) -> Box:
    """A box of the frame's aspect around a middle point: ``least`` wide and high (0: the largest)."""
    most = min(picture[0] / size[1], picture[1] / size[0])  # source pixels a frame pixel
    scale = min(max(least[0] / size[1], least[1] / size[0]) or most, most)
    width, height = max(1, round(scale * size[1])), max(1, round(scale * size[0]))
    x = min(max(round(middle[0] - width / 2), 0), picture[0] - width)
    y = min(max(round(middle[1] - height / 2), 0), picture[1] - height)
    return x, y, width, height


def _box_around_motion(
    runs: Iterable[Iterable[Image.Image]], picture: tuple[int, int], size: tuple[int, int]
) -> Box | None:
    """The box around what changes in time; None where nothing does."""
    spread = _deviation_over_time(runs, picture)
    threshold = max(
        _MIN_DEVIATION_GREY_LEVELS, _MIN_FRACTION_OF_MAX_DEVIATION * float(np.percentile(spread, 99.5))
    )
    energy = np.where(spread > threshold, spread, 0)
    if not energy.any():
        return None
    (left, right), (top, bottom) = (_range_without_outliers(energy.sum(axis=axis)) for axis in (0, 1))
    across, down = picture[0] / spread.shape[1], picture[1] / spread.shape[0]
    least = (_BOX_TO_MOTION_RATIO * (right - left) * across, _BOX_TO_MOTION_RATIO * (bottom - top) * down)
    return _box_around(((left + right) / 2 * across, (top + bottom) / 2 * down), least, picture, size)


def _deviation_over_time(runs: Iterable[Iterable[Image.Image]], picture: tuple[int, int]) -> np.ndarray:
    """Standard deviation over time of each cell of a coarse grid, in grey levels: (rows, columns).

    The runs are samples of the footage, the cheapest first. The first one with at least 16 pictures is taken.
    """
    longest = max(picture)
    grid = (
        max(1, round(picture[0] / longest * _MOTION_GRID_CELLS)),
        max(1, round(picture[1] / longest * _MOTION_GRID_CELLS)),
    )
    count, total, squares = 0, np.zeros(grid[::-1]), np.zeros(grid[::-1])
    for run in runs:
        count, total, squares = 0, np.zeros(grid[::-1]), np.zeros(grid[::-1])
        for image in run:
            # Means of cells, not a picture; in a small picture several cells repeat one pixel.
            grey = np.asarray(image.convert("L").resize(grid, Image.Resampling.BOX), dtype=np.float64)
            count, total, squares = count + 1, total + grey, squares + grey**2
        if count >= _MIN_SAMPLE_PICTURES:
            break
    count = max(count, 1)
    spread: np.ndarray = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
    return spread


def _range_without_outliers(weights: np.ndarray) -> tuple[int, int]:
    """The range of cells without 1 % of the weight on either side, so that a far speck does not count."""
    cumulative = np.cumsum(weights) / weights.sum()
    return int(np.searchsorted(cumulative, 0.01)), int(np.searchsorted(cumulative, 0.99)) + 1
