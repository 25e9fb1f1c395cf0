"""Batches that are cut into chunks, which the cores of a CPU work on side by side.

The arrays of a chunk stay in the processor's cache from one operation to the next, and each core has chunks
of its own. Networks are written for a whole batch and need not know of it: :func:`in_chunks` wraps them. Only
those with BatchNorm need the whole batch in between, and are written with :class:`Chunks`. On a GPU a batch
is one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from mlxlava.backend import Tree, mx, tree_map
from mlxlava.backend.cpu.worker_streams import chunk_count, map_chunks

Network = TypeVar("Network")


def split(x: mx.array, count: int) -> list[mx.array]:
    """``x`` cut into ``count`` chunks along its first axis; their lengths differ by one at most."""
    cuts = [len(x) * i // count for i in range(1, count)]
    return list(mx.split(x, cuts)) if cuts else [x]


def in_chunks(network: Network, pixels: int) -> Network:
    """A network whose batch is cut into chunks, and its results joined.

    Args:
        network: Called with weights, the batch and more; each result depends only on its own item.
        pixels: What an item of the batch has, so that chunks are of a size that suits the cache.
    """
    return cast(Network, _InChunks(network, pixels))


class _InChunks:
    def __init__(self, network: Any, pixels: int) -> None:
        self._network, self._pixels = network, pixels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, weights: Tree, batch: Any, *rest: Any, **options: Any) -> Any:
        """What the network gives for the whole batch."""
        items = len(batch if isinstance(batch, mx.array) else batch[0])
        count = chunk_count(items, self._pixels)
        if count == 1:
            return self._network(weights, batch, *rest, **options)
        chunks = list(zip(*(_cut(each, count) for each in (batch, *rest)), strict=True))
        first, *others = map_chunks(lambda chunk: self._network(weights, *chunk, **options), chunks)
        return tree_map(lambda *outputs: mx.concatenate(list(outputs)), first, *others)


def _cut(argument: Any, count: int) -> list[Any]:
    """An argument for each chunk: arrays and tuples of arrays are cut, everything else stays whole."""
    if isinstance(argument, mx.array):
        return split(argument, count)
    if isinstance(argument, tuple):
        return list(zip(*(_cut(each, count) for each in argument), strict=True))
    return [argument] * count


class Chunks(list[mx.array]):
    """A batch in chunks, for networks that need the whole batch in between."""

    @classmethod
    def of(cls, batch: mx.array, pixels: int) -> Chunks:
        """Cut a batch (N, …); ``pixels`` is what an item of it has."""
        return cls(split(batch, chunk_count(len(batch), pixels)))

    def map(self, function: Callable[[mx.array], mx.array]) -> Chunks:
        """``function`` of each chunk."""
        return Chunks(map_chunks(function, self))

    def sum(self, function: Callable[[mx.array], tuple[mx.array, ...]]) -> list[mx.array]:
        """Each result of ``function``, summed over the chunks."""
        return [mx.stack(list(each)).sum(0) for each in zip(*map_chunks(function, self), strict=True)]

    def join(self) -> mx.array:
        """The whole batch (N, …)."""
        return mx.concatenate(list(self))


def share_forward(
    layer: Callable[..., Chunks], first: Chunks, second: Chunks, *weights: mx.array
) -> tuple[Chunks, Chunks]:
    """A layer of a batch that is given twice, computed once, with separate gradients for two losses.

    The losses of D and of G judge the same frames. D's weights learn from the first loss only, the frames
    from the second only. So the forward pass is made once and the backward pass twice.

    Args:
        layer: (batch, weights …, ``weight_gradient_first``) → results; the option is that of
            :func:`mlxlava.backend.ops.conv4_stride2`. It must end with a product or convolution: the backward
            pass computes the layer again from its inputs, but for that last operation, whose result its
            gradient does not need.
        first: The batch for the first loss. Its gradient also goes to the weights.
        second: The same batch for the second loss. Its gradient goes to the batch only.
        weights: Of the layer.

    Returns:
        The results twice: for the first loss and for the second.
    """
    count, known = len(first), len(weights)

    def forward(*inputs: mx.array) -> list[mx.array]:
        results = layer(Chunks(inputs[known : known + count]), *inputs[:known], weight_gradient_first=True)
        return [*results, *results]

    def backward(inputs: list[mx.array], cotangents: list[mx.array], _: list[mx.array]) -> list[mx.array]:
        weights, batch = inputs[:known], inputs[known : known + count]
        of_first, of_second = cotangents[:count], cotangents[count:]
        _, gradients = mx.vjp(
            lambda *inputs: layer(Chunks(inputs[known:]), *inputs[:known], weight_gradient_first=True),
            [*weights, *batch],
            of_first,
        )
        _, more = mx.vjp(
            lambda *batch: layer(Chunks(batch), *weights, weight_gradient_first=False), batch, of_second
        )
        return [*gradients, *more]

    custom: Any = mx.custom_function(forward)
    custom.vjp(backward)
    results = list(custom(*weights, *first, *second))
    return Chunks(results[:count]), Chunks(results[count:])
