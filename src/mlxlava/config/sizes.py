"""Sizes of frames: reading, checking and writing them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlxlava.errors import UserError
from mlxlava.schema import show

_MAX_SIDE = 8192  # pixels of a frame's side
_MAX_FRAME_PIXELS = 2**24


def check_size(size: tuple[int, int]) -> None:
    """Raise UserError unless a frame size is made of positive multiples of 16."""
    if len(size) != 2 or any(side <= 0 or side % 16 for side in size):
        text = format_size(size, "x")
        raise UserError(f"size: {text} is not made of multiples of 16; give for example 64 or 128x64 (HxW)")
    if max(size) > _MAX_SIDE or math.prod(size) > _MAX_FRAME_PIXELS:
        raise UserError(
            f"size: {format_size(size, 'x')} is too large; sides have at most {_MAX_SIDE} pixels, "
            f"and a frame {_MAX_FRAME_PIXELS} in all"
        )


def parse_size(text: str) -> tuple[int, int]:
    """Read ``N`` or ``HxW`` as (height, width)."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdigit() for part in parts):
        raise UserError(f"size: cannot read {text!r}; give N or HxW, for example 64 or 128x64")
    if any(len(part.strip()) > 9 for part in parts):  # Python refuses to read numbers of 4300 digits
        raise UserError(f"size: {show(text)} is too large; sides have at most {_MAX_SIDE} pixels")
    size = (int(parts[0]), int(parts[-1]))
    check_size(size)
    return size


def format_size(size: Sequence[int], sign: str = "×") -> str:
    """Height and width as ``H×W``. ``parse_size`` reads it; with the sign ``x`` it is easier to type."""
    return sign.join(map(str, size))
