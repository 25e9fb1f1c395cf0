"""Training steps: right in every way to make them, fit for a GPU's kernels, quick, and as planned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxlava.backend import Tree, kernels, memory_budget, mx, named_arrays, on_cpu
from mlxlava.backend.kernels import MOST_BUFFERS
from mlxlava.checks.base import (
    RECIPES,
    Check,
    at_most,
    compiling,
    device,
    once,
    reference,
    worst,
)
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.training.plan import fit_into, predict
from mlxlava.training.step import Kind, Trainer

_KINDS = {(False, False): "without D", (True, False): "with D", (True, True): "penalties"}
_PARTS = ("generator", "dynamics", "encoder", "discriminator")
_FLOAT16 = {"training.precision": "float16"}

# Networks of a recipe's kind, so small that a step takes milliseconds. With SGD and a rate of 1 a weight
# moves by its gradient; Adam would divide rounding by rounding.
_TINY = {
    "data.size": (16, 16),
    "data.seq_len": 4,
    "data.batch_size": 4,
    "generator.state_size": 8,
    "generator.widths": (8, 6),
    "dynamics.hidden": (12,),
    "discriminator.widths": (6, 8),
    "discriminator.hidden": (10,),
    "training.optimizer": "sgd",
    "training.learning_rate": 1.0,
    "training.update_clipping": 0.0,
    "training.warm_up": 0,
    "training.schedule": "constant",
    "training.r_rate": 1.0,
    "training.d_rate": 1.0,
}
_TINY_OF: dict[str, dict[str, Any]] = {
    "lava": {
        "dynamics.couplings": 2,
        "encoder.context_frames": 3,
        "encoder.widths": (6, 8),
        "encoder.hidden": (10,),
    },
    "duralava": {"discriminator.features": 6, "discriminator.state": 5},
}


def _batch(recipe: Recipe) -> tuple[mx.array, mx.array]:
    """Frames without a meaning, and the learned steps at which they are."""
    data, views = recipe.data, recipe.encoder.context_frames
    drawn = data.drawn_frames or data.seq_len
    shape = (data.batch_size, views + drawn, *data.size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    times = np.concatenate([np.linspace(0, data.seq_len - 1, count) for count in (views, drawn)])
    return mx.array(frames), mx.array(np.tile(times.astype(np.int32), (data.batch_size, 1)))


# --- every kind of step, tiny ---


def steps() -> list[Check]:
    """Every kind of step of tiny recipes, in every way that it can be made."""
    checks = []
    for name in RECIPES:
        recipe = override(load_recipe(name), {**_TINY, **_TINY_OF[name]})
        split = override(recipe, {"training.micro_batches": 2})
        # In micro-batches, BatchNorm sees less of the batch: for duralava that is another step.
        whole = split if name == "duralava" else recipe
        again = override(recipe, {"training.recompute": True})
        checks += [
            _same(f"{name}, eager", recipe, recipe),
            _same(f"{name}, compiled", recipe, recipe, compiled=True),
            _same(f"{name}, in two micro-batches", split, whole),
            _same(f"{name}, recomputed", again, recipe),
            _alike(f"{name}, float16: cosine to float32", override(recipe, _FLOAT16), recipe),
        ]
    return checks


def _same(name: str, recipe: Recipe, other: Recipe, compiled: bool = False) -> Check:
    """A check that steps on the device are those of another recipe on the reference."""
    meaning = "Training does not learn here what it should. Do not train this way on this machine. Report it."
    check = at_most(name, 1e-3, meaning, lambda: worst(_step_errors(recipe, other, compiled)))
    return compiling(check) if compiled else check


def _alike(name: str, recipe: Recipe, other: Recipe) -> Check:
    """A check that steps on the device move weights nearly as those of another recipe on the reference."""

    def measure() -> tuple[str, bool]:
        value, kind = min(_step_cosines(recipe, other))
        return f"{value:.3f} {kind}", value > 0.95

    meaning = (
        "Gradients in float16 differ too much from those in float32. Do not set training.precision=float16 "
        "on this machine."
    )
    return Check(name, "> 0.95", meaning, measure)


Moves = dict[str, npt.NDArray[np.float64]]


def _moves(recipe: Recipe, kind: Kind, compiled: bool) -> Moves:
    """How far a step of a kind moves each part's weights; and ``terms``, what it says of itself."""
    trainer = Trainer(recipe, 10, compiled=compiled)
    state = trainer.init()
    after, terms = trainer(state, *_batch(recipe), 1, kind=kind)
    mx.eval(after, terms)
    if "skipped" in terms and terms.pop("skipped").item():
        raise ValueError("The step was skipped, since gradients overflowed.")

    def flat(tree: Tree) -> npt.NDArray[np.float64]:
        return np.concatenate([np.array(array).ravel() for array in named_arrays(tree).values()]).astype(
            float
        )

    moves = {part: flat(after[part]) - flat(state[part]) for part in _PARTS if part in state}
    return {**moves, "terms": flat(dict(sorted(terms.items())))}


def _kinds(recipe: Recipe) -> list[Kind]:
    return Trainer(recipe, 10, compiled=False).kinds


def _step_errors(one: Recipe, other: Recipe, compiled: bool) -> Iterator[tuple[float, str]]:
    """How far the steps of one recipe on the device are from those of the other on the reference."""
    for kind in _kinds(one):
        with reference():
            exact = _moves(other, kind, compiled=False)
        with device():
            found = _moves(one, kind, compiled=compiled)
        for part, move in exact.items():
            off = np.linalg.norm(found[part] - move)
            # The discriminator stands still without D.
            yield float(off / (np.linalg.norm(move) or 1.0)), _KINDS[kind]


