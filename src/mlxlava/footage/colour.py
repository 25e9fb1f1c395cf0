"""Converts the colours of video to sRGB.

Code numbers are those of ITU-T H.273, which video files and ffmpeg use too.

- Matrix and range (BT.601, 709, 2020 …; limited or full) give R′G′B′. A file without a matrix is taken as
  BT.601 below 720 lines and as BT.709 from there on, as players do.
- The usual curves of standard dynamic range are not changed, as in players: numbers that are coded for a
  BT.1886 display are shown as sRGB.
- HLG and PQ (BT.2100) become light in cd/m². 203 cd/m², the reference white of BT.2408, becomes the white of
  standard dynamic range. Above three quarters of it, a Möbius curve compresses the light, so that 1000 cd/m²
  becomes white. The largest of R, G and B is mapped, and the hue is kept. The result is coded for BT.1886
  again. HLG's system gamma is applied to R, G and B each, as in standard dynamic range. A BT.2100 display
  applies it to luminance. So a film has the colours that the same phone gives it in standard dynamic range.
- Other primaries become those of BT.709, in linear light. Colours outside of BT.709 are clipped.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxlava.products import matmul

FloatArray = npt.NDArray[np.float32]

UNKNOWN_CODE = 2
RGB_CODE = 0
BT709_CODE = 1
BT601_CODE = 6
BT2020_CODE = 9
_YCGCO_CODE = 8
_PQ_CODE, _HLG_CODE = 16, 18

# Matrix → (K_R, K_B).
_LUMA_COEFFICIENTS: dict[int, tuple[float, float]] = {
    BT709_CODE: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    BT601_CODE: (0.299, 0.114),
    7: (0.212, 0.087),
    BT2020_CODE: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
_D65_WHITE_POINT, _C_WHITE_POINT, _DCI_WHITE_POINT = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
# Primaries → x, y of red, green, blue and white.
_PRIMARY_CHROMATICITIES: dict[int, tuple[tuple[float, float], ...]] = {
    BT709_CODE: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65_WHITE_POINT),
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), _C_WHITE_POINT),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65_WHITE_POINT),
    BT601_CODE: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65_WHITE_POINT),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65_WHITE_POINT),
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _C_WHITE_POINT),
    BT2020_CODE: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65_WHITE_POINT),
    10: ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (1 / 3, 1 / 3)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _DCI_WHITE_POINT),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65_WHITE_POINT),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), _D65_WHITE_POINT),
}
_BRADFORD_MATRIX = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

_REFERENCE_WHITE_NITS = 203.0  # cd/m² of reference white (BT.2408)
_PEAK_WHITE_NITS = 1000.0  # cd/m²
_ROLL_OFF_KNEE = 0.75  # share of white; light below it is not changed
_BT1886_GAMMA = 2.4


@dataclasses.dataclass(frozen=True)
class ColourEncoding:
    """What the numbers of a frame mean. Codes are those of H.273; 2 means unknown.

    Attributes:
        matrix: ``RGB_CODE`` if the three planes are R, G and B.
        full: whether the numbers use the full range.
        transfer: the curve between numbers and light.
        primaries: the colours of R, G and B.
        depth: bits of a number.
    """

    matrix: int = BT709_CODE
    full: bool = False
    transfer: int = UNKNOWN_CODE
    primaries: int = UNKNOWN_CODE
    depth: int = 8

    @property
    def black_and_neutral(self) -> tuple[float, float]:
        """The number that means black in the first plane, and the one that means grey in the other two."""
        if self.matrix == RGB_CODE:
            return 0.0, 0.0
        return (0.0 if self.full else 16.0 * 2 ** (self.depth - 8)), 2.0 ** (self.depth - 1)


def is_known_matrix(matrix: int) -> bool:
    """Whether planes with this matrix can be read."""
    return matrix in _LUMA_COEFFICIENTS or matrix in (RGB_CODE, _YCGCO_CODE)


def guess_matrix(lines: int, transfer: int = UNKNOWN_CODE, primaries: int = UNKNOWN_CODE) -> int:
    """The matrix that is assumed for a video whose file has none."""
    if primaries == BT2020_CODE or transfer in (_PQ_CODE, _HLG_CODE):
        return BT2020_CODE
    return BT709_CODE if lines >= 720 else BT601_CODE


def to_srgb(planes: FloatArray, colours: ColourEncoding) -> npt.NDArray[np.uint8]:
    """Convert the planes of a frame to sRGB.

    Args:
        planes: float32 (3, H, W), Y′CbCr or R′G′B′; (1, H, W) for grey pictures.
        colours: what the numbers mean.

    Returns:
        uint8 (H, W, 3).
    """
    picture = _decode_to_rgb(planes, colours)
    primaries = colours.primaries if colours.primaries in _PRIMARY_CHROMATICITIES else BT709_CODE
    curve = colours.transfer
    if primaries != BT709_CODE or curve in (8, 9, 10, 17, _PQ_CODE, _HLG_CODE):
        light = _decode_to_light(np.clip(picture, 0, 1), curve)
        if primaries != BT709_CODE:
            light = matmul(light, _matrix_to_bt709(primaries).T)
        if curve in (_PQ_CODE, _HLG_CODE):
            light = _roll_off_highlights(np.maximum(light, 0))
        picture = _encode_light(np.clip(light, 0, 1), curve).astype(np.float32)
    # In place, since this is done for each frame of a film.
    picture *= 255
    picture += 0.5
    np.clip(picture, 0, 255, out=picture)
    return picture.astype(np.uint8)


def _decode_to_rgb(planes: FloatArray, colours: ColourEncoding) -> FloatArray:
    """Numbers to R′G′B′ of 0 … 1, not clipped: (H, W, 3)."""
    most = 2**colours.depth - 1
    black, neutral = colours.black_and_neutral
    scale = 2 ** (colours.depth - 8)
    of_luma, of_chroma = (most, most) if colours.full else (219 * scale, 224 * scale)
    if colours.matrix == RGB_CODE:
        return np.moveaxis(planes, 0, -1) * np.float32(1 / most)
    luma = (planes[0] - np.float32(black)) / np.float32(of_luma)
    if len(planes) == 1:
        return np.stack([luma] * 3, axis=-1)
    blue, red = ((plane - np.float32(neutral)) / np.float32(of_chroma) for plane in planes[1:])
    picture = np.empty((*luma.shape, 3), np.float32)
    if colours.matrix == _YCGCO_CODE:  # the planes are Y, Cg and Co
        picture[..., 0] = luma - blue + red
        picture[..., 1] = luma + blue
        picture[..., 2] = luma - blue - red
        return picture
    k_red, k_blue = _LUMA_COEFFICIENTS[colours.matrix]
    k_green = 1 - k_red - k_blue
    picture[..., 0] = luma + 2 * (1 - k_red) * red
    picture[..., 1] = luma - (2 / k_green) * (k_red * (1 - k_red) * red + k_blue * (1 - k_blue) * blue)
    picture[..., 2] = luma + 2 * (1 - k_blue) * blue
    return picture


def _decode_to_light(picture: FloatArray, curve: int) -> npt.NDArray[Any]:
    """R′G′B′ to linear light, in which 1 is white (for HLG and PQ: reference white)."""
    if curve == _PQ_CODE:  # SMPTE ST 2084
        power = picture ** (1 / 78.84375)
        share = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        shown: npt.NDArray[Any] = (10000 / _REFERENCE_WHITE_NITS) * share ** (1 / 0.1593017578125)
        return shown
    if curve == _HLG_CODE:  # BT.2100's inverse OETF, then the system gamma of a display of 1000 cd/m²
        low = picture**2 / 3
        high = (np.exp((picture - 0.55991073) / 0.17883277) + 0.28466892) / 12
        displayed: npt.NDArray[Any] = (_PEAK_WHITE_NITS / _REFERENCE_WHITE_NITS) * np.where(
            picture <= 0.5, low, high
        ) ** 1.2
        return displayed
    if curve == 8:
        return picture
    if curve in (9, 10):
        decades = 2.0 if curve == 9 else 2.5
        return np.where(picture > 0, 10 ** (decades * (picture - 1)), 0)
    if curve == 17:  # SMPTE ST 428-1
        projected: npt.NDArray[Any] = (52.37 / 48) * picture**2.6
        return projected
    if curve == 13:
        return np.where(picture <= 0.04045, picture / 12.92, ((picture + 0.055) / 1.055) ** 2.4)
    light: npt.NDArray[Any] = picture**_BT1886_GAMMA
    return light


def _encode_light(light: npt.NDArray[Any], curve: int) -> npt.NDArray[Any]:
    """Linear light to R′G′B′, by sRGB's curve if the source had it or was linear, else by BT.1886's."""
    if curve in (8, 13):
        return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return light ** (1 / _BT1886_GAMMA)


def _roll_off_highlights(light: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Map light of up to 1000 cd/m² into 0 … 1 by a Möbius curve above the knee; the hue is kept."""
    peak, knee = _PEAK_WHITE_NITS / _REFERENCE_WHITE_NITS, _ROLL_OFF_KNEE
    below = knee**2 * (peak - 1) / (knee**2 - 2 * knee + peak)
    above = (knee**2 - 2 * knee * peak + peak) / (peak - 1)
    largest = light.max(axis=-1, keepdims=True)
    curved = (above**2 + 2 * above * knee + knee**2) / (above + below) * (largest - below)
    curved = curved / np.maximum(largest + above, 1e-6)
    wanted = np.where(largest > knee, curved, largest)
    mapped: npt.NDArray[Any] = light * (wanted / np.maximum(largest, 1e-6))
    return mapped


def _matrix_to_bt709(primaries: int) -> FloatArray:
    """The matrix from linear light with these primaries to BT.709's; white becomes white (Bradford)."""
    source, target = _matrix_to_xyz(primaries), _matrix_to_xyz(BT709_CODE)
    cones = [matmul(_BRADFORD_MATRIX, matrix.sum(axis=1)) for matrix in (target, source)]
    adapt = matmul(matmul(np.linalg.inv(_BRADFORD_MATRIX), np.diag(cones[0] / cones[1])), _BRADFORD_MATRIX)
    matrix: FloatArray = matmul(matmul(np.linalg.inv(target), adapt), source).astype(np.float32)
    return matrix


def _matrix_to_xyz(primaries: int) -> npt.NDArray[np.float64]:
    """The matrix from linear light with these primaries to CIE XYZ."""
    *colours, white = (np.array([x, y, 1 - x - y]) for x, y in _PRIMARY_CHROMATICITIES[primaries])
    matrix = np.stack(colours, axis=1)
    scaled: npt.NDArray[np.float64] = matrix * np.linalg.solve(matrix, white / white[1])
    return scaled
