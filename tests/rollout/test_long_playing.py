"""A lamp that plays for long takes no more memory."""

from __future__ import annotations

import functools
import gc
import itertools

import pytest

from mlxlava.backend import mx, resident_memory_gb, use_gpu_path
from mlxlava.config import load_recipe, override
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import make_dynamics
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import Weights, load_weights
from mlxlava.training.checkpoint import playable_arrays
from mlxlava.training.step import Trainer

pytestmark = pytest.mark.device

CACHED = type(functools.cache(print))  # what a cached function is an instance of


def cached() -> int:
    """Entries in all caches of the package's functions."""
    found = [each for each in gc.get_objects() if isinstance(each, CACHED)]
    ours = [each for each in found if getattr(each, "__module__", "").startswith("mlxlava")]
    return sum(each.cache_info().currsize for each in ours)


def untrained_duralava(*, narrow: bool) -> Weights:
    recipe = load_recipe("duralava")
    if narrow:
        recipe = override(recipe, {"generator.widths": [16, 8, 8, 8], "dynamics.hidden": [32]})
    generator, dynamics = make_generator(recipe), make_dynamics(recipe)
    keys = mx.random.split(mx.random.key(0))
    stats = {"generator": generator.init_stats(), "dynamics": dynamics.init_bases()}
    arrays = {"generator": generator.init(keys[0]), "dynamics": dynamics.init(keys[1]), "stats": stats}
    return Weights(recipe, 5.0, arrays, {})


def untrained_lava() -> Weights:
    recipe = override(load_recipe("lava"), {"generator.widths": [16, 8, 8, 8], "dynamics.hidden": [32]})
    return Weights(recipe, 5.0, playable_arrays(Trainer(recipe, 10).init()), {})


@pytest.mark.parametrize("on_gpu", [False, True], ids=["CPU path", "GPU path"])
@pytest.mark.parametrize("name", ["lava", "duralava"])
@pytest.mark.parametrize("frames", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_playing_keeps_caches_and_memory_flat(name: str, on_gpu: bool, frames: int) -> None:
    quick = frames < 2000
    with use_gpu_path(on_gpu):
        if name == "duralava":
            weights = untrained_duralava(narrow=quick)
        else:
            weights = untrained_lava() if quick else load_weights("lava-64")
        times = (n / 30 for n in itertools.count())
        playing = Rollout(weights).play(times)
        before = (0, 0.0)
        for n, _ in enumerate(itertools.islice(playing, frames)):
            if n == frames // 4:
                before = (cached(), resident_memory_gb())
        assert cached() == before[0]
        # A cache that has a stream as its key gets four entries of 0.75 kB a frame: 4.5 MB in 1,500 frames.
        assert resident_memory_gb() - before[1] < 0.0025 * max(1, frames / 1500)
