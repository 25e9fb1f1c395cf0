"""Several processes that train together (mlx.launch). With one, all of this does nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from mlxlava.backend import mx, named_arrays, tree_map

Result = TypeVar("Result")


def rank() -> int:
    """The number of this process among those that train together, from 0."""
    return mx.distributed.init().rank()


def ranks() -> int:
    """How many processes train together."""
    return mx.distributed.init().size()


def gather(array: mx.array) -> mx.array:
    """The rows of all ranks, in their order; the gradient by a rank's own rows is its rows of the gradient.

    That is right where each rank goes on to compute the whole of the loss.
    """
    if ranks() == 1:
        return array
    function: Any = mx.custom_function(mx.distributed.all_gather)

    def own_rows(primals: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent[rank() * len(array) : (rank() + 1) * len(array)]

    function.vjp(own_rows)
    gathered: mx.array = function(array)
    return gathered


def sum_over_ranks(tree: Any) -> Any:
    """The sum of a tree of float32 arrays over all ranks, in one message; not differentiable."""
    if ranks() == 1:
        return tree
    arrays = list(named_arrays(tree).values())
    flat = mx.distributed.all_sum(mx.concatenate([array.reshape(-1) for array in arrays]))
    ends = list(itertools.accumulate(array.size for array in arrays))
    parts = iter(mx.split(flat, ends[:-1]))
    return tree_map(lambda array: next(parts).reshape(array.shape), tree)


def from_first(tree: Any) -> Any:
    """The tree of the first rank, everywhere; each rank has one of the same shapes and types."""
    if ranks() == 1:
        return tree
    first = rank() == 0
    shared = tree_map(lambda array: mx.distributed.all_sum(array if first else mx.zeros_like(array)), tree)
    mx.eval(shared)
    return shared


def any_rank(flag: int) -> int:
    """The largest of the flags of all ranks; waits for them."""
    return flag if ranks() == 1 else int(np.array(mx.distributed.all_max(mx.array(flag))))


def first_rank_first(work: Callable[[], Result]) -> Result:
    """What ``work`` gives: done by the first rank, then by the others, who may find it prepared."""
    done = work() if rank() == 0 else None
    any_rank(0)
    return work() if done is None else done
