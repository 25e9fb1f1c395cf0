"""The self-test of the operations in convolution.cpp: each must give what MLX's own give.

It runs once for a build, in a child process, since a wrong library may crash (convolution.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlxlava.backend import mx
from mlxlava.backend.cpu.convolution import Algorithm, ConvolutionKind, call_operation, open_library

# Largest error that is allowed, relative to the largest result. Tiles of 4×4 results are within 2e-6.
_MAX_RELATIVE_ERROR = 1e-4


# All kinds have Winograd. IM2COL is for few input channels, COL2IM for few output channels.
_ALGORITHMS_OF_KIND = {
    ConvolutionKind.CONV4_STRIDE2: (Algorithm.WINOGRAD_2X2, Algorithm.WINOGRAD_4X4, Algorithm.IM2COL),
    ConvolutionKind.CONV4_TRANSPOSED: (Algorithm.WINOGRAD_2X2, Algorithm.WINOGRAD_4X4, Algorithm.COL2IM),
    ConvolutionKind.CONV3: (
        Algorithm.WINOGRAD_2X2,
        Algorithm.WINOGRAD_4X4,
        Algorithm.IM2COL,
        Algorithm.COL2IM,
    ),
    ConvolutionKind.CONV3_SHUFFLE: (Algorithm.WINOGRAD_2X2, Algorithm.WINOGRAD_4X4, Algorithm.IM2COL),
}


def check_library(path: str) -> None:
    """Compare every operation of a library, by every algorithm, with MLX's own. This may crash the process.

    Raises:
        ValueError: An operation gives other numbers than MLX's own.
    """
    mx.set_default_device(mx.cpu)
    library = open_library(Path(path))
    for kind, algorithms in _ALGORITHMS_OF_KIND.items():
        for algorithm in algorithms:
            _check_against_reference(library, kind, algorithm)


def _check_against_reference(library: Any, kind: ConvolutionKind, algorithm: Algorithm) -> None:
    """Compare one kind and algorithm with MLX's own operations.

    The feature maps are no multiple of a tile, and the arrays are not contiguous.
    """
    inputs = 5 if algorithm == Algorithm.IM2COL else 18
    outputs = 3 if algorithm == Algorithm.COL2IM else 20
    side = 4 if kind in (ConvolutionKind.CONV4_STRIDE2, ConvolutionKind.CONV4_TRANSPOSED) else 3
    keys = mx.random.split(mx.random.key(10 * kind + algorithm), 3)
    x = mx.random.normal((3, 14, 22, inputs), key=keys[0]).transpose(0, 2, 1, 3)
    weight = mx.random.normal((side, outputs, side, inputs), key=keys[1]).transpose(1, 0, 2, 3)
    bias = mx.random.normal((outputs,), key=keys[2]) if kind == ConvolutionKind.CONV3_SHUFFLE else None
    laid = weight.transpose(3, 1, 2, 0) if kind == ConvolutionKind.CONV4_TRANSPOSED else weight

    def convolve_fast(x: mx.array, kernel: mx.array) -> mx.array:
        transformed = call_operation(library, "transform_filter", kind, algorithm, kernel)
        return call_operation(library, "convolve", kind, algorithm, x, transformed, outputs, bias)

    results = _reference_convolution(kind, x, weight, bias)
    _require_close(f"{kind.name} {algorithm.name}", convolve_fast(x, laid), results)
    with mx.stream(mx.new_stream(mx.cpu)):
        _require_close(f"{kind.name} {algorithm.name} compiled", mx.compile(convolve_fast)(x, laid), results)
    if kind in (ConvolutionKind.CONV4_STRIDE2, ConvolutionKind.CONV3):
        _, (wanted,) = mx.vjp(
            lambda weight: _reference_convolution(kind, x, weight, None), [weight], [results]
        )
        found = call_operation(library, "weight_gradient", kind, algorithm, x, results)
        _require_close(f"{kind.name} {algorithm.name} weight gradient", found, wanted)


def _reference_convolution(
    kind: ConvolutionKind, x: mx.array, weight: mx.array, bias: mx.array | None
) -> mx.array:
    """The convolution of a kind in MLX's own operations, with a weight (O, side, side, I)."""
    if kind == ConvolutionKind.CONV4_TRANSPOSED:
        return mx.conv_transpose2d(x, weight, stride=2, padding=1)
    y = mx.conv2d(x, weight, stride=2 if kind == ConvolutionKind.CONV4_STRIDE2 else 1, padding=1)
    if bias is None:
        return y
    y = mx.maximum(y + bias, 0.2 * (y + bias))
    count, height, width, channels = y.shape
    y = y.reshape(count, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(count, 2 * height, 2 * width, channels // 4)


def _require_close(what: str, found: mx.array, expected: mx.array) -> None:
    if found.shape != expected.shape:
        raise ValueError(f"{what} has shape {found.shape}, not {expected.shape}")
    error = float(mx.abs(found - expected).max() / mx.abs(expected).max())
    if not error <= _MAX_RELATIVE_ERROR:  # NaN too
        raise ValueError(f"{what} is off by {error:.1e} of its largest number")
