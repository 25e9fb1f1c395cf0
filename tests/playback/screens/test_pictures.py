"""What each picture protocol sends is decoded again as a terminal would."""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from mlxlava.footage.simulated_lamp import ThemeLibrary
from mlxlava.playback.screens.pictures import (
    CellArea,
    ITerm2Painter,
    KittyPainter,
    Painter,
    SixelPainter,
    fit_cells,
)
from mlxlava.playback.writers import Frame

AREA = CellArea(3, 5, 12, 24, (20, 10))  # 240 × 240 pixels


class Shown:
    """A terminal that keeps pictures: by number (Kitty), or the last one on its cells."""

    def __init__(self) -> None:
        self.pictures: dict[str, Frame] = {}
        self.cells: dict[str, tuple[int, int]] = {}  # rows and columns of each
        self.cursor = ""
        self._data = b""
        self._keys: dict[str, str] = {}

    @property
    def picture(self) -> Frame:
        (picture,) = self.pictures.values()
        return picture

    def feed(self, sent: bytes) -> None:
        commands = re.compile(
            rb"\x1b\[(\d+;\d+)H|\x1b_G(.*?)(?:;(.*?))?\x1b\\|\x1b\]1337;File=(.*?):(.*?)\x07|(\x1bP.*?\x1b\\)",
            re.DOTALL,
        )
        end = 0
        for found in commands.finditer(sent):
            assert found.start() == end
            end = found.end()
            cursor, kitty, data, iterm2, file, sixel = found.groups()
            if cursor:
                self.cursor = cursor.decode()
            elif kitty:
                self._kitty(dict(key.split("=") for key in kitty.decode().strip(",").split(",")), data)
            elif iterm2:
                keys = dict(key.split("=") for key in iterm2.decode().split(";"))
                assert int(keys["size"]) == len(base64.standard_b64decode(file))
                self.pictures["last"] = np.asarray(Image.open(io.BytesIO(base64.standard_b64decode(file))))
                self.cells["last"] = int(keys["height"]), int(keys["width"])
            else:
                self.pictures["last"] = decode_sixel(sixel)
        assert end == len(sent)

    def _kitty(self, keys: dict[str, str], data: bytes | None) -> None:
        assert keys["q"] == "2"  # no answers, which would be keys
        if keys.get("a") == "d":
            self.pictures.pop(keys["i"], None)
            return
        if "a" in keys:
            self._keys, self._data = keys, b""
        assert data is not None and len(data) <= 4096
        self._data += data
        if keys["m"] == "0":
            keys = self._keys
            assert keys["C"] == "1" and keys["f"] == "24"
            assert keys["i"] not in self.pictures  # else it would be taken away before it is replaced
            pixels = zlib.decompress(base64.standard_b64decode(self._data))
            shape = int(keys["v"]), int(keys["s"]), 3
            self.pictures[keys["i"]] = np.frombuffer(pixels, np.uint8).reshape(shape)
            self.cells[keys["i"]] = int(keys["r"]), int(keys["c"])


def decode_sixel(sent: bytes) -> Frame:
    """The picture of a Sixel sequence; a register that is defined is not chosen by that, as in xterm."""
    header = re.match(rb'\x1bP[\d;]*q"1;1;(\d+);(\d+)', sent)
    assert header is not None
    width, height = int(header[1]), int(header[2])
    picture = np.full((height + 6, width, 3), -1.0)
    registers: dict[int, list[float]] = {}
    colour = x = y = 0
    for found in re.finditer(rb"#([\d;]+)|!(\d+)(.)|(\$)|(-)|([?-~])", sent[header.end() : -2]):
        if found[1]:
            number, *rest = map(int, found[1].split(b";"))
            if rest:
                registers[number] = [2.55 * value for value in rest[1:]]
            else:
                colour = number
        elif found[4] or found[5]:
            x, y = 0, y + 6 * bool(found[5])
        else:
            count, bits = int(found[2] or 1), (found[3] or found[6])[0] - 63
            rows = [y + bit for bit in range(6) if bits >> bit & 1]
            picture[rows, x : x + count] = registers[colour]
            x += count
    assert (picture[:height] >= 0).all()
    return picture[:height].round().astype(np.uint8)


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    source = ThemeLibrary((48, 48)).open("classic", 0)
    return [frame for _, frame in source.play([20.0, 20.5, 21.0])]


