"""Checks of playing: the shipped lamp's frames are right, they come fast enough, and no memory grows."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import numpy.typing as npt

from mlxlava.backend import mx, on_cpu, resident_memory_gb
from mlxlava.checks.base import CHECKED_RECIPES, Check, on_checked_device, on_reference_device
from mlxlava.config import load_recipe, override
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import make_dynamics
from mlxlava.rollout.roll import Rollout, TimedFrame
from mlxlava.rollout.weights import Weights, load_weights

_PLAY_FPS = 30  # more than the learned steps per second, so that frames between steps are drawn too
PLAYED_FRAMES = 200
_WARM_UP_FRAMES = 50  # frames before the measurement, after which nothing should grow any more
_MAX_GROWTH_MEGABYTES = 4  # growth that does not count as a leak


# --- frames ---


def frame_checks() -> list[Check]:
    """Checks of frames of the shipped lamp against frames of the reference."""

    def compare(count: int, together: bool) -> tuple[str, bool]:
        with on_reference_device():
            exact = _play_first_frames(count, together=False)
        with on_checked_device():
            found = _play_first_frames(count, together=together)
        off = int(np.abs(found.astype(int) - exact).max())
        return f"{off} grey level{'s' * (off != 1)} off", off <= 1

    meaning = "Lamps do not look here as they do where they were learned. Report it."
    return [
        Check("4 frames, one at a time", "≤ 1 level", meaning, lambda: compare(4, False)),
        Check("16 frames at once", "≤ 1 level", meaning, lambda: compare(16, True)),
    ]


def _play_first_frames(count: int, together: bool) -> npt.NDArray[np.uint8]:
    """The first frames of the shipped lamp (N, H, W, 3)."""
    rollout = Rollout(load_weights())
    played = (rollout.play_in_batches if together else rollout.play)(n / _PLAY_FPS for n in range(count))
    return np.stack([frame for _, frame in played])


# --- for long ---


def endurance_checks() -> list[Check]:
    """Checks of lamps that play for a while: memory, caches, and frames per second."""
    contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {"": on_checked_device}
    if on_cpu():
        contexts = {"": on_reference_device, ", as on GPUs": on_checked_device}
    grows = "Something grows in every frame, so that a lamp cannot play for ever. Report it."
    checks = [
        Check(
            f"{name}{way}: what grows",
            f"0, ≤ {_MAX_GROWTH_MEGABYTES} MB",
            grows,
            partial(_measure_memory_growth, name, context),
        )
        for name, (way, context) in itertools.product(CHECKED_RECIPES, contexts.items())
    ]
    least = 20 if on_cpu() else 60
    slow = "Lamps drop frames here. Close other programs, or play with a lower --fps."
    return [*checks, Check("lava, frames a second", f"> {least}", slow, lambda: _measure_speed(least))]


def _measure_memory_growth(
    name: str, context: Callable[[], AbstractContextManager[None]]
) -> tuple[str, bool]:
    """Measure what a playing lamp adds to caches, to Python's objects and to memory."""
    with context(), _warmed_up_lamp(_weights_to_check(name)) as playing:
        before = _count_cached_objects_and_memory()
        for _ in range(PLAYED_FRAMES):
            next(playing)
        entries, objects, arrays, process = (
            now - then for now, then in zip(_count_cached_objects_and_memory(), before, strict=True)
        )
    megabytes = max(arrays, process)
    ok = entries == 0 and objects < PLAYED_FRAMES and megabytes <= _MAX_GROWTH_MEGABYTES
    more = f", {objects:.0f} objects" if objects >= PLAYED_FRAMES else ""
    return f"{entries:.0f} cached, {megabytes:.1f} MB{more}", ok


def _count_cached_objects_and_memory() -> tuple[float, float, float, float]:
    """Count entries in the package's caches, objects of Python, MB of MLX's arrays, MB of the process."""
    gc.collect()
    entries = 0
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "mlxlava":
            cached = [value for value in vars(module).values() if hasattr(value, "cache_info")]
            entries += sum(value.cache_info().currsize for value in cached)
    return entries, len(gc.get_objects()), mx.get_active_memory() / 1e6, 1e3 * resident_memory_gb()


def _weights_to_check(name: str) -> Weights:
    """The shipped weights, or untrained weights of the recipe duralava."""
    if name == "lava":
        return load_weights()
    # Nothing that could grow depends on the widths.
    recipe = override(load_recipe(name), {"generator.widths": (16, 8, 8, 8), "dynamics.hidden": (32,)})
    generator, dynamics = make_generator(recipe), make_dynamics(recipe)
    keys = mx.random.split(mx.random.key(0))
    stats = {"generator": generator.init_stats(), "dynamics": dynamics.init_bases()}
    arrays = {"generator": generator.init(keys[0]), "dynamics": dynamics.init(keys[1]), "stats": stats}
    return Weights(recipe, 5.0, arrays, {})


def _measure_speed(least_fps: float) -> tuple[str, bool]:
    """Measure the frames per second that this machine plays, one at a time."""
    with _warmed_up_lamp(load_weights()) as playing:
        began = time.perf_counter()
        for _ in range(PLAYED_FRAMES):
            next(playing)
        rate = PLAYED_FRAMES / (time.perf_counter() - began)
    return f"{rate:.0f}", rate > least_fps


@contextlib.contextmanager
def _warmed_up_lamp(weights: Weights) -> Iterator[Iterator[TimedFrame]]:
    """A lamp that has already played for a while."""
    playing = Rollout(weights).play(n / _PLAY_FPS for n in itertools.count())
    with contextlib.closing(playing):  # type: ignore[type-var]  # it is a generator
        for _ in range(_WARM_UP_FRAMES):
            next(playing)
        yield playing
