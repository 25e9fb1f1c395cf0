"""Matrix products of NumPy without its false warnings on macOS.

On macOS NumPy multiplies with Apple's Accelerate, which leaves floating-point flags behind. NumPy then warns
of a "divide by zero encountered in matmul", although every number is finite and right (NumPy's issue 28687).
Such lines would spoil a picture in the terminal. So the package multiplies NumPy arrays only in this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

NumpyArray = npt.NDArray[Any]


def matmul(x: NumpyArray, y: NumpyArray) -> NumpyArray:
    """``x @ y``. Stacks of matrices are allowed."""
    with np.errstate(all="ignore"):
        product: NumpyArray = x @ y
    return product


def covariance(x: NumpyArray) -> NumpyArray:
    """Covariance (d, d) of points (N, d)."""
    with np.errstate(all="ignore"):
        found: NumpyArray = np.cov(x, rowvar=False)
    return found
