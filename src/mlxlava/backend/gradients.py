"""Functions with a gradient that is written by hand, since it takes less time or memory than MLX's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxlava.backend.device import mx

# (inputs, cotangent of the output, output) → a gradient for each input
Gradient = Callable[[list[mx.array], mx.array, mx.array], tuple[mx.array, ...]]


def with_gradient(function: Callable[..., mx.array], gradient: Gradient) -> Callable[..., mx.array]:
    """``function`` of arrays, with ``gradient`` as its vector-Jacobian product.

    The gradient is computed on the stream on which the function was computed. MLX asks for it later, when
    another stream may be the current one, so each call remembers its own. On a CPU the chunks of a batch
    therefore stay on the same cores in the backward pass.
    """

    def call(*inputs: mx.array) -> mx.array:
        stream = mx.default_stream(mx.default_device())

        def vjp(inputs: list[mx.array], cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
            with mx.stream(stream):
                return gradient(inputs, cotangent, output)

        custom: Any = mx.custom_function(function)
        custom.vjp(vjp)
        output: mx.array = custom(*inputs)
        return output

    return call
