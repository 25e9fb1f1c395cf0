"""Networks that compute in half precision while their weights stay float32 (Micikevicius 2018)."""

from __future__ import annotations

from typing import Any

from mlxlava.backend import Tree, mx, prefer_exact_half_convolutions, tree_map

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class HalfPrecisionNetwork:
    """A network that is float32 outside and half precision inside.

    In the backward pass, gradients with respect to the outputs are multiplied by ``scale``. Gradients with
    respect to weights and inputs are divided by it again. The smallest number of float16 is 6e-8, and
    gradients with respect to single pixels are smaller than that. A loss need not take account of the scale.
    Gradients of gradients would be wrong, since not all of them pass through the outputs.

    Args:
        net: A network.
        dtype: The format that it computes in.
        scale: Factor of gradients; 1 for bfloat16, which has the range of float32.
    """

    def __init__(self, net: Any, dtype: mx.Dtype, scale: float) -> None:
        self._net, self._dtype = net, dtype
        self._grow, self._shrink = _scale_gradient(scale), _scale_gradient(1 / scale)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)

    def __call__(self, weights: Tree, inputs: mx.array, *rest: Any) -> Any:
        """Call the network. Inputs and outputs are float32."""
        weights, inputs = tree_map(lambda array: self._shrink(array).astype(self._dtype), (weights, inputs))
        outputs = self._net(weights, inputs, *rest)
        return tree_map(lambda array: self._grow(array.astype(mx.float32)), outputs)


def _scale_gradient(factor: float) -> Any:
    """The identity, whose gradient is multiplied by ``factor``."""
    function: Any = mx.custom_function(lambda array: array)

    def scaled(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return factor * cotangent

    function.vjp(scaled)
    return function


def network_in_precision(network: Any, precision: str, loss_scale: float) -> Any:
    """The network, wrapped so that it computes in the precision that a recipe names."""
    if precision == "float32":
        return network
    prefer_exact_half_convolutions()
    return HalfPrecisionNetwork(network, DTYPES[precision], loss_scale if precision == "float16" else 1.0)
