"""Simulates the built-in lava lamp: endless, seeded, of any size; NumPy only.

Five blobs of wax warm up at the bottom of the glass, rise, cool down at the top and sink. The wax is drawn
where a smooth field is above a level. The field is a sum of Gaussians: one for each blob, and a flat one
for the pool at the bottom. So wax merges and splits smoothly ("A generalization of algebraic surface
drawing", Blinn, 1982). In every picture, the level is chosen such that the area of the wax is constant.

The unit of length is the height of the glass. y is 0 at its bottom and 1 at its top. x is 0 on its axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mlxlava.config import check_size, did_you_mean
from mlxlava.errors import UserError
from mlxlava.playback.session import FrameSource
from mlxlava.products import matmul

# Raise it if the pictures change. Footage that was prepared with another version is not reused.
LAMP_VERSION = 1

FloatArray = NDArray[np.float32]
Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Theme:
    """The colours of a lamp, sRGB 0 … 255.

    Attributes:
        room: the background near the lamp. It is darker farther away.
        liquid: the liquid at the top, in the middle, and at the bottom, which is lit.
        wax: the wax, from the darkest to the brightest light, at equal steps of brightness.
        metal: base and cap where they are lit.
    """

    room: Colour
    liquid: tuple[Colour, Colour, Colour]
    wax: tuple[Colour, ...]
    metal: Colour


THEMES: dict[str, Theme] = {
    "classic": Theme(
        room=(20, 13, 30),
        liquid=((26, 12, 70), (52, 18, 112), (122, 34, 140)),
        wax=((96, 6, 40), (178, 18, 30), (236, 62, 20), (255, 128, 28), (255, 214, 96)),
        metal=(176, 170, 186),
    ),
    "blue": Theme(
        room=(8, 14, 26),
        liquid=((6, 14, 52), (8, 30, 92), (20, 72, 150)),
        wax=((10, 60, 120), (16, 110, 180), (40, 170, 225), (120, 222, 246), (226, 252, 255)),
        metal=(160, 172, 186),
    ),
    "green": Theme(
        room=(8, 18, 20),
        liquid=((4, 26, 40), (6, 46, 60), (16, 88, 84)),
        wax=((24, 92, 20), (58, 146, 22), (118, 200, 34), (190, 236, 70), (246, 255, 176)),
        metal=(166, 176, 166),
    ),
    "violet": Theme(
        room=(20, 10, 24),
        liquid=((22, 8, 58), (42, 12, 88), (86, 26, 128)),
        wax=((110, 14, 110), (176, 30, 150), (232, 70, 180), (255, 136, 200), (255, 220, 226)),
        metal=(176, 166, 184),
    ),
    "mono": Theme(
        room=(14, 14, 14),
        liquid=((18, 18, 18), (32, 32, 32), (64, 64, 64)),
        wax=((84, 84, 84), (124, 124, 124), (172, 172, 172), (218, 218, 218), (252, 252, 252)),
        metal=(150, 150, 150),
    ),
}

# The lamp's outline: (y, half-width) from the foot to the top of the cap.
_BASE_OUTLINE = ((-0.21, 0.280), (-0.19, 0.284), (-0.10, 0.228), (-0.03, 0.296), (0.0, 0.308))
_GLASS_OUTLINE = (
    (0.0, 0.290),
    (0.10, 0.321),
    (0.20, 0.330),
    (0.32, 0.321),
    (0.55, 0.277),
    (0.80, 0.215),
    (1.0, 0.160),
)
_CAP_OUTLINE = ((1.0, 0.172), (1.03, 0.174), (1.08, 0.146), (1.10, 0.126))
_MAX_GLASS_HALF_WIDTH = 0.33

# Seconds of a simulation step. Pictures are interpolated, so the motion is the same at any frame rate.
_SIMULATION_STEP_SECONDS = 1 / 30
# Seconds of simulation before the first picture, so that it is as typical as any other.
_WARM_UP_SECONDS = 60.0
_NOISE_CORRELATION_SECONDS = 15.0  # of a blob's noise
_BLOB_RADII = np.array([0.154, 0.136, 0.119, 0.102, 0.084])
_MAX_BLOB_HEIGHTS = 0.93 - 0.6 * _BLOB_RADII
_WAX_POOL_CENTRE_AND_RADII = (0.0, -0.03, 0.70, 0.115)  # x, y and the two radii of the pool's Gaussian
_WAX_AREA_FRACTION = 0.32  # fraction of the area of the glass that is wax
# Rows and columns of points from which the level is computed. They are the same for every size.
_LEVEL_GRID_SHAPE = (72, 44)
# If the slope of the field is below this (per unit of length), an edge is drawn wider. So necks part softly.
_MIN_EDGE_SLOPE = 5.0


def _outline_half_widths(profile: tuple[tuple[float, float], ...], y: FloatArray) -> FloatArray:
    """Half the width at each height: a cubic Hermite spline through the outline, constant beyond its ends."""
    heights, widths = np.array(profile).T
    slopes = np.gradient(widths, heights)
    y = np.clip(y, heights[0], heights[-1])
    i = np.clip(np.searchsorted(heights, y) - 1, 0, len(heights) - 2)
    step = heights[i + 1] - heights[i]
    t = (y - heights[i]) / step
    a, b = widths[i], widths[i + 1]
    p, q = slopes[i] * step, slopes[i + 1] * step
    cubic = a + t * (p + t * (3 * (b - a) - 2 * p - q + t * (2 * (a - b) + p + q)))
    return np.asarray(cubic, np.float32)


_WALL_SAMPLE_HEIGHTS = np.linspace(0, 1, 33)
_WALL_SAMPLE_HALF_WIDTHS = _outline_half_widths(
    _GLASS_OUTLINE, _WALL_SAMPLE_HEIGHTS.astype(np.float32)
).astype(np.float64)


class _WaxMotion:
    """The motion of the wax: buoyancy, other blobs, the glass and noise push each blob."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        count = len(_BLOB_RADII)
        self.y = self.rng.uniform(0.05, 0.9, count)
        self.x = self.rng.uniform(-0.1, 0.1, count)
        self.vx, self.vy = np.zeros(count), np.zeros(count)
        self.heat = self.rng.uniform(-0.7, 0.7, count)
        # Noise of heating and of sideways motion: Ornstein–Uhlenbeck processes, N(0, 1) at any time.
        self.noise = self.rng.standard_normal((2, count))
        self.reach = (1.05 * (_BLOB_RADII[:, None] + _BLOB_RADII[None, :])) ** 2
        # Random numbers drawn in advance, and how many of them were used.
        self.draws, self.used = np.empty((0, 2, count)), 0
        for _ in range(600):
            self.step(_WARM_UP_SECONDS / 600)

    def step(self, dt: float = _SIMULATION_STEP_SECONDS) -> None:
        """Simulate ``dt`` seconds (semi-implicit Euler)."""
        if self.used == len(self.draws):
            self.draws, self.used = self.rng.standard_normal((256, *self.noise.shape)), 0
        x, y = self.x, self.y
        keep = math.exp(-dt / _NOISE_CORRELATION_SECONDS)
        self.noise = keep * self.noise + math.sqrt(1 - keep * keep) * self.draws[self.used]
        self.used += 1

        # The lamp heats at the bottom and cools at the top. Between them wax stays hot (1) or cold (-1):
        # these are the two stable states. At either end it rests for a random time, until its heat has
        # changed sign.
        below, above = 1 / (1 + np.exp((y - 0.19) / 0.04)), 1 / (1 + np.exp((0.70 - y) / 0.04))
        supply = (0.12 * below - 0.14 * above) * np.exp(0.45 * self.noise[0]) + 0.08 * (0.45 - y)
        self.heat += dt * (0.25 * (self.heat - self.heat * self.heat * self.heat) + supply)
        push_y = 0.054 * np.tanh(2.0 * self.heat)
        push_x = 0.010 * self.noise[1]

        # Blobs that overlap push each other away softly. They merge, but one does not hide behind another.
        dx, dy = x[:, None] - x, y[:, None] - y
        near = np.maximum(0.0, 1 - (dx * dx + dy * dy) / self.reach)
        push_x = push_x + 0.45 * (near * dx).sum(1)
        push_y = push_y + 0.18 * (near * dy).sum(1)

        # The glass pushes blobs back, strongly but smoothly.
        room = np.maximum(
            np.interp(y, _WALL_SAMPLE_HEIGHTS, _WALL_SAMPLE_HALF_WIDTHS) - 0.85 * _BLOB_RADII, 0.02
        )
        push_x -= 1.5 * (np.maximum(x - room, 0) + np.minimum(x + room, 0)) + 0.10 * x
        push_y -= 2.0 * (np.maximum(y - _MAX_BLOB_HEIGHTS, 0) + np.minimum(y - 0.02, 0))

        self.vx += dt / 0.8 * (push_x - self.vx)
        self.vy += dt / 0.8 * (push_y - self.vy)
        self.x = x + dt * self.vx
        self.y = y + dt * self.vy

    def blobs(self) -> NDArray[np.float64]:
        """x, y and the radii along x and y, of the pool and of each blob: (6, 4)."""
        stretch = 1 + 0.25 * np.tanh((self.vy / 0.05) ** 2)
        rows = np.stack(
            [self.x, self.y, _BLOB_RADII / np.sqrt(stretch), _BLOB_RADII * np.sqrt(stretch)], axis=1
        )
        return np.concatenate([[_WAX_POOL_CENTRE_AND_RADII], rows])


