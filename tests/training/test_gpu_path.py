"""Training steps on the code for GPUs: no kernel has more buffers than Metal allows."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from mlxlava.backend import mx, operations_of_graph, use_gpu_path
from mlxlava.backend.kernel_count import MAX_KERNEL_BUFFERS
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.training.step import Trainer

pytestmark = pytest.mark.device

LENGTHS = [20, 32, 48, 64, 100, 128, 200, 256]
VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "micro-batches": {"training.micro_batches": 4},
    "recomputed": {"training.micro_batches": 2, "training.recompute": True},
    "float16": {"training.precision": "float16"},
}
# Few of them quickly, all of them by `make test-slow`: a trace of 256 learned steps takes seconds.
QUICK = {(64, "whole"), *((20, name) for name in VARIANTS)}
CASES = [
    pytest.param(length, name, marks=[] if (length, name) in QUICK else pytest.mark.slow)
    for length, name in itertools.product(LENGTHS, VARIANTS)
]


def widest(recipe: Recipe) -> dict[tuple[bool, bool], int]:
    """The most buffers of a fused kernel in each kind of step of a recipe; nothing is computed."""
    data = recipe.data
    trainer = Trainer(recipe, 10)
    state = trainer.init()
    count = recipe.encoder.context_frames + (data.drawn_frames or data.seq_len)
    frames = mx.zeros((data.batch_size, count, *data.size, 3), mx.uint8)
    times = mx.zeros((data.batch_size, count), mx.int32)
    most: dict[tuple[bool, bool], int] = {}
    for kind in trainer.step_kinds:
        found = operations_of_graph(trainer(state, frames, times, 0, kind=kind))
        most[kind] = max(kernel.buffers for kernel in found if kernel.is_fused)
    return most


@pytest.mark.parametrize("name", ["lava", "duralava"])
@pytest.mark.parametrize(("length", "variant"), CASES)
def test_no_kernel_of_a_step_has_more_buffers_than_metal(name: str, length: int, variant: str) -> None:
    recipe = override(load_recipe(name), {"data.seq_len": length, **VARIANTS[variant]})
    with use_gpu_path():
        most = widest(recipe)
    assert len(most) == (3 if name == "lava" else 1)
    assert max(most.values()) <= MAX_KERNEL_BUFFERS, most
