"""Autocorrelation of a series, and its correlation time. NumPy only."""

from __future__ import annotations

import numpy as np

from mlxlava.products import NumpyArray


def autocorrelation(series: NumpyArray) -> NumpyArray:
    """Autocorrelation of centred series (C, L, d) at each lag, summed over C and d: (L,).

    The sum at a lag is divided by its number of pairs. It is computed with Fourier transforms. The series are
    padded with zeros, so that their ends do not wrap around to their starts.
    """
    length = series.shape[1]
    spectra = np.abs(np.fft.rfft(series, 2 * length, axis=1)) ** 2
    products: NumpyArray = np.fft.irfft(spectra.sum((0, 2)))[:length] / np.arange(length, 0, -1)
    return products


def correlation_time(series: NumpyArray) -> float:
    """The lag, interpolated, at which the autocorrelation of centred series (C, L, d) falls to 1/2.

    It is L if the autocorrelation does not fall so far, or if nothing varies.
    """
    products = autocorrelation(series)
    if products[0] <= 1e-12:
        return float(len(products))
    curve = products / products[0]
    below = np.nonzero(curve < 0.5)[0]
    if len(below) == 0:
        return float(len(curve))
    lag = int(below[0])
    return lag - 1 + float((curve[lag - 1] - 0.5) / (curve[lag - 1] - curve[lag]))
