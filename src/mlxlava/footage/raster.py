"""Turns a decoded frame of video into a picture: crops and scales its planes, turns it, converts it to sRGB.

The planes are scaled before their colours are converted. The matrix is linear, so a mean over an area gives
the same picture in either order. Scaling first saves a few milliseconds for a frame in full HD.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlxlava.footage.colour import (
    BT601_CODE,
    BT709_CODE,
    RGB_CODE,
    UNKNOWN_CODE,
    ColourEncoding,
    FloatArray,
    guess_matrix,
    is_known_matrix,
    to_srgb,
)
from mlxlava.footage.crop import Box

_PLANAR_FORMAT = re.compile(
    r"(?P<kind>yuv|yuvj|yuva|gray|gbr|gbra)(?:4\d\d)?p?(?P<depth>9|10|12|14|16)?(?:le)?"
)
_LIMITED_RANGE, _FULL_RANGE = 1, 2  # ffmpeg's numbers of the ranges
# These codecs do not store the range.
_CODECS_WITH_LIMITED_GREY = ("h264", "hevc", "av1", "libdav1d", "vp9")


@dataclasses.dataclass(frozen=True)
class Orientation:
    """How a stored picture is turned upright: first its axes are exchanged, then it is mirrored."""

    exchanged: bool = False
    left_right: bool = False
    up_down: bool = False

    @classmethod
    def from_matrix(cls, matrix: bytes) -> Orientation:
        """Read a display matrix (ISO 14496-12): nine int32 numbers. Angles are rounded to quarter turns."""
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    def make_upright(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Turn a picture (H, W, 3)."""
        if self.exchanged:
            picture = picture.swapaxes(0, 1)
        if self.left_right:
            picture = picture[:, ::-1]
        if self.up_down:
            picture = picture[::-1]
        return np.ascontiguousarray(picture)

    def stored_box(self, box: tuple[float, ...], upright: tuple[float, float]) -> tuple[float, ...]:
        """Where a box (x, y, width, height) of the upright picture (width, height) is in the stored one."""
        x, y, width, height = box
        if self.left_right:
            x = upright[0] - x - width
        if self.up_down:
            y = upright[1] - y - height
        return (y, x, height, width) if self.exchanged else (x, y, width, height)


class DecodedFrame:
    """A decoded frame.

    Args:
        frame: an ``av.VideoFrame``.
        stamp: time at which it is shown, in seconds; None if unknown.
        turn: how it is turned upright.
        aspect: width of a pixel divided by its height.
        codec: name of the decoder.

    Attributes:
        size: width and height of the upright picture with square pixels.
        stamp: time at which it is shown, in seconds; None if unknown.
    """

    def __init__(
        self,
        frame: Any,
        *,
        stamp: float | None,
        aspect: float = 1.0,
        turn: Orientation | None = None,
        codec: str = "",
    ) -> None:
        self._frame = frame
        self._codec = codec
        self._turn = turn or Orientation()
        self.stamp = stamp
        width, height = max(1, round(frame.width * aspect)), frame.height
        self.size: tuple[int, int] = (height, width) if self._turn.exchanged else (width, height)

    def to_picture(self, size: tuple[int, int], box: Box | None = None) -> npt.NDArray[np.uint8]:
        """Crop and resize like ``mlxlava.resize``.

        Args:
            size: height and width of the result.
            box: region of the upright picture (x, y, width, height); the whole picture if None.

        Returns:
            sRGB, uint8 (H, W, 3).
        """
        box = box or (0, 0, *self.size)
        reducing = box[2] >= size[1] and box[3] >= size[0]
        x, y, width, height = self._turn.stored_box(box, self.size)
        shown = self.size[::-1] if self._turn.exchanged else self.size
        across, down = self._frame.width / shown[0], self._frame.height / shown[1]
        stored = (x * across, y * down, (x + width) * across, (y + height) * down)
        out = size if self._turn.exchanged else size[::-1]  # width and height
        planes, colours = self._colour_planes()
        scaled = [
            _crop_and_scale_plane(plane, stored, (self._frame.width, self._frame.height), out, reducing)
            for plane in planes
        ]
        return self._turn.make_upright(to_srgb(np.stack(scaled), colours))

    def _colour_planes(self) -> tuple[list[Image.Image], ColourEncoding]:
        """The colour planes, blended over black, and the meaning of their numbers."""
        frame, name = self._frame, self._frame.format.name
        found = _PLANAR_FORMAT.fullmatch(name)
        if found is None:
            frame = _to_planar(frame)
            found = _PLANAR_FORMAT.fullmatch(frame.format.name)
            assert found is not None
        kind, depth = found["kind"], int(found["depth"] or 8)
        colours = self._colour_encoding(kind, depth)
        every_line = slice(0, None, 2) if frame.interlaced_frame else slice(None)
        arrays = [_plane_array(plane, depth > 8)[every_line] for plane in frame.planes]
        if kind in ("gbr", "gbra"):
            arrays[:3] = arrays[2], arrays[0], arrays[1]
        if kind in ("yuva", "gbra"):
            return _blend_over_black(arrays[:3], arrays[3], colours), colours
        return [_plane_image(array) for array in arrays], colours

    def _colour_encoding(self, kind: str, depth: int) -> ColourEncoding:
        frame = self._frame
        transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
        matrix, limited = int(frame.colorspace), int(frame.color_range) == _LIMITED_RANGE
        if kind in ("gbr", "gbra"):
            return ColourEncoding(RGB_CODE, True, transfer, primaries, depth)
        if kind == "gray":
            limited = limited or (
                int(frame.color_range) != _FULL_RANGE and self._codec in _CODECS_WITH_LIMITED_GREY
            )
            return ColourEncoding(BT709_CODE, not limited, transfer, primaries, depth)
        if matrix == RGB_CODE or not is_known_matrix(matrix):
            guessed = guess_matrix(frame.height, transfer, primaries)
            matrix = BT601_CODE if kind == "yuvj" and matrix == UNKNOWN_CODE else guessed
        full = int(frame.color_range) == _FULL_RANGE or (kind == "yuvj" and not limited)
        return ColourEncoding(matrix, full, transfer, primaries, depth)


