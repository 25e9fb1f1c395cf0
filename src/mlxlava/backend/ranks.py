"""Several processes that train together (mlx.launch). With one process, these functions do nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from mlxlava.backend import arrays_by_name, mx, tree_map

Result = TypeVar("Result")


def rank() -> int:
    """The number of this process among those that train together, from 0."""
    return mx.distributed.init().rank()


def rank_count() -> int:
    """How many processes train together."""
    return mx.distributed.init().size()


def gather_rows(array: mx.array) -> mx.array:
    """The rows of all ranks, in the order of the ranks.

    In the backward pass each rank gets the gradient with respect to its own rows. That is right if each rank
    computes the whole loss from the rows of all ranks.
    """
    if rank_count() == 1:
        return array
    function: Any = mx.custom_function(mx.distributed.all_gather)

    def own_rows(primals: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent[rank() * len(array) : (rank() + 1) * len(array)]

    function.vjp(own_rows)
    gathered: mx.array = function(array)
    return gathered


def sum_over_ranks(tree: Any) -> Any:
    """The sum of a tree of float32 arrays over all ranks, in one message; not differentiable."""
    if rank_count() == 1:
        return tree
    arrays = list(arrays_by_name(tree).values())
    flat = mx.distributed.all_sum(mx.concatenate([array.reshape(-1) for array in arrays]))
    ends = list(itertools.accumulate(array.size for array in arrays))
    parts = iter(mx.split(flat, ends[:-1]))
    return tree_map(lambda array: next(parts).reshape(array.shape), tree)


def copy_from_first_rank(tree: Any) -> Any:
    """The tree of the first rank, on every rank. Each rank gives a tree of the same shapes and types."""
    if rank_count() == 1:
        return tree
    first = rank() == 0
    shared = tree_map(lambda array: mx.distributed.all_sum(array if first else mx.zeros_like(array)), tree)
    mx.eval(shared)
    return shared


def max_over_ranks(number: int) -> int:
    """The largest of the numbers that the ranks give. It waits for all of them."""
    return number if rank_count() == 1 else int(np.array(mx.distributed.all_max(mx.array(number))))


def run_on_first_rank_first(work: Callable[[], Result]) -> Result:
    """Call ``work`` on the first rank, then on the others, so that these find what the first has prepared."""
    done = work() if rank() == 0 else None
    max_over_ranks(0)
    return work() if done is None else done
