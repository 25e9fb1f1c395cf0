"""Painters turn a frame into what a terminal shows: half blocks, or a picture by a graphics protocol.

The protocols are Kitty's, iTerm2's and Sixel. A painter returns the bytes that draw a frame into an area of
cells, and no bytes where the frame is already there. Frames are uint8 (H, W, 3).
"""

from __future__ import annotations

import base64
import io
import itertools
import os
import re
import zlib
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlxlava.playback.screens.surround import EdgeColours, stretch_line
from mlxlava.playback.writers import Frame
from mlxlava.resize import resize_smoothly

# Sides in pixels up to which small frames are enlarged smoothly before they are sent. kitty shows the
# pixels that it enlarges as squares. The bytes to send grow with the square of the side.
_KITTY_ENLARGED_SIDE_PIXELS = 384
_ITERM2_ENLARGED_SIDE_PIXELS = 512
_MAX_SIXEL_SIDE_PIXELS = 600  # the largest picture, as no terminal scales Sixel; it takes 42 ms to encode

# The six levels of xterm's 6×6×6 colour cube, which is numbers 16 to 231 of its 256 colours.
_COLOUR_CUBE_LEVELS = (0, 95, 135, 175, 215, 255)

_MAX_CHANNEL_DIFFERENCE_OF_GREY = 24  # a pixel whose R, G and B differ by less is nearly grey

# 4×4 ordered dither, in (-0.5, 0.5), for terminals of 256 colours.
_DITHER_MATRIX = (
    np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], dtype=np.float32) + 0.5
) / 16 - 0.5


_SIXEL_COLOUR_DEFINITION = re.compile(r"(#\d+)(;[\d;]+)")  # defines a Sixel colour register


