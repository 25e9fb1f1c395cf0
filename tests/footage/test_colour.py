"""Numbers of video to sRGB, against formulas written out here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mlxlava.footage.colour import (
    BT601_CODE,
    BT709_CODE,
    BT2020_CODE,
    RGB_CODE,
    ColourEncoding,
    guess_matrix,
    to_srgb,
)

COEFFICIENTS = {BT709_CODE: (0.2126, 0.0722), BT601_CODE: (0.299, 0.114), BT2020_CODE: (0.2627, 0.0593)}


def encode(rgb: npt.NDArray[np.float64], colours: ColourEncoding) -> npt.NDArray[np.float32]:
    """R′G′B′ of 0 … 1, (H, W, 3), as planes of whole numbers."""
    red, blue = COEFFICIENTS[colours.matrix]
    luma = rgb @ [red, 1 - red - blue, blue]
    cb, cr = (rgb[..., 2] - luma) / (2 - 2 * blue), (rgb[..., 0] - luma) / (2 - 2 * red)
    most, scale = 2**colours.depth - 1, 2 ** (colours.depth - 8)
    if colours.full:
        planes = [luma * most, cb * most + 2 ** (colours.depth - 1), cr * most + 2 ** (colours.depth - 1)]
    else:
        planes = [
            (16 + 219 * luma) * scale,
            (128 + 224 * cb) * scale,
            (128 + 224 * cr) * scale,
        ]
    return np.round(np.stack(planes)).astype(np.float32)


@pytest.mark.parametrize("matrix", COEFFICIENTS)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("depth", [8, 10, 12, 16])
def test_matrix_range_and_depth(matrix: int, full: bool, depth: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    colours = ColourEncoding(matrix, full, depth=depth)
    found = to_srgb(encode(rgb / 255, colours), colours).astype(int)
    assert np.abs(found - rgb).max() <= (2 if depth == 8 else 1 if depth == 10 else 0)


def test_rgb_and_grey_stay_as_they_are() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.float32)
    assert np.array_equal(to_srgb(rgb, ColourEncoding(RGB_CODE, True)), rgb.transpose(1, 2, 0))
    grey = to_srgb(rgb[:1], ColourEncoding(BT709_CODE, True))
    assert np.array_equal(grey, np.stack([rgb[0]] * 3, axis=-1))
    out = np.array([[[300.0]], [[-20.0]], [[128.0]]], np.float32)
    assert to_srgb(out, ColourEncoding(RGB_CODE, True)).tolist() == [[[255, 0, 128]]]


def pq(nits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """SMPTE ST 2084, from light to code."""
    power = (nits / 10000) ** 0.1593017578125
    code: npt.NDArray[np.float64] = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    return code


def hlg(nits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """BT.2100 HLG, from displayed light to code, with the system gamma on each channel."""
    scene = (nits / 1000) ** (1 / 1.2)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


@pytest.mark.parametrize(("curve", "code"), [(16, pq), (18, hlg)])
def test_hdr(curve: int, code: object) -> None:
    assert callable(code)

    def shown(nits: float) -> int:
        planes = np.full((3, 1, 1), code(np.array(nits)), np.float32) * 65535
        return int(to_srgb(planes, ColourEncoding(RGB_CODE, True, curve, BT2020_CODE, 16))[0, 0, 0])

    # Below the knee, as a display of standard dynamic range shows it; 203 cd/m² is white there.
    for level in (0, 20, 80, 160, 220):
        assert abs(shown(203 * (level / 255) ** 2.4) - level) <= 1
    brighter = [shown(nits) for nits in (150, 203, 300, 500, 1000, 4000)]
    assert brighter == sorted(brighter) and len(set(brighter[:5])) == 5
    assert 235 <= brighter[1] <= 248 and brighter[4] == brighter[5] == 255


def test_primaries_keep_white_and_widen_red() -> None:
    def shown(rgb: tuple[float, ...], primaries: int) -> list[int]:
        planes = (np.array(rgb, np.float32) * 255).reshape(3, 1, 1)
        colours: list[int] = to_srgb(planes, ColourEncoding(RGB_CODE, True, 1, primaries))[0, 0].tolist()
        return colours

    for primaries in (1, 4, 5, 6, 7, 8, 9, 11, 12, 22):
        assert np.abs(np.array(shown((1, 1, 1), primaries)) - 255).max() <= 1
        assert np.ptp(shown((0.5, 0.5, 0.5), primaries)) <= 1
    for wide in (9, 11, 12):
        red = shown((0.7, 0.2, 0.2), wide)
        assert red[0] > 0.7 * 255 + 5 and red[1] < 0.2 * 255 - 5


def test_the_matrix_of_untagged_video_goes_by_its_lines() -> None:
    assert [guess_matrix(lines) for lines in (480, 576, 719, 720, 1080)] == [BT601_CODE] * 3 + [
        BT709_CODE
    ] * 2
    assert guess_matrix(480, transfer=18) == guess_matrix(480, primaries=9) == BT2020_CODE
