"""Training on the code for GPUs: no kernel is too wide for Metal, and float16 learns at full batches."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxlava.backend import gpu_path, kernels, mx
from mlxlava.backend.kernels import MOST_BUFFERS
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.footage.prepare import prepare_lamp
from mlxlava.paths import latest_checkpoint
from mlxlava.training.checkpoint import load_checkpoint
from mlxlava.training.folder import start_run
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
QUICK = {(20, "whole"), (64, "whole"), (32, "micro-batches"), (32, "recomputed"), (48, "float16")}
CASES = [
    pytest.param(length, name, marks=[] if (length, name) in QUICK else pytest.mark.slow)
    for length, name in itertools.product(LENGTHS, VARIANTS)
]


def widest(recipe: Recipe) -> dict[tuple[bool, bool], int]:
    """The most buffers of a fused kernel in each kind of step of a recipe; nothing is computed."""
    data, views = recipe.data, recipe.encoder.context_frames
    trainer = Trainer(recipe, 10)
    state = trainer.init()
    count = views + (data.drawn_frames or data.seq_len)
    frames = mx.zeros((data.batch_size, count, *data.size, 3), mx.uint8)
    times = mx.zeros((data.batch_size, count), mx.int32)
    most: dict[tuple[bool, bool], int] = {}
    for kind in trainer.kinds:
        found = kernels(trainer.step_of(state, frames, times, mx.random.key(0), *kind))
        most[kind] = max(kernel.buffers for kernel in found if kernel.fused)
    return most


@pytest.mark.parametrize("name", ["lava", "duralava"])
@pytest.mark.parametrize(("length", "variant"), CASES)
def test_no_kernel_of_a_step_has_more_buffers_than_metal(name: str, length: int, variant: str) -> None:
    recipe = override(load_recipe(name), {"data.seq_len": length, **VARIANTS[variant]})
    with gpu_path():
        most = widest(recipe)
    assert len(most) == (3 if name == "lava" else 1)
    assert max(most.values()) <= MOST_BUFFERS, most


@pytest.mark.parametrize("name", [pytest.param("lava", marks=pytest.mark.slow), "duralava"])
def test_half_precision_learns_at_a_full_batch(name: str, tmp_path: Path) -> None:
    """The recipe's own batch of clips with narrow networks, as a run begins: no step is skipped."""
    narrow = {
        "generator.widths": [8, 4, 4, 4],
        "discriminator.widths": [4] * len(load_recipe(name).discriminator.widths),
        "dynamics.hidden": [16],
        "loss.d_start": 0.0,
        "training.precision": "float16",
    }
    recipe = override(load_recipe(name), narrow)
    data = recipe.data
    lamp = prepare_lamp(
        tmp_path / "lamp", size=data.size, minutes=1, fps=5, every_nth=1, seed=0, theme="classic"
    )
    frames, times = lamp.batch(
        0, 0, data.batch_size, data.seq_len, data.drawn_frames, recipe.encoder.context_frames
    )
    with gpu_path():
        start_run(tmp_path / "run", recipe, lamp, [], "", None)
        trainer = Trainer(recipe, 10, compiled=False)
        latest = latest_checkpoint(tmp_path / "run")
        assert latest is not None
        state, _ = load_checkpoint(latest, trainer.init())
        after, terms = trainer.step_of(
            state, mx.array(frames), mx.array(times), mx.random.key(1), True, False
        )
        mx.eval(after, terms)
    assert terms["skipped"].item() == 0
    assert not np.array_equal(
        np.array(state["generator"]["up0"]["weight"]), after["generator"]["up0"]["weight"]
    )
