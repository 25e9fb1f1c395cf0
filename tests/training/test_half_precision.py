"""float16 at the batches that recipes have: no step overflows, and it learns what float32 learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlxlava.backend import Tree, arrays_by_name, mx, use_gpu_path
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.footage.dataset import Footage
from mlxlava.footage.prepare import prepare_lamp
from mlxlava.paths import latest_checkpoint_folder
from mlxlava.training.checkpoint import load_checkpoint
from mlxlava.training.folder import make_run_folder
from mlxlava.training.step import Terms, Trainer

pytestmark = pytest.mark.device


def begun(recipe: Recipe, footage: Footage, run: Path, count: int) -> tuple[Tree, list[Terms], Tree]:
    """A run as it begins, with its background, and after ``count`` steps; and the terms of each."""
    make_run_folder(run, recipe, footage, [], "", None)
    trainer = Trainer(recipe, 10, compiled=False)
    latest = latest_checkpoint_folder(run)
    assert latest is not None
    first, _ = load_checkpoint(latest, trainer.init())
    state, terms, data = first, [], recipe.data
    for index in range(count):
        frames, times = footage.batch(
            0, index, data.batch_size, data.seq_len, data.drawn_frames, recipe.encoder.context_frames
        )
        state, found = trainer(state, mx.array(frames), mx.array(times), index)
        mx.eval(state, found)
        terms.append(found)
    return first, terms, state


def lamp(folder: Path, recipe: Recipe) -> Footage:
    return prepare_lamp(folder, size=recipe.data.size, minutes=1, fps=5, every_nth=1, seed=0, theme="classic")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("lava", marks=pytest.mark.slow), "duralava"])
def test_no_step_of_a_whole_batch_is_skipped(name: str, tmp_path: Path) -> None:
    """At the frames' own size, with narrow networks and the code for GPUs."""
    narrow = {
        "generator.widths": [8, 4, 4, 4],
        "discriminator.widths": [4] * len(load_recipe(name).discriminator.widths),
        "dynamics.hidden": [16],
        "loss.d_start": 0.0,
        "training.precision": "float16",
    }
    recipe = override(load_recipe(name), narrow)
    with use_gpu_path():
        first, terms, after = begun(recipe, lamp(tmp_path / "lamp", recipe), tmp_path / "run", 1)
    assert terms[0]["skipped"].item() == 0
    before = np.array(first["generator"]["up0"]["weight"])
    assert not np.array_equal(before, after["generator"]["up0"]["weight"])


@pytest.mark.slow
def test_lava_learns_the_same_as_in_float32(tmp_path: Path) -> None:
    """24 clips and the recipe's own networks, on small frames: one step with penalties and one without."""
    recipe = override(load_recipe("lava"), {"data.size": [32, 32], "loss.d_start": 0.0})
    assert recipe.data.batch_size == 24
    footage = lamp(tmp_path / "lamp", recipe)
    moved, terms = {}, {}
    for precision in ("float32", "float16"):
        halved = override(recipe, {"training.precision": precision})
        first, terms[precision], after = begun(halved, footage, tmp_path / precision, 2)
        before = arrays_by_name(first)
        moved[precision] = {
            name: np.array(array) - np.array(before[name]) for name, array in arrays_by_name(after).items()
        }
    for whole, half in zip(terms["float32"], terms["float16"], strict=True):
        assert half["skipped"].item() == 0
        for name, term in whole.items():
            assert np.isclose(half[name].item(), term.item(), rtol=0.01, atol=0.01), name
    for network in ("generator", "dynamics", "encoder", "discriminator"):
        # Adam makes equal steps of all gradients, also of those that are hardly more than rounding.
        one, other = (
            np.concatenate([array.ravel() for name, array in moves.items() if name.startswith(f"{network}.")])
            for moves in moved.values()
        )
        assert np.isfinite(other).all()
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.98, network
