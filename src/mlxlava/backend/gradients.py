"""Gradients that take less time or memory, or fewer buffers, than MLX's own: the same numbers otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxlava.backend.cpu.worker_streams import on_current_stream
from mlxlava.backend.device import mx, on_gpu_path

# (inputs, cotangent of the output, output) → a gradient for each input
Gradient = Callable[[list[mx.array], mx.array, mx.array], tuple[mx.array, ...]]


def with_gradient(function: Callable[..., mx.array], gradient: Gradient) -> Callable[..., mx.array]:
    """``function`` of arrays, with ``gradient`` as its vector-Jacobian product.

    The gradient is computed on the stream on which the function was computed.
    """

    def call(*inputs: mx.array) -> mx.array:
        custom: Any = mx.custom_function(function)
        custom.vjp(on_current_stream(gradient))
        output: mx.array = custom(*inputs)
        return output

    return call


keep_gradient_apart = with_gradient(
    lambda weight: weight, lambda inputs, cotangent, output: (mx.contiguous(cotangent),)
)
"""The identity, whose gradient ``mx.compile`` does not fuse with what is done with it afterwards.

The gradient of R's weights is a sum over the pieces of a path, each a sum over its steps. Fused into one
kernel, the sums would take more buffers than Metal has for a kernel (kernels.py).
"""


def checkpointed_steps() -> int:
    """How many learned steps of a long path are rolled again together in the backward pass.

    With more, fewer steps are rolled twice. That counts on GPUs, where a step is many small kernels, one
    after the other. Fewer take less memory.
    """
    return 64 if on_gpu_path() else 10