def _to_planar(frame: Any) -> Any:
    """Convert a frame of another format (packed, with a palette, big-endian …) to planes."""
    parts, name = frame.format.components, frame.format.name
    deep = max(part.bits for part in parts) > 8
    alpha = any(part.is_alpha for part in parts) or name == "pal8"
    coloured = len(parts) >= 3 and not frame.format.is_rgb and not name.startswith("xyz")
    if coloured:
        target = ("yuva444p" if alpha else "yuv444p") + ("16le" if deep else "")
    else:  # RGB, grey and palettes: the same numbers as R, G and B
        target = ("gbrap" if alpha else "gbrp") + ("16le" if deep else "")
    # If both ranges are equal, the numbers are only shifted.
    same = {}
    if coloured:
        same = {"src_color_range": _LIMITED_RANGE, "dst_color_range": _LIMITED_RANGE}
    return frame.reformat(format=target, src_colorspace=1, dst_colorspace=1, **same)


def _plane_array(plane: Any, deep: bool) -> npt.NDArray[Any]:
    """The numbers of a plane without its padding, as a view."""
    numbers = np.frombuffer(plane, "<u2" if deep else np.uint8).reshape(plane.height, -1)
    return numbers[:, : plane.width]


def _plane_image(array: npt.NDArray[Any]) -> Image.Image:
    """A plane as a picture of Pillow. If the plane has no padding, the memory is shared."""
    mode = {"uint8": "L", "uint16": "I;16"}.get(array.dtype.name, "F")
    return Image.frombuffer(mode, array.shape[::-1], np.ascontiguousarray(array), "raw", mode, 0, 1)


def _blend_over_black(
    planes: list[npt.NDArray[Any]], alpha: npt.NDArray[Any], colours: ColourEncoding
) -> list[Image.Image]:
    """Blend planes over black. This is done before scaling, so that hidden colours do not mix with others."""
    opaque = (alpha / np.float32(2**colours.depth - 1)).astype(np.float32)
    luma, chroma = (np.float32(zero) for zero in colours.black_and_neutral)
    laid = []
    for number, plane in enumerate(planes):
        zero = chroma if number and colours.matrix != RGB_CODE else luma
        here = opaque
        if plane.shape != alpha.shape:
            here = np.asarray(_plane_image(opaque).resize(plane.shape[::-1], Image.Resampling.BOX))
        laid.append(_plane_image(zero + (plane - zero) * here))
    return laid


def _crop_and_scale_plane(
    plane: Image.Image,
    box: tuple[float, float, float, float],
    whole: tuple[int, int],
    size: tuple[int, int],
    reducing: bool,
) -> FloatArray:
    """Crop and scale a plane: float32 (height, width).

    Args:
        plane: plane, which may have fewer lines and columns than the whole picture.
        box: left, top, right and bottom, in pixels of the whole picture.
        whole: width and height of the whole picture.
        size: width and height of the result.
        reducing: whether the picture becomes smaller. A plane of half its size may become larger.
    """
    across, down = plane.width / whole[0], plane.height / whole[1]
    left, right = (min(edge * across, plane.width) for edge in (box[0], box[2]))
    top, bottom = (min(edge * down, plane.height) for edge in (box[1], box[3]))
    smaller = reducing and right - left >= size[0] and bottom - top >= size[1]
    if reducing and not smaller:
        how = Image.Resampling.BILINEAR
    else:
        how = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    # If a pixel of the result covers eight or more pixels, whole pixels are added first. This is twice as
    # fast. The borders are then off by an eighth of it at most.
    gap = 4.0 if smaller else None
    return np.asarray(plane.resize(size, how, (left, top, right, bottom), gap), dtype=np.float32)
