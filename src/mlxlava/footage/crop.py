"""Chooses the region of a picture that becomes a frame: the centre, the lamp, or a given box."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mlxlava.errors import UserError

Box = tuple[int, int, int, int]  # x, y, width, height in source pixels

_MAX_GRID_CELLS = 160  # cells along the longer side of the grid on which motion is measured
_ENOUGH_PICTURES = 16  # so many pictures are enough to see what moves
_LEAST_SPREAD = 2.0  # grey levels of 255; a smaller deviation is noise
_LEAST_FRACTION = 0.25  # of the largest deviation; a smaller one is only the glow of moving parts

# A still part belongs to the lamp if it is joined to moving parts and differs from the wall beside it by both
# of these contrasts.
_LEAST_CONTRAST = 16.0  # levels of 255
_CONTRAST_SHARE = 0.3  # share of the contrast between moving parts and the wall
_SEARCH_MARGIN = 0.6  # still parts are searched for so far from moving parts, in heights of the moving region
_MARGIN_OF_LAMP = 0.03  # free space on either side of the lamp, as a share of its height
_MARGIN_OF_MOTION = 0.12  # the same around moving parts, if the lamp does not stand out from the wall

# Two lamps are two groups of columns with motion; the columns between them show no motion, only the wall.
_STILL_COLUMN_MOTION_RATIO = 0.02  # of the motion of the column that moves most
_MIN_GAP_WIDTH_RATIO = 0.2  # of the width of the narrower lamp
_MIN_LAMP_MOTION_SHARE = 0.15  # of all motion


@dataclasses.dataclass(frozen=True)
class Region:
    """What ``auto`` finds in a source.

    Attributes:
        lamps: a box in source pixels around each lamp, with its still parts. The first lamp is the one that
            moves most.
        stands_out: whether the first lamp stands out from the wall. If not, the box is that of the moving
            parts, with a margin.
    """

    lamps: tuple[Box, ...]
    stands_out: bool


class PictureSums:
    """Mean and deviation over time of the cells of a coarse grid, from pictures that come one by one."""

    def __init__(self, picture: tuple[int, int]) -> None:
        """``picture`` is the width and height of the source."""
        longest = max(picture)
        self.grid = (
            max(1, round(picture[0] / longest * _MAX_GRID_CELLS)),
            max(1, round(picture[1] / longest * _MAX_GRID_CELLS)),
        )
        self.picture, self.count = picture, 0
        self._colours = np.zeros((*self.grid[::-1], 3))
        self._grey, self._squares = np.zeros(self.grid[::-1]), np.zeros(self.grid[::-1])

    def cells(self, image: Image.Image) -> Image.Image:
        """A picture on the grid."""
        # A cell is the mean of its pixels. In a smaller picture, several cells repeat one pixel.
        return image.convert("RGB").resize(self.grid, Image.Resampling.BOX)

    def add(self, cells: Image.Image) -> None:
        """Take a picture that is on the grid."""
        grey = np.asarray(cells.convert("L"), dtype=np.float64)
        self._colours += np.asarray(cells, dtype=np.float64)
        self._grey, self._squares, self.count = self._grey + grey, self._squares + grey**2, self.count + 1

    @property
    def mean(self) -> np.ndarray:
        """Mean colours, levels of 255: (rows, columns, 3)."""
        return self._colours / max(self.count, 1)

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation over time, in grey levels: (rows, columns)."""
        count = max(self.count, 1)
        found: np.ndarray = np.sqrt(np.maximum(self._squares / count - (self._grey / count) ** 2, 0))
        return found

    @property
    def moving(self) -> np.ndarray:
        """Deviation where something moves, and 0 elsewhere: (rows, columns)."""
        spread = self.deviation
        threshold = max(_LEAST_SPREAD, _LEAST_FRACTION * float(np.percentile(spread, 99.5)))
        return np.where(spread > threshold, spread, 0)


def choose_box(
    crop: str,
    picture: tuple[int, int],
    size: tuple[int, int],
    runs: Iterable[Iterable[Image.Image]],
    path: Path,
) -> tuple[Box, bool]:
    """The region to take from each picture of a source.

    Args:
        crop: ``centre``, ``auto`` (the lamp, found by its motion), or ``X,Y,W,H`` in pixels. ``@WxH`` may
            follow: then the pixels are those of a picture of that width and height, and the box is scaled
            to pictures of another size.
        picture: width and height of the source.
        size: height and width of the frames. The box has their aspect ratio, unless ``crop`` is a box.
        runs: samples of the source's pictures, the cheapest first; read only for ``auto``.
        path: path of the source, for errors.

    Returns:
        The box; and False if nothing moves, so that ``auto`` took the centre, else True.

    Raises:
        UserError: ``crop`` cannot be read, or does not lie in the picture.
    """
    name = crop.strip().lower()
    if name in ("centre", "center"):
        return centre_box(picture, size), True
    if name == "auto":
        found = find_region(_sums_of_first_long_run(runs, picture))
        if found is None:
            return centre_box(picture, size), False
        return fit_box(found.lamps[0], picture, size), True
    return _parse_box(crop, picture, path), True