def wanted(frame: Frame, like: Frame) -> Frame:
    """The frame at the size of ``like``; 48 pixels are doubled twice on their way to 240."""
    image = Image.fromarray(frame)
    for side in (96, 192, 240):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    assert image.size == like.shape[1::-1]
    return np.asarray(image)


needs_sixel = pytest.mark.skipif(find_spec("textual_image") is None, reason="needs the extra `terminal`")


@pytest.mark.parametrize(
    ("kind", "error"),
    [(KittyPainter, 0.0), (ITerm2Painter, 2.0), pytest.param(SixelPainter, 4.0, marks=needs_sixel)],
)
def test_what_is_shown_is_the_frame(kind: Callable[[], Painter], error: float, frames: list[Frame]) -> None:
    shown, painter = Shown(), kind()
    for frame in frames:
        shown.feed(painter.paint(frame, AREA))
        assert shown.cursor == "3;5"
        seen = shown.picture
        assert seen.shape == (240, 240, 3)
        assert np.abs(seen.astype(int) - wanted(frame, seen)).mean() <= error
    for cells in shown.cells.values():
        assert cells == (12, 24)
    assert painter.paint(frames[-1].copy(), AREA) == b""  # it stands there already
    assert painter.paint(frames[-1], AREA._replace(top=4)) != b""


def test_kitty_keeps_one_picture_and_none_in_the_end(frames: list[Frame]) -> None:
    shown, painter = Shown(), KittyPainter()
    for frame in [*frames, *frames]:
        shown.feed(painter.paint(frame, AREA))
        assert len(shown.pictures) == 1
    shown.feed(painter.erase_pictures())
    assert not shown.pictures
    shown.feed(painter.paint(frames[-1], AREA))
    assert shown.pictures


def test_large_pictures_are_left_to_the_terminal_to_scale(frames: list[Frame]) -> None:
    large = CellArea(1, 1, 60, 120, (20, 10))
    for painter in (KittyPainter(), ITerm2Painter()):
        shown = Shown()
        shown.feed(painter.paint(frames[0], large))
        assert 300 < max(shown.picture.shape) < 600
        full = np.zeros((700, 700, 3), np.uint8)  # a frame's own pixels are all sent
        shown.feed(painter.paint(full, large))
        assert shown.picture.shape == full.shape


@pytest.mark.parametrize("kind", [KittyPainter, pytest.param(SixelPainter, marks=needs_sixel)])
def test_an_enlarged_edge_has_no_rim(kind: Callable[[], Painter]) -> None:
    edge = np.full((48, 48, 3), 51, np.uint8)  # a colour that Sixel, which counts in percent, has
    edge[:, 24:] = 204
    shown = Shown()
    shown.feed(kind().paint(edge, AREA))
    assert shown.picture.min() == 51 and shown.picture.max() == 204


@needs_sixel
def test_sixel_has_as_many_colours_as_the_terminal(frames: list[Frame]) -> None:
    sent = SixelPainter(16).paint(frames[0], AREA)
    assert len(set(re.findall(rb"#(\d+);", sent))) <= 16


def test_fit_knows_the_shape_of_a_cell() -> None:
    assert fit_cells((64, 64), 80, 24) == (24, 48)
    assert fit_cells((128, 64), 80, 24) == (24, 24)
    assert fit_cells((64, 128), 80, 24) == (20, 80)
    assert fit_cells((64, 64), 80, 24, (20, 10)) == (24, 48)
    assert fit_cells((64, 64), 80, 24, (16, 8)) == (24, 48)
    assert fit_cells((64, 64), 80, 24, (18, 9), limit=180) == (10, 20)
    assert fit_cells((64, 64), 80, 24, (17, 9)) == (24, 45)
