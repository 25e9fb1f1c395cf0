"""The kernels that MLX makes of an expression are counted, with their buffers."""

from __future__ import annotations

import pytest

from mlxlava.backend import mx, operations_of_graph, use_gpu_path
from mlxlava.backend.ops import Convolution, conv3, conv4_stride2, conv4_transposed

pytestmark = pytest.mark.device


def test_a_kernel_of_many_sums_is_found() -> None:
    """The count sees what it is to see: a sum of many arrays is one kernel of many buffers."""
    arrays = [mx.ones((4,)) * n for n in range(30)]
    mx.eval(arrays)

    def total(*arrays: mx.array) -> mx.array:
        half = len(arrays) // 2
        return arrays[0] if half == 0 else total(*arrays[:half]) + total(*arrays[half:])

    assert max(kernel.buffers for kernel in operations_of_graph({"sum": mx.compile(total)(*arrays)})) > 20


@pytest.mark.parametrize(
    ("form", "side", "outputs"),
    [(conv3, 3, 8), (conv4_stride2, 4, 8), (conv4_transposed, 4, 8), (conv4_transposed, 4, 3)],
)
def test_no_picture_is_a_kernel(form: Convolution, side: int, outputs: int) -> None:
    """The gradient with respect to a weight is a product of patches, not a convolution with whole pictures.

    The second gradients are made of the same operations (tests/backend/test_convolution.py).
    """
    x = mx.ones((2, 8, 8, 4))
    y = mx.ones_like(form(x, mx.ones((outputs, side, side, 4))))
    with use_gpu_path():
        gradient = mx.grad(lambda weight: (form(x, weight) * y).sum())(mx.ones((outputs, side, side, 4)))
        names = [kernel.name for kernel in operations_of_graph({"gradient": gradient})]
    assert "Matmul" in names and "Convolution" not in names
