"""Gradients with the same numbers as MLX's own, that need less time, less memory or fewer buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxlava.backend.cpu.worker_streams import bind_to_current_stream
from mlxlava.backend.device import mx, on_gpu_path

# (inputs, cotangent of the output, output) → a gradient for each input
GradientFunction = Callable[[list[mx.array], mx.array, mx.array], tuple[mx.array, ...]]


def with_gradient(function: Callable[..., mx.array], gradient: GradientFunction) -> Callable[..., mx.array]:
    """``function`` of arrays, with ``gradient`` as its vector-Jacobian product.

    The gradient is computed on the stream on which the function was computed.
    """

    def call(*inputs: mx.array) -> mx.array:
        custom: Any = mx.custom_function(function)
        custom.vjp(bind_to_current_stream(gradient))
        output: mx.array = custom(*inputs)
        return output

    return call


keep_gradient_unfused = with_gradient(
    lambda weight: weight, lambda inputs, cotangent, output: (mx.contiguous(cotangent),)
)
"""The identity. ``mx.compile`` does not fuse its gradient with the operations that use this gradient.

The gradient with respect to R's weights is a sum over the pieces of a path, and each piece is a sum over its
steps. Fused into one kernel, these sums would need more buffers than Metal has for a kernel
(kernel_count.py).
"""


def steps_per_gradient_checkpoint() -> int:
    """How many learned steps of a long path are rolled again together in the backward pass.

    A larger number takes less time, since fewer steps are rolled twice. That matters on GPUs, where a step is
    many small kernels, one after the other. A smaller number takes less memory.
    """
    return 64 if on_gpu_path() else 10