def centre_box(picture: tuple[int, int], size: tuple[int, int]) -> Box:
    """The largest box with the aspect ratio of ``size`` (H, W) in the middle of a picture (width, height)."""
    return _box_around((picture[0] / 2, picture[1] / 2), (0, 0), picture, size)


def _parse_box(crop: str, picture: tuple[int, int], path: Path) -> Box:
    box, _, of = crop.partition("@")
    try:
        x, y, width, height = (int(part) for part in box.split(","))
        if of:  # the box was chosen on pictures of another size
            sizes = zip(picture, (int(part) for part in of.split("x")), strict=True)
            across, down = (side / other for side, other in sizes)
            x, width = round(x * across), max(1, round(width * across))
            y, height = round(y * down), max(1, round(height * down))
            x, y = max(0, min(x, picture[0] - width)), max(0, min(y, picture[1] - height))
    except (ValueError, ZeroDivisionError):
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
    """A box with the frame's aspect ratio around a middle point.

    It is at least ``least`` wide and high; if ``least`` is 0, it is the largest one that fits.
    """
    most = min(picture[0] / size[1], picture[1] / size[0])  # source pixels for each frame pixel
    scale = min(max(least[0] / size[1], least[1] / size[0]) or most, most)
    width, height = max(1, round(scale * size[1])), max(1, round(scale * size[0]))
    x = min(max(round(middle[0] - width / 2), 0), picture[0] - width)
    y = min(max(round(middle[1] - height / 2), 0), picture[1] - height)
    return x, y, width, height


def fit_box(region: Box, picture: tuple[int, int], size: tuple[int, int]) -> Box:
    """The smallest box with the aspect ratio of ``size`` (H, W) around a region, within the picture.

    If the picture is too small for it, the largest box that fits.
    """
    x, y, width, height = region
    return _box_around((x + width / 2, y + height / 2), (width, height), picture, size)


def find_region(sums: PictureSums) -> Region | None:
    """Find the lamps in a source; None if nothing moves."""
    moving = sums.moving
    if not moving.any():
        return None
    across, down = (side / cells for side, cells in zip(sums.picture, sums.grid, strict=True))
    lamps, stand_out = [], []
    for columns in _column_ranges_of_lamps(moving, sums.mean):
        (left, right), (top, bottom), found = _lamp_around(moving, sums.mean, columns)
        stand_out.append(found)
        x, y = round(left * across), round(top * down)
        lamps.append((x, y, max(1, round(right * across) - x), max(1, round(bottom * down) - y)))
    return Region(tuple(lamps), stand_out[0])


def _sums_of_first_long_run(runs: Iterable[Iterable[Image.Image]], picture: tuple[int, int]) -> PictureSums:
    """The sums of the first sample with at least 16 pictures; if there is none, of the last sample."""
    sums = PictureSums(picture)
    for run in runs:
        sums = PictureSums(picture)
        for image in run:
            sums.add(sums.cells(image))
        if sums.count >= _ENOUGH_PICTURES:
            break
    return sums


def _range_without_outliers(weights: np.ndarray) -> tuple[int, int]:
    """The range of cells that leaves out 1 % of the weight on either side, to ignore distant specks."""
    cumulative = np.cumsum(weights) / weights.sum()
    return int(np.searchsorted(cumulative, 0.01)), int(np.searchsorted(cumulative, 0.99)) + 1