def _step_cosines(one: Recipe, other: Recipe) -> Iterator[tuple[float, str]]:
    """Cosines between the moves of one recipe on the device and those of the other on the reference."""
    for kind in _kinds(one):
        with reference():
            exact = _moves(other, kind, compiled=False)
        with device():
            found = _moves(one, kind, compiled=False)
        for part in _PARTS:
            if part in exact and exact[part].any():
                norms = np.linalg.norm(exact[part]) * np.linalg.norm(found[part])
                value = float(exact[part] @ found[part] / norms) if np.isfinite(norms) and norms else -1.0
                yield value, _KINDS[kind]


# --- the recipes' own steps ---


def compiled_steps() -> list[Check]:
    """Compiled steps of the recipes as they are: counted everywhere, computed on a GPU."""
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("lava", f"{length} learned steps", {"data.seq_len": length}) for length in (32, 64, 200)
    ]
    cases += [
        ("lava", "float16", _FLOAT16),
        ("duralava", "20 learned steps", {}),
        ("duralava", "float16", _FLOAT16),
    ]
    meaning = (
        f"A kernel has more than {MOST_BUFFERS} arrays, or what the step computes is not finite. Training "
        "with these settings fails on a GPU. Report it."
    )
    allowed = f"≤ {MOST_BUFFERS}" + ("" if on_cpu() else ", finite")
    return [
        compiling(Check(f"{name}, {how}", allowed, meaning, partial(_compile, name, settings)))
        for name, how, settings in cases
    ]


def _compile(name: str, settings: dict[str, Any]) -> tuple[str, bool]:
    """Count the arrays that a step's largest kernel takes and gives; on a GPU also compute the step."""
    recipe = override(load_recipe(name), {**settings, "loss.d_start": 0.0})
    if not on_cpu():
        recipe = fit_into(recipe, memory_budget(), gpu=not on_cpu())
    with device():
        trainer = Trainer(recipe, 10)
        state = trainer.init()
        kind = trainer.kinds[-1]  # with penalties, where there are any: the largest
        after = trainer(state, *_batch(recipe), 1, kind=kind)
        most = max((kernel.buffers for kernel in kernels(after) if kernel.fused), default=0)
        if not most:
            return "not compiled", False
        if on_cpu():
            return str(most), most <= MOST_BUFFERS
        mx.eval(after)
        finite = all(mx.isfinite(array).all().item() for array in named_arrays(after).values())
        skipped = "skipped" in after[1] and bool(after[1]["skipped"].item())
    what = "not finite" if not finite else "skipped" if skipped else "finite"
    return f"{most}, {what}", what == "finite" and most <= MOST_BUFFERS


# --- how long, and how much memory ---

_CPU_BATCH = 8
_MARGIN = 1.15  # of the plan


def full_steps() -> list[Check]:
    """Steps of lava one after the other: their time, and their memory against what is planned."""
    limit = 20.0 if on_cpu() else 5.0
    recipe, measured = once(_full_recipe), once(lambda: _three_steps(recipe()))

    def times() -> tuple[str, bool]:
        first, third, _ = measured()
        return f"{first:.2f} s, {third:.2f} s", third <= limit

    def peak() -> tuple[str, bool]:
        found, planned = measured()[2], predict(recipe(), gpu=not on_cpu())
        return f"{found:.2f} of {planned:.2f} GB", found <= _MARGIN * planned

    return [
        Check(
            f"lava, {_CPU_BATCH} clips: first, third" if on_cpu() else "lava: first and third step",
            f"third ≤ {limit:g} s",
            "Training fails on this machine, or takes long. Close other programs and check again. Report it.",
            times,
        ),
        Check(
            "peak memory against mlxlava plan",
            f"≤ {_MARGIN - 1:.0%} above",
            "Training fails, or takes more memory than is planned. Give train a smaller --memory. Report it.",
            peak,
        ),
    ]


def _full_recipe() -> Recipe:
    """The recipe lava from the first step with D on: as it fits on a GPU, with few clips on a CPU."""
    recipe = override(load_recipe("lava"), {"loss.d_start": 0.0})
    if on_cpu():
        return override(recipe, {"data.batch_size": _CPU_BATCH})
    return fit_into(recipe, memory_budget(), gpu=not on_cpu())


def _three_steps(recipe: Recipe) -> tuple[float, float, float]:
    """Seconds of the first and of the third step, with penalties, and the peak of MLX's arrays, GB."""
    # As train does it here, but not compiled on a CPU, where g++ takes minutes when it first meets a step.
    with reference() if on_cpu() else device():
        trainer = Trainer(recipe, 10, compiled=not on_cpu())
        state = trainer.init()
        frames, times = _batch(recipe)
        mx.eval(frames, times)
        before = sum(array.nbytes for array in named_arrays([state, frames, times]).values())
        others = mx.get_active_memory() - before  # of checks made before
        mx.reset_peak_memory()
        seconds = []
        for step in range(3):
            began = time.perf_counter()
            state, terms = trainer(state, frames, times, step, kind=Kind(True, True))
            mx.eval(state, terms)
            seconds.append(time.perf_counter() - began)
            if not all(np.isfinite(np.array(term)) for term in terms.values()):
                raise ValueError("A loss is not finite.")
        return seconds[0], seconds[2], (mx.get_peak_memory() - max(others, 0)) / 1e9
