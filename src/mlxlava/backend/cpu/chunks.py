"""Batches that are cut into chunks, which the cores of a CPU work on side by side.

The arrays of a chunk stay in the processor's cache from one operation to the next, and each core has chunks
of its own. Most networks are written for a whole batch, and :func:`network_in_chunks` wraps them. Only
networks with BatchNorm need statistics of the whole batch between two layers; they are written with
:class:`Chunks`. On a GPU a batch is one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from mlxlava.backend import Tree, mx, tree_map
from mlxlava.backend.cpu.worker_streams import chunk_count, map_chunks

Network = TypeVar("Network")


def split_into_chunks(x: mx.array, count: int) -> list[mx.array]:
    """``x`` cut into ``count`` chunks along its first axis; their lengths differ by one at most."""
    cuts = [len(x) * i // count for i in range(1, count)]
    return list(mx.split(x, cuts)) if cuts else [x]


def network_in_chunks(network: Network, pixels_per_item: int) -> Network:
    """Wrap a network so that its batch is cut into chunks, and the results of the chunks are joined.

    Args:
        network: A function of weights, a batch and more arguments. The result of an item must not depend on
            other items of the batch.
        pixels_per_item: Number of pixels in an item of the batch. It decides on the size of the chunks.
    """
    return cast(Network, _ChunkedNetwork(network, pixels_per_item))


class _ChunkedNetwork:
    def __init__(self, network: Any, pixels: int) -> None:
        self._network, self._pixels = network, pixels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, weights: Tree, batch: Any, *rest: Any, **options: Any) -> Any:
        """Call the network on each chunk, and join the results."""
        items = len(batch if isinstance(batch, mx.array) else batch[0])
        count = chunk_count(items, self._pixels)
        if count == 1:
            return self._network(weights, batch, *rest, **options)
        chunks = list(zip(*(_split_argument(each, count) for each in (batch, *rest)), strict=True))
        first, *others = map_chunks(lambda chunk: self._network(weights, *chunk, **options), chunks)
        return tree_map(lambda *outputs: mx.concatenate(list(outputs)), first, *others)


def _split_argument(argument: Any, count: int) -> list[Any]:
    """The argument of each chunk. Arrays and tuples of arrays are cut; everything else stays whole."""
    if isinstance(argument, mx.array):
        return split_into_chunks(argument, count)
    if isinstance(argument, tuple):
        return list(zip(*(_split_argument(each, count) for each in argument), strict=True))
    return [argument] * count


class Chunks(list[mx.array]):
    """A batch in chunks, for networks that need the whole batch in between."""

    @classmethod
    def from_batch(cls, batch: mx.array, pixels_per_item: int) -> Chunks:
        """Cut a batch (N, …) whose items have ``pixels_per_item`` pixels each."""
        return cls(split_into_chunks(batch, chunk_count(len(batch), pixels_per_item)))

    def map(self, function: Callable[[mx.array], mx.array]) -> Chunks:
        """Apply ``function`` to each chunk."""
        return Chunks(map_chunks(function, self))

    def sum(self, function: Callable[[mx.array], tuple[mx.array, ...]]) -> list[mx.array]:
        """Each result of ``function``, summed over the chunks."""
        return [mx.stack(list(each)).sum(0) for each in zip(*map_chunks(function, self), strict=True)]

    def join(self) -> mx.array:
        """The whole batch (N, …)."""
        return mx.concatenate(list(self))


def forward_once_for_two_losses(
    layer: Callable[..., Chunks], first: Chunks, second: Chunks, *weights: mx.array
) -> tuple[Chunks, Chunks]:
    """Compute a layer once for two losses that need separate gradients.

    The losses of D and of G use the same frames. D's weights learn only from the first loss, and the frames
    get their gradient only from the second. So the forward pass is made once and the backward pass twice.

    Args:
        layer: (batch, weights …, ``weight_gradient_first``) → results. The option is explained at
            :func:`mlxlava.backend.ops.conv4_stride2`. The layer must end with a matrix product or a
            convolution. The backward pass computes the layer again from its inputs, but without this last
            operation, since the gradient does not need its result.
        first: The batch for the first loss. Its gradient also goes to the weights.
        second: The same batch for the second loss. Its gradient goes to the batch only.
        weights: Weights of the layer.

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