def _column_ranges_of_lamps(moving: np.ndarray, mean: np.ndarray) -> list[tuple[int, int]]:
    """The range of columns of each lamp; the lamp that moves most is the first."""
    columns = moving.sum(axis=0)
    busy = np.flatnonzero(columns > _STILL_COLUMN_MOTION_RATIO * columns.max())
    groups = [
        (int(part[0]), int(part[-1]) + 1) for part in np.split(busy, np.flatnonzero(np.diff(busy) > 1) + 1)
    ]
    merged = [groups[0]]
    wall = _unlike_wall(mean, _box_of(moving)) < _contrast_threshold(moving, mean, _box_of(moving))
    rows = slice(*_range_without_outliers(moving.sum(axis=1)))
    for group in groups[1:]:
        gap = slice(merged[-1][1], group[0])
        narrower = min(merged[-1][1] - merged[-1][0], group[1] - group[0])
        apart = gap.stop - gap.start >= max(3, _MIN_GAP_WIDTH_RATIO * narrower)
        if apart and wall[rows, gap].mean() > 0.5:
            merged.append(group)
        else:
            merged[-1] = (merged[-1][0], group[1])
    weight = {group: float(columns[slice(*group)].sum()) for group in merged}
    large = [group for group in merged if weight[group] >= _MIN_LAMP_MOTION_SHARE * columns.sum()]
    if len(large) < 2:
        return [(0, len(columns))]
    return sorted(large, key=lambda group: -weight[group])


def _box_of(moving: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """The ranges of columns and rows that move."""
    return _range_without_outliers(moving.sum(axis=0)), _range_without_outliers(moving.sum(axis=1))


def _unlike_wall(mean: np.ndarray, box: tuple[tuple[int, int], tuple[int, int]]) -> np.ndarray:
    """How much each cell differs from the wall: the largest difference over R, G and B, (rows, columns).

    The colour of the wall is the median of each row outside of the box. If too little of the picture lies
    outside of the box, it is the median of the picture's border.
    """
    (left, right), _ = box
    beside = np.concatenate([mean[:, :left], mean[:, right:]], axis=1)
    if beside.shape[1] >= 0.1 * mean.shape[1]:
        wall = np.median(beside, axis=1)[:, None]
    else:
        border = np.concatenate([mean[0], mean[-1], mean[:, 0], mean[:, -1]])
        wall = np.median(border, axis=0)[None, None]
    unlike: np.ndarray = np.abs(mean - wall).max(axis=2)
    return unlike


def _contrast_threshold(
    moving: np.ndarray, mean: np.ndarray, box: tuple[tuple[int, int], tuple[int, int]]
) -> float:
    contrast = np.percentile(_unlike_wall(mean, box)[moving > 0], 75)
    return max(_LEAST_CONTRAST, _CONTRAST_SHARE * float(contrast))


def _lamp_around(
    moving: np.ndarray, mean: np.ndarray, columns: tuple[int, int]
) -> tuple[tuple[float, float], tuple[float, float], bool]:
    """Columns and rows of the lamp that moves in ``columns``, and whether it stands out from the wall."""
    here = np.zeros_like(moving)
    here[:, slice(*columns)] = moving[:, slice(*columns)]
    box = (left, right), (top, bottom) = _box_of(here)
    rows, cells = moving.shape
    reach = math.ceil(_SEARCH_MARGIN * (bottom - top))
    window = np.zeros_like(moving, dtype=bool)
    window[max(0, top - reach) : bottom + reach, max(0, left - reach) : right + reach] = True
    alike = window & (_unlike_wall(mean, box) > _contrast_threshold(here, mean, box))
    inside = np.zeros_like(window)
    inside[top:bottom, left:right] = True
    lamp = _connected_to_seeds(inside & (here > 0), alike | (inside & (here > 0)))
    ends = []
    for axis, (low, high), size in ((0, (left, right), cells), (1, (top, bottom), rows)):
        found = np.flatnonzero(lamp.sum(axis=axis) >= 2)
        first, last = (int(found[0]), int(found[-1]) + 1) if len(found) else (low, high)
        # A region that reaches the end of the window, but not of the picture, is a table or a shelf.
        ends.append((min(first, low), max(last, high), size, low - reach, high + reach))
    if any(first <= near > 0 or last >= far < size for first, last, size, near, far in ends):
        margin = _MARGIN_OF_MOTION * (bottom - top)
        stands_out, ranges = False, [(left, right), (top, bottom)]
    else:
        stands_out, ranges = True, [(first, last) for first, last, *_ in ends]
        margin = _MARGIN_OF_LAMP * (ranges[1][1] - ranges[1][0])
    (left, right), (top, bottom) = ranges
    return (
        (max(0, left - margin), min(cells, right + margin)),
        (max(0, top - margin), min(rows, bottom + margin)),
        stands_out,
    )


def _connected_to_seeds(seeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The cells of a mask that are connected to seeds through their edges."""
    joined: np.ndarray = seeds & mask
    while True:
        grown = joined.copy()
        grown[1:] |= joined[:-1]
        grown[:-1] |= joined[1:]
        grown[:, 1:] |= joined[:, :-1]
        grown[:, :-1] |= joined[:, 1:]
        grown &= mask
        if (grown == joined).all():
            return joined
        joined = grown
