"""Interpolation between two states on the great circle. States on the chord would be too short."""

from __future__ import annotations

from mlxlava.backend import mx


def slerp(first: mx.array, second: mx.array, fraction: float | mx.array) -> mx.array:
    """Spherical interpolation (Shoemake 1985): a fraction of the way from states (B, Z) to others.

    The length of the result lies between the lengths of the two states.

    Args:
        first: States (B, Z) at fraction 0.
        second: States (B, Z) at fraction 1.
        fraction: A number in 0 … 1, or one for each state (B, 1).
    """
    norms = mx.linalg.norm(first, axis=-1, keepdims=True) * mx.linalg.norm(second, axis=-1, keepdims=True)
    angle = mx.arccos(mx.clip((first * second).sum(-1, keepdims=True) / norms, -0.9999, 0.9999999))
    # For small angles the limit of both weights is used, since the quotient would be 0 / 0.
    small = angle < 1e-3
    whole = mx.where(small, 1.0, mx.sin(angle))
    of_first = mx.where(small, 1 - fraction, mx.sin((1 - fraction) * angle) / whole)
    of_second = mx.where(small, fraction, mx.sin(fraction * angle) / whole)
    return of_first * first + of_second * second
