"""Playing: the shipped lamp's frames are right, they come fast enough, and nothing grows."""

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

from mlxlava.backend import mx, on_cpu, resident_memory
from mlxlava.checks.base import RECIPES, Check, device, reference
from mlxlava.config import load_recipe, override
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import make_dynamics
from mlxlava.rollout.roll import Rollout, Timed
from mlxlava.rollout.weights import Weights, load_weights

_FPS = 30  # frames between learned steps, which are fewer a second
FRAMES = 200
_WARM = 50  # frames before that, after which nothing should grow any more
_MEGABYTES = 4  # that may be taken without being a leak


# --- frames ---


def frames() -> list[Check]:
    """Frames of the shipped lamp against those of the reference."""

    def compare(count: int, together: bool) -> tuple[str, bool]:
        with reference():
            exact = _play(count, together=False)
        with device():
            found = _play(count, together=together)
        off = int(np.abs(found.astype(int) - exact).max())
        return f"{off} grey level{'s' * (off != 1)} off", off <= 1

    meaning = "Lamps do not look here as they do where they were learned. Report it."
    return [
        Check("4 frames, one at a time", "≤ 1 level", meaning, lambda: compare(4, False)),
        Check("16 frames at once", "≤ 1 level", meaning, lambda: compare(16, True)),
    ]


def _play(count: int, together: bool) -> npt.NDArray[np.uint8]:
    """The first frames of the shipped lamp (N, H, W, 3)."""
    rollout = Rollout(load_weights())
    played = (rollout.film if together else rollout.play)(n / _FPS for n in range(count))
    return np.stack([frame for _, frame in played])


# --- for long ---


def endurance() -> list[Check]:
    """Lamps that play on: memory, caches, and frames a second."""
    contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {"": device}
    if on_cpu():
        contexts = {"": reference, ", as on GPUs": device}
    grows = "Something grows in every frame, so that a lamp cannot play for ever. Report it."
    checks = [
        Check(f"{name}{way}: what grows", f"0, ≤ {_MEGABYTES} MB", grows, partial(_growth, name, context))
        for name, (way, context) in itertools.product(RECIPES, contexts.items())
    ]
    least = 20 if on_cpu() else 60
    slow = "Lamps drop frames here. Close other programs, or play with a lower --fps."
    return [*checks, Check("lava, frames a second", f"> {least}", slow, lambda: _speed(least))]


def _growth(name: str, context: Callable[[], AbstractContextManager[None]]) -> tuple[str, bool]:
    """What a lamp that plays on adds to caches, to Python's objects and to memory."""
    with context(), _played(_lamp(name)) as playing:
        before = _held()
        for _ in range(FRAMES):
            next(playing)
        entries, objects, arrays, process = (now - then for now, then in zip(_held(), before, strict=True))
    megabytes = max(arrays, process)
    ok = entries == 0 and objects < FRAMES and megabytes <= _MEGABYTES
    more = f", {objects:.0f} objects" if objects >= FRAMES else ""
    return f"{entries:.0f} cached, {megabytes:.1f} MB{more}", ok


def _held() -> tuple[float, float, float, float]:
    """Entries in the package's caches, objects of Python, MB of MLX's arrays, MB of the process."""
    gc.collect()
    entries = 0
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "mlxlava":
            cached = [value for value in vars(module).values() if hasattr(value, "cache_info")]
            entries += sum(value.cache_info().currsize for value in cached)
    return entries, len(gc.get_objects()), mx.get_active_memory() / 1e6, 1e3 * resident_memory()


def _lamp(name: str) -> Weights:
    """The shipped lamp, or one of duralava's that has not learned anything."""
    if name == "lava":
        return load_weights()
    # Nothing that could grow depends on the widths.
    recipe = override(load_recipe(name), {"generator.widths": (16, 8, 8, 8), "dynamics.hidden": (32,)})
    generator, dynamics = make_generator(recipe), make_dynamics(recipe)
    keys = mx.random.split(mx.random.key(0))
    stats = {"generator": generator.init_stats(), "dynamics": dynamics.init_bases()}
    arrays = {"generator": generator.init(keys[0]), "dynamics": dynamics.init(keys[1]), "stats": stats}
    return Weights(recipe, 5.0, arrays, {})


def _speed(least: float) -> tuple[str, bool]:
    """Frames a second as this machine plays them, one at a time."""
    with _played(load_weights()) as playing:
        began = time.perf_counter()
        for _ in range(FRAMES):
            next(playing)
        rate = FRAMES / (time.perf_counter() - began)
    return f"{rate:.0f}", rate > least


@contextlib.contextmanager
def _played(weights: Weights) -> Iterator[Iterator[Timed]]:
    """A lamp that has played for a while."""
    playing = Rollout(weights).play(n / _FPS for n in itertools.count())
    with contextlib.closing(playing):  # type: ignore[type-var]  # it is a generator
        for _ in range(_WARM):
            next(playing)
        yield playing
