"""Networks that compute in half precision while their weights stay float32 (Micikevicius 2018)."""

from __future__ import annotations

from typing import Any

from mlxlava.backend import Tree, mx, prefer_exact_half_convolutions, tree_map

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class Half:
    """A network that is float32 outside and half precision inside.

    Gradients are multiplied by ``scale`` on their way in from the outputs, and divided by it on their way
    out to weights and inputs: float16 ends at 6e-8, and gradients by single pixels are smaller than that.
    Losses need not know of it. (Of gradients of gradients, which do not all pass through the outputs, it
    makes wrong ones.)

    Args:
        net: a network.
        dtype: what it computes in.
        scale: 1 for bfloat16, which has float32's range.
    """

    def __init__(self, net: Any, dtype: mx.Dtype, scale: float) -> None:
        self._net, self._dtype = net, dtype
        self._grow, self._shrink = _scaling(scale), _scaling(1 / scale)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)

    def __call__(self, weights: Tree, inputs: mx.array, *rest: Any) -> Any:
        """What the network gives, from float32 to float32."""
        weights, inputs = tree_map(lambda array: self._shrink(array).astype(self._dtype), (weights, inputs))
        outputs = self._net(weights, inputs, *rest)
        return tree_map(lambda array: self._grow(array.astype(mx.float32)), outputs)


def _scaling(factor: float) -> Any:
    """The identity, whose gradient is multiplied by ``factor``."""
    function: Any = mx.custom_function(lambda array: array)

    def scaled(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return factor * cotangent

    function.vjp(scaled)
    return function


def half(net: Any, precision: str, scale: float) -> Any:
    """The network in the precision that a recipe names."""
    if precision == "float32":
        return net
    prefer_exact_half_convolutions()
    return Half(net, DTYPES[precision], scale if precision == "float16" else 1.0)