class CellArea(NamedTuple):
    """Cells that a picture fills: the first cell, counted from 1, how many, and a cell's size in pixels."""

    top: int
    left: int
    rows: int
    columns: int
    cell: tuple[int, int]  # height, width

    @property
    def size_pixels(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rows * self.cell[0], self.columns * self.cell[1]


class Painter(Protocol):
    """Draws frames, and remembers what it has drawn.

    Attributes:
        cell: height and width of a cell in the painter's pixels; None for what the terminal says.
        spare: lines at the bottom that the picture must leave free.
        limit: largest side of a picture in pixels; None for no limit.
        true_colour: whether the terminal shows 24-bit colours; else 256 colours.
    """

    true_colour: bool
    cell: tuple[int, int] | None
    spare: int
    limit: int | None

    def paint(self, frame: Frame, area: CellArea) -> bytes:
        """The bytes that make ``frame`` fill ``area``; none where it does already."""

    def erase_pictures(self) -> bytes:
        """The bytes that remove everything the painter has drawn, except text in cells."""


def fit_cells(
    size: tuple[int, int], columns: int, lines: int, cell: tuple[int, int] = (2, 1), limit: int | None = None
) -> tuple[int, int]:
    """The largest area of cells, (rows, columns), that keeps the aspect ratio of a frame.

    Args:
        size: height and width of the frame.
        columns: columns that are free.
        lines: lines that are free.
        cell: height and width of a cell, in any unit.
        limit: largest allowed side, in the same unit; None for no limit.
    """
    height, width = size
    factor = min(columns * cell[1] / width, lines * cell[0] / height)
    if limit is not None:
        factor = min(factor, limit / max(size))
    rows = max(1, min(lines, round(height * factor / cell[0])))
    return rows, max(1, min(columns, round(width * factor / cell[1])))


def _move_cursor_sequence(area: CellArea) -> bytes:
    return b"\x1b[%d;%dH" % (area.top, area.left)


def background_sequence(colour: list[int]) -> str:
    """The control sequence that sets a background colour: RGB, or a number among 256 colours."""
    return "\x1b[48;{};{}m".format(5 if len(colour) == 1 else 2, ";".join(map(str, colour)))


def surround_colours(
    sides: EdgeColours, area: CellArea, lines: int, columns: int, true_colour: bool
) -> npt.NDArray[np.uint8]:
    """Background colours of a terminal's cells around a picture; those within ``area`` have no meaning.

    Returns:
        RGB, (lines, columns, 3), or numbers among 256 colours, (lines, columns, 1).
    """
    left, right, top, bottom = (
        stretch_line(side, length)
        for side, length in zip(sides, 2 * (area.rows,) + 2 * (area.columns,), strict=True)
    )
    beside = np.clip(np.arange(lines) - (area.top - 1), 0, area.rows - 1)  # the nearest row of the picture
    cells = np.zeros((lines, columns, 3), np.uint8)
    first, last = area.left - 1, area.left - 1 + area.columns
    cells[:, :first], cells[:, last:] = left[beside, None], right[beside, None]
    cells[: area.top - 1, first:last], cells[area.top - 1 :, first:last] = top, bottom
    return cells if true_colour else _to_256_colours(cells)[..., None]


def surround_sequences(cells: npt.NDArray[np.uint8], area: CellArea) -> str:
    """Escape sequences that fill the cells around ``area`` with the colours of ``surround_colours``."""
    out = []
    columns = cells.shape[1]
    for row, colours in enumerate(cells.tolist()):
        beside = ((0, area.left - 1), (area.left - 1 + area.columns, columns))
        for start, end in beside if 0 <= row - (area.top - 1) < area.rows else ((0, columns),):
            if start < end:
                out.append(f"\x1b[{row + 1};{start + 1}H")
            for colour, run in itertools.groupby(colours[start:end]):
                out.append(background_sequence(colour) + " " * len(list(run)))
    return "".join(out) + "\x1b[0m"


def _to_256_colours(pixels: Frame) -> npt.NDArray[np.uint8]:
    """Numbers of xterm's 256 colours, by ordered dither: (H, W, 3) → (H, W).

    Pixels that are nearly grey (a dark room) take the 24 greys, which are close to each other. The cube has
    no level between black and 95, so dithering with it would cover a dark room with dots.
    """
    height, width = pixels.shape[:2]
    threshold = np.tile(_DITHER_MATRIX, (height // 4 + 1, width // 4 + 1))[:height, :width]
    place = np.interp(pixels, _COLOUR_CUBE_LEVELS, range(6))
    levels = np.rint(place + threshold[..., None]).clip(0, 5)
    cube = 36 * levels[..., 0] + 6 * levels[..., 1] + levels[..., 2] + 16
    grey = np.rint((pixels.mean(-1) - 8) / 10 + threshold).clip(-1, 23) + 232
    grey[grey < 232] = 16  # black
    numbers: npt.NDArray[np.uint8] = np.where(
        np.ptp(pixels, axis=-1) < _MAX_CHANNEL_DIFFERENCE_OF_GREY, grey, cube
    ).astype(np.uint8)
    return numbers


class HalfBlockPainter:
    """Half blocks: two pixels in each cell. Only cells that have changed are sent.

    Args:
        true_colour: whether to send 24-bit colours; else the 256 colours of older terminals.
    """

    cell: tuple[int, int] | None = (2, 1)
    spare = 0
    limit: int | None = None

    def __init__(self, true_colour: bool) -> None:
        self.true_colour = true_colour
        self._shown: npt.NDArray[np.uint8] | None = None  # (rows, columns, upper and lower, 3)

    def paint(self, frame: Frame, area: CellArea) -> bytes:
        """Escape sequences for the cells that differ from those on the screen."""
        cells = self._cell_colours(frame, area.rows, area.columns)
        text = self._changed_cells_sequence(cells, area.top, area.left)
        self._shown = cells
        return f"{text}\x1b[0m".encode() if text else b""

    def erase_pictures(self) -> bytes:
        """Forget what is shown."""
        self._shown = None
        return b""

    def _cell_colours(self, frame: Frame, rows: int, columns: int) -> npt.NDArray[np.uint8]:
        """The cells' colours: (H, W, 3) → (rows, columns, upper and lower, 3).

        A colour is RGB, or three times its number among 256 colours.
        """
        pixels = np.asarray(resize_smoothly(frame, (2 * rows, columns)))
        if not self.true_colour:
            pixels = np.repeat(_to_256_colours(pixels)[..., None], 3, axis=-1)
        return pixels.reshape(rows, 2, columns, 3).swapaxes(1, 2)

    def _changed_cells_sequence(self, cells: npt.NDArray[np.uint8], top: int, left: int) -> str:
        changed = (
            np.ones(cells.shape[:2], bool) if self._shown is None else (cells != self._shown).any((2, 3))
        )
        kind = "2;{};{};{}" if self.true_colour else "5;{}"
        out: list[str] = []
        colours: list[list[int] | None] = [None, None]
        after = (-1, -1)  # where the terminal's cursor is
        where = np.argwhere(changed).tolist()
        for (row, column), pair in zip(where, cells[changed].tolist(), strict=True):
            if (row, column) != after:
                out.append(f"\x1b[{top + row};{left + column}H")
            for ground, colour in enumerate(pair):
                if colour != colours[ground]:
                    out.append(f"\x1b[{38 + 10 * ground};{kind.format(*colour)}m")
            colours, after = pair, (row, column + 1)
            out.append("▀")
        return "".join(out)


class _GraphicsPainter:
    """What the graphics protocols share: a largest size, and no frame is sent twice.

    Attributes:
        side: largest side in pixels of what is sent, unless the frame itself is larger.
    """

    cell: tuple[int, int] | None = None
    true_colour = True
    spare = 1  # after a picture that ends in the last line, some terminals scroll
    limit: int | None = None
    side: int

    def __init__(self) -> None:
        self._shown: tuple[Frame, CellArea] | None = None

    def paint(self, frame: Frame, area: CellArea) -> bytes:
        """The whole picture, unless it is on the screen already."""
        if self._shown is not None and area == self._shown[1] and np.array_equal(frame, self._shown[0]):
            return b""
        self._shown = (frame, area)
        height, width = area.size_pixels
        shrink = min(1.0, max(self.side, *frame.shape[:2]) / max(height, width))
        image = resize_smoothly(frame, (max(1, round(height * shrink)), max(1, round(width * shrink))))
        return _move_cursor_sequence(area) + self._encoded_picture(image, area)

    def erase_pictures(self) -> bytes:
        """Forget what was drawn. Clearing the screen removes such pictures."""
        self._shown = None
        return b""

    def _encoded_picture(self, image: Image.Image, area: CellArea) -> bytes:
        raise NotImplementedError


class KittyPainter(_GraphicsPainter):
    """Kitty's graphics protocol (kitty, Ghostty, WezTerm, Konsole): pixels, compressed by zlib.

    Two image ids take turns, and the older picture is deleted once the newer one is complete. With a single
    id, the picture may vanish until its successor is complete. Without ids, terminals keep every frame
    (kitty: 6 MB/s).
    """

    spare = 0  # C=1: the cursor stays
    side = _KITTY_ENLARGED_SIDE_PIXELS

    _MAX_CHUNK_BYTES = 4096  # bytes of base64, the most that a command may carry

    def __init__(self) -> None:
        super().__init__()
        # By process, so that programs in the same window have different ids.
        self._ids = [2 * os.getpid() + 2**24, 2 * os.getpid() + 2**24 + 1]

    def _encoded_picture(self, image: Image.Image, area: CellArea) -> bytes:
        new, old = self._ids = self._ids[::-1]
        keys = (
            f"a=T,i={new},p=1,q=2,C=1,f=24,o=z,s={image.width},v={image.height},"
            f"c={area.columns},r={area.rows},"
        ).encode()
        # Level 1 leaves a quarter of the bytes. The default takes twice as long and saves another tenth.
        data = base64.standard_b64encode(zlib.compress(image.tobytes(), 1))
        out = []
        for start in range(0, len(data), self._MAX_CHUNK_BYTES):
            more = start + self._MAX_CHUNK_BYTES < len(data)
            out.append(b"\x1b_G%sm=%d;%s\x1b\\" % (keys, more, data[start : start + self._MAX_CHUNK_BYTES]))
            keys = b"q=2,"
        return b"".join(out) + self._delete_sequence(old)

    def erase_pictures(self) -> bytes:
        """Delete both pictures."""
        super().erase_pictures()
        return b"".join(map(self._delete_sequence, self._ids))

    @staticmethod
    def _delete_sequence(number: int) -> bytes:
        return b"\x1b_Ga=d,d=I,i=%d,q=2\x1b\\" % number


class ITerm2Painter(_GraphicsPainter):
    """iTerm2's inline images (iTerm2, WezTerm): JPEG, which the terminal scales."""

    side = _ITERM2_ENLARGED_SIDE_PIXELS

    def _encoded_picture(self, image: Image.Image, area: CellArea) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        data = file.getvalue()
        keys = (
            f"inline=1;size={len(data)};width={area.columns};height={area.rows};"
            "preserveAspectRatio=0;doNotMoveCursor=1"
        ).encode()
        return b"\x1b]1337;File=%s:%s\x07" % (keys, base64.standard_b64encode(data))


class SixelPainter(_GraphicsPainter):
    """Sixel (xterm, mlterm, foot, …): each frame has a palette of its own. Encoded by textual-image.

    Args:
        colours: number of the terminal's colour registers.

    Raises:
        ImportError: textual-image, the extra ``terminal``, is not installed.
    """

    side = _MAX_SIXEL_SIDE_PIXELS
    limit: int | None = _MAX_SIXEL_SIDE_PIXELS

    def __init__(self, colours: int = 256) -> None:
        super().__init__()
        # Only the encoder: the public classes of textual-image ask the terminal when they are imported.
        from textual_image import _sixel

        self._encode = _sixel.image_to_sixels
        self._options = _sixel.SixelOptions(colors=max(2, min(256, colours)))

    def _encoded_picture(self, image: Image.Image, area: CellArea) -> bytes:
        sent: str = self._encode(image, self._options)
        # textual-image before 0.14 assumes that defining a register also selects it. In xterm and WezTerm it
        # does not, so the selection is added.
        return _SIXEL_COLOUR_DEFINITION.sub(r"\1\2\1", sent).encode()
