"""Operations as they are defined, in a few lines that share no code with the package."""

from __future__ import annotations

from mlxlava.backend import mx


def taps(x: mx.array, weight: mx.array, stride: int) -> mx.array:
    """A convolution padded by one, as it is defined: a product a tap. It shares no code with any other."""
    x = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    side = weight.shape[1]
    height, width = ((length - side) // stride + 1 for length in x.shape[1:3])
    rows, columns = (slice(0, stride * (length - 1) + 1, stride) for length in (height, width))
    total = mx.zeros((len(x), height, width, len(weight)))
    for i in range(side):
        for j in range(side):
            at = x[:, i + rows.start : i + rows.stop : stride, j + columns.start : j + columns.stop : stride]
            total = total + at @ weight[:, i, j].T
    return total


def spread(y: mx.array, weight: mx.array) -> mx.array:
    """A transposed convolution of stride 2, as it is defined: zeros between pixels, then a convolution."""
    count, height, width, channels = y.shape
    y = mx.stack([y, mx.zeros_like(y)], axis=3).reshape(count, height, 2 * width, channels)
    y = mx.stack([y, mx.zeros_like(y)], axis=2).reshape(count, 2 * height, 2 * width, channels)
    y = mx.pad(y, [(0, 0), (1, 0), (1, 0), (0, 0)])
    return taps(y, weight[:, ::-1, ::-1], 1)


def shuffled(x: mx.array) -> mx.array:
    """Pixel shuffle: (N, H, W, 4 C) → (N, 2H, 2W, C), pixel by pixel."""
    count, height, width, channels = x.shape
    quarter = channels // 4
    y = mx.zeros((count, 2 * height, 2 * width, quarter))
    for i in (0, 1):
        for j in (0, 1):
            which = 2 * i + j
            y[:, i::2, j::2] = x[..., which * quarter : (which + 1) * quarter]
    return y