class _WaxField:
    """The field of the wax on a grid of points inside the glass."""

    def __init__(self, x: FloatArray, y: FloatArray) -> None:
        self.x, self.y = x, y
        # Near the glass the field is smaller, so that blobs stay round there. But the pool touches the glass.
        wall = _outline_half_widths(_GLASS_OUTLINE, y)[:, None] - np.abs(x)[None, :]
        free = 1 / (1 + np.exp(-(y[:, None] - 0.20) / 0.03))
        self.fall = (-0.9 * free * np.exp(-np.maximum(wall, 0) / 0.022)).astype(np.float32)
        down, across = np.gradient(self.fall, y, x)
        self.fall_y, self.fall_x = down.astype(np.float32), across.astype(np.float32)

    def __call__(self, blobs: NDArray[np.float64]) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The logarithm of the field and its two derivatives: (H, W) each.

        A Gaussian is the product of one in x and one in y, so the sum is a matrix product.
        """
        cx, cy, rx, ry = blobs.astype(np.float32).T[:, :, None]
        dx, dy = (self.x - cx) / rx, (self.y - cy) / ry
        gx, gy = np.exp(-dx * dx), np.exp(-dy * dy)
        total = matmul(gy.T, gx) + np.float32(1e-12)
        along_x = matmul(gy.T, gx * dx * (-2 / rx)) / total + self.fall_x
        along_y = matmul((gy * dy * (-2 / ry)).T, gx) / total + self.fall_y
        return np.log(total) + self.fall, along_x, along_y


class SimulatedLamp:
    """An endless lava lamp: iterate over it for uint8 frames of shape (H, W, 3).

    The same seed and settings always give the same frames. At another rate the motion is the same.

    Args:
        size: height and width in pixels, multiples of 16. The lamp stands in the middle. It is not distorted.
        fps: frames per second of the lamp's time.
        seed: seed of the motion.
        theme: a key of ``THEMES``.

    Raises:
        UserError: the size, the rate or the theme is not allowed.
    """

    def __init__(
        self, size: tuple[int, int] = (64, 64), *, fps: float = 30.0, seed: int = 0, theme: str = "classic"
    ) -> None:
        check_size(size)
        if not (math.isfinite(fps) and fps > 0):
            raise UserError(f"fps: {fps} is not a positive number; give for example 30")
        if theme not in THEMES:
            raise UserError(f"theme: no theme named {theme!r}; {did_you_mean(theme, list(THEMES))}")
        self._fps = fps
        self._frame = 0
        self._steps = 0
        self._motion = _WaxMotion(seed)
        self._before = self._after = self._motion.blobs()
        self._draw_what_never_moves(size, THEMES[theme])
        self._prepare_level_grid()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return self

    def __next__(self) -> NDArray[np.uint8]:
        """The next frame, uint8 (H, W, 3). The array is not used again, so the caller may keep it."""
        self._frame += 1
        return self._frame_at((self._frame - 1) / self._fps)

    def play(self, times: Iterable[float]) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Yield pairs of time and frame, uint8 (H, W, 3), at the given times in seconds, which must rise."""
        for at in times:
            yield at, self._frame_at(at)

    def _frame_at(self, seconds: float) -> NDArray[np.uint8]:
        """The frame at a time (seconds), which must not decrease from call to call."""
        time = seconds / _SIMULATION_STEP_SECONDS
        while self._steps < time:
            self._motion.step()
            self._before, self._after = self._after, self._motion.blobs()
            self._steps += 1
        late = self._steps - time
        return self._draw_frame(late * self._before + (1 - late) * self._after)

    def _draw_what_never_moves(self, size: tuple[int, int], theme: Theme) -> None:
        """Draw once what never moves, and prepare what the glass is drawn from in every frame."""
        height, width = size
        low, high = _BASE_OUTLINE[0][0], _CAP_OUTLINE[-1][0]
        scale = 0.95 * min(height / (high - low), width / (2 * _MAX_GLASS_HALF_WIDTH))  # pixels per length
        x = ((np.arange(width) + 0.5 - width / 2) / scale).astype(np.float32)
        y = ((height / 2 - np.arange(height) - 0.5) / scale + (low + high) / 2).astype(np.float32)
        self._pixel = 1 / scale
        picture = _draw_room_and_metal(theme, x, y, self._pixel)
        # Constant noise is added before rounding. Without it, smooth dark areas would show bands.
        grain = np.random.default_rng(0).random((height, width, 1))
        self._background = (picture + grain).astype(np.uint8)

        # Only the bounding box of the glass changes from frame to frame.
        glass = _pixel_coverage(_GLASS_OUTLINE, x, y, self._pixel)
        rows, columns = np.flatnonzero(glass.any(1)), np.flatnonzero(glass.any(0))
        self._box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        self._prepare_glass(theme, x[self._box[1]], y[self._box[0]], glass[self._box], picture[self._box])

    def _prepare_glass(
        self, theme: Theme, x: FloatArray, y: FloatArray, glass: FloatArray, room: NDArray[np.floating]
    ) -> None:
        """Prepare liquid, wax, light and reflections in the box of the glass.

        Args:
            theme: the colours.
            x, y: places of the columns and of the rows.
            glass: share of each pixel that is inside the glass, (rows, columns).
            room: what is behind it, (rows, columns, 3).
        """
        self._field = _WaxField(x, y)
        glass = glass[..., None]
        across = x[None, :] / _outline_half_widths(_GLASS_OUTLINE, y)[:, None]
        up = np.clip(y, 0, 1)
        shades = np.stack([_colour_array(colour) for colour in theme.liquid])
        liquid = _colours_on_ramp(shades, 1 - up**0.6)[:, None, :] * (1 - 0.45 * across**4)[..., None]
        streak = np.exp(-(((across + 0.72) / 0.09) ** 2)) + 0.45 * np.exp(-(((across - 0.80) / 0.06) ** 2))
        streak = streak * (np.clip(y / 0.15, 0, 1) * np.clip((1 - y) / 0.1, 0, 1))[:, None]
        gloss = 34 * streak[..., None]
        self._room_and_gloss = (room * (1 - glass) + glass * gloss + 0.5).astype(np.float32)
        self._glass = glass.astype(np.float32)
        self._liquid = np.clip(liquid, 0, 200).astype(np.float32)
        self._halo = (0.35 * _colour_array(theme.wax[len(theme.wax) // 2])).astype(np.float32)
        self._light = (0.93 - 0.62 * up**0.75)[:, None].astype(np.float32)
        self._wax = _colours_on_ramp(
            np.stack([_colour_array(colour) for colour in theme.wax]), np.linspace(0, 1, 1024)
        ).astype(np.float32)

    def _prepare_level_grid(self) -> None:
        """Prepare the grid that the level is computed from."""
        rows, columns = _LEVEL_GRID_SHAPE
        y = ((np.arange(rows) + 0.5) / rows).astype(np.float32)
        x = ((np.arange(columns) + 0.5) / columns * 2 - 1).astype(np.float32) * np.float32(
            _MAX_GLASS_HALF_WIDTH
        )
        self._grid = _WaxField(x, y)
        self._weight = _pixel_coverage(_GLASS_OUTLINE, x, y, 1 / rows)

    def _find_wax_level(self, blobs: NDArray[np.float64]) -> float:
        """The level of the field that encloses the constant area of wax (Newton's method)."""
        field, along_x, along_y = self._grid(blobs)
        sharp = _LEVEL_GRID_SHAPE[0] / np.sqrt(along_x**2 + along_y**2 + _MIN_EDGE_SLOPE**2)
        goal = _WAX_AREA_FRACTION * float(self._weight.sum())
        ranked = field[self._weight > 0.5]
        nth = round((1 - _WAX_AREA_FRACTION) * len(ranked))
        level = float(np.partition(ranked, nth)[nth])
        for _ in range(4):
            cover = (field - level) * sharp + 0.5
            slope = float((self._weight * sharp)[(cover > 0) & (cover < 1)].sum())
            level += (float((self._weight * np.clip(cover, 0, 1)).sum()) - goal) / max(slope, 1.0)
        return level

    def _draw_frame(self, blobs: NDArray[np.float64]) -> NDArray[np.uint8]:
        field, along_x, along_y = self._field(blobs)
        field -= np.float32(self._find_wax_level(blobs))
        steep = along_x * along_x + along_y * along_y
        cover = np.clip(field / (np.sqrt(steep + _MIN_EDGE_SLOPE**2) * self._pixel) + 0.5, 0, 1)[..., None]

        # The slope of the field tilts the surface normal outwards. So blobs look round and lit from below.
        upright = 1 / np.sqrt(1 + (0.055 * 0.055) * steep)
        lean_x, lean_y = along_x * upright * -0.055, along_y * upright * -0.055
        shade = self._light * (0.70 + 0.30 * upright) - 0.16 * lean_y
        spot = np.maximum(0, 0.83 * upright - 0.40 * lean_x + 0.39 * lean_y)
        shade += 0.16 * spot**12
        wax = self._wax[(np.clip(shade, 0, 1) * 1023).astype(np.int16)]

        halo = np.exp(1.2 * np.minimum(field, 0))[..., None] * self._halo
        liquid = self._liquid + halo * self._light[..., None]
        frame: NDArray[np.uint8] = self._background.copy()
        frame[self._box] = np.minimum(
            self._room_and_gloss + self._glass * (liquid + cover * (wax - liquid)), 255
        )
        return frame


def frames(
    size: tuple[int, int] = (64, 64), *, fps: float = 30.0, seed: int = 0, theme: str = "classic"
) -> Iterator[NDArray[np.uint8]]:
    """Endless frames of a lamp, uint8 (H, W, 3). The arguments are those of ``SimulatedLamp``."""
    return iter(SimulatedLamp(size, fps=fps, seed=seed, theme=theme))


class ThemeLibrary:
    """The library of a player that has the built-in lamp in each of its themes."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self.names: Sequence[str] = list(THEMES)

    def open(self, name: str, seed: int) -> FrameSource:
        """The lamp with this theme and seed.

        Raises:
            UserError: there is no theme of that name.
        """
        return FrameSource(SimulatedLamp(self._size, seed=seed, theme=name).play, self._size)


def _draw_room_and_metal(theme: Theme, x: FloatArray, y: FloatArray, pixel: float) -> NDArray[np.floating]:
    """The room, base and cap, whose pixels are ``pixel`` wide: (H, W, 3), 0 … 255, not rounded."""
    # The room is faintly lit by the lamp.
    far = np.hypot(x[None, :] / 0.75, (y[:, None] - 0.35) / 1.0)
    picture: NDArray[np.floating] = (
        _colour_array(theme.room) * (0.25 + 1.1 * np.exp(-2.2 * far * far))[..., None]
    )
    metal = _colour_array(theme.metal) / 255
    for profile in (_BASE_OUTLINE, _CAP_OUTLINE):
        across = x[None, :] / _outline_half_widths(profile, y)[:, None]
        # Polished cylinders have a bright band left of the middle, and a thin reflection on the right.
        shine = 0.16 + 0.62 * np.exp(-(((across + 0.38) / 0.24) ** 2))
        shine = shine + 0.22 * np.exp(-(((across - 0.66) / 0.13) ** 2))
        inside = _pixel_coverage(profile, x, y, pixel)[..., None]
        picture = picture + inside * (255 * shine[..., None] * metal - picture)
    return picture


def _colour_array(colour: Colour) -> FloatArray:
    return np.array(colour, np.float32)


def _colours_on_ramp(colours: FloatArray, position: NDArray[np.floating]) -> FloatArray:
    """Colours at ``position`` (0 … 1) on a ramp of evenly spaced colours: (..., 3)."""
    knots = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(position, knots, channel) for channel in colours.T], axis=-1).astype(
        np.float32
    )


def _pixel_coverage(
    profile: tuple[tuple[float, float], ...], x: FloatArray, y: FloatArray, pixel: float
) -> FloatArray:
    """The share of each pixel that is inside an outline, 0 … 1: (H, W)."""
    side = (_outline_half_widths(profile, y)[:, None] - np.abs(x)[None, :]) / pixel + 0.5
    above = (y - profile[0][0]) / pixel + 0.5
    below = (profile[-1][0] - y) / pixel + 0.5
    cover = np.clip(side, 0, 1) * (np.clip(above, 0, 1) * np.clip(below, 0, 1))[:, None]
    return np.asarray(cover, np.float32)
