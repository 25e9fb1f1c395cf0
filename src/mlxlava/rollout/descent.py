"""Gradient descent on one array, to search for states."""

from __future__ import annotations

import math
from collections.abc import Callable

from mlxlava.backend import mx

OnProgress = Callable[[int, int], None]


def descend(
    loss: Callable[[mx.array], mx.array],
    x: mx.array,
    *,
    rounds: int,
    rate: float,
    on_progress: OnProgress | None = None,
) -> mx.array:
    """Minimise a function with Adam (Kingma 2015). The learning rate falls to 0 along a cosine.

    Args:
        loss: function of an array that returns a scalar.
        x: array to start from.
        rounds: number of steps of Adam.
        rate: learning rate at the start.
        on_progress: called with the number of rounds done and the number of all rounds.
    """
    gradient_of = mx.grad(loss)
    mean, square = mx.zeros_like(x), mx.zeros_like(x)
    for n in range(1, rounds + 1):
        gradient = gradient_of(x)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient * gradient
        step = rate * 0.5 * (1 + math.cos(math.pi * n / rounds))
        x = x - step * (mean / (1 - 0.9**n)) / (mx.sqrt(square / (1 - 0.99**n)) + 1e-8)
        mx.eval(x, mean, square)
        if on_progress is not None:
            on_progress(n, rounds)
    return x
