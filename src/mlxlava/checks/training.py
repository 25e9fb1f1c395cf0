"""Checks of training steps: results of every kind of step, kernels for a GPU, time, and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxlava.backend import Tree, arrays_by_name, memory_budget_gb, mx, on_cpu, operations_of_graph
from mlxlava.backend.kernel_count import MAX_KERNEL_BUFFERS
from mlxlava.checks.base import (
    CHECKED_RECIPES,
    Check,
    at_most_check,
    fail_without_compiler,
    largest_value,
    measure_once,
    on_checked_device,
    on_reference_device,
)
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.training.memory_plan import predict_peak_gb, split_to_fit_memory
from mlxlava.training.step import StepKind, Trainer

_NAMES_OF_STEP_KINDS = {(False, False): "without D", (True, False): "with D", (True, True): "penalties"}
_NETWORKS = ("generator", "dynamics", "encoder", "discriminator")
_FLOAT16_SETTINGS = {"training.precision": "float16"}

# Settings for networks so small that a step takes milliseconds. With SGD and a learning rate of 1, a weight
# moves by its gradient. Adam would divide rounding errors by rounding errors.
_TINY_SETTINGS = {
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
_TINY_SETTINGS_OF_RECIPE: dict[str, dict[str, Any]] = {
    "lava": {
        "dynamics.couplings": 2,
        "encoder.context_frames": 3,
        "encoder.widths": (6, 8),
        "encoder.hidden": (10,),
    },
    "duralava": {"discriminator.features": 6, "discriminator.state": 5},
}


def _random_batch(recipe: Recipe) -> tuple[mx.array, mx.array]:
    """Random frames, and the learned steps of the frames."""
    data, views = recipe.data, recipe.encoder.context_frames
    drawn = data.drawn_frames or data.seq_len
    shape = (data.batch_size, views + drawn, *data.size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    times = np.concatenate([np.linspace(0, data.seq_len - 1, count) for count in (views, drawn)])
    return mx.array(frames), mx.array(np.tile(times.astype(np.int32), (data.batch_size, 1)))


# --- every kind of step, tiny ---


def tiny_step_checks() -> list[Check]:
    """Checks of every kind of step: eager, compiled, in micro-batches, recomputed and in float16."""
    checks = []
    for name in CHECKED_RECIPES:
        recipe = override(load_recipe(name), {**_TINY_SETTINGS, **_TINY_SETTINGS_OF_RECIPE[name]})
        split = override(recipe, {"training.micro_batches": 2})
        # In micro-batches, BatchNorm sees less of the batch. So a step of duralava has other results then.
        whole = split if name == "duralava" else recipe
        again = override(recipe, {"training.recompute": True})
        checks += [
            _equal_steps_check(f"{name}, eager", recipe, recipe),
            _equal_steps_check(f"{name}, compiled", recipe, recipe, compiled=True),
            _equal_steps_check(f"{name}, in two micro-batches", split, whole),
            _equal_steps_check(f"{name}, recomputed", again, recipe),
            _step_direction_check(
                f"{name}, float16: cosine to float32", override(recipe, _FLOAT16_SETTINGS), recipe
            ),
        ]
    return checks


def _equal_steps_check(name: str, recipe: Recipe, other: Recipe, compiled: bool = False) -> Check:
    """A check that steps of ``recipe`` on the device equal steps of ``other`` on the reference."""
    meaning = "Training does not learn here what it should. Do not train this way on this machine. Report it."
    check = at_most_check(name, 1e-3, meaning, lambda: largest_value(_step_errors(recipe, other, compiled)))
    return fail_without_compiler(check) if compiled else check


def _step_direction_check(name: str, recipe: Recipe, other: Recipe) -> Check:
    """A check that steps on the device move weights in nearly the same direction as on the reference."""

    def measure() -> tuple[str, bool]:
        value, kind = min(_step_cosines(recipe, other))
        return f"{value:.3f} {kind}", value > 0.95

    meaning = (
        "Gradients in float16 differ too much from those in float32. Do not set training.precision=float16 "
        "on this machine."
    )
    return Check(name, "> 0.95", meaning, measure)


WeightChanges = dict[str, npt.NDArray[np.float64]]


def _weight_changes(recipe: Recipe, kind: StepKind, compiled: bool) -> WeightChanges:
    """How far a step moves the weights of each network; and the step's ``terms``."""
    trainer = Trainer(recipe, 10, compiled=compiled)
    state = trainer.init()
    after, terms = trainer(state, *_random_batch(recipe), 1, kind=kind)
    mx.eval(after, terms)
    if "skipped" in terms and terms.pop("skipped").item():
        raise ValueError("The step was skipped, since gradients overflowed.")

    def flatten(tree: Tree) -> npt.NDArray[np.float64]:
        return np.concatenate([np.array(array).ravel() for array in arrays_by_name(tree).values()]).astype(
            float
        )

    moves = {part: flatten(after[part]) - flatten(state[part]) for part in _NETWORKS if part in state}
    return {**moves, "terms": flatten(dict(sorted(terms.items())))}


def _step_kinds(recipe: Recipe) -> list[StepKind]:
    return Trainer(recipe, 10, compiled=False).step_kinds


def _step_errors(one: Recipe, other: Recipe, compiled: bool) -> Iterator[tuple[float, str]]:
    """Errors of weight changes: ``one`` recipe on the device against the ``other`` on the reference."""
    for kind in _step_kinds(one):
        with on_reference_device():
            exact = _weight_changes(other, kind, compiled=False)
        with on_checked_device():
            found = _weight_changes(one, kind, compiled=compiled)
        for part, move in exact.items():
            off = np.linalg.norm(found[part] - move)
            # In steps without D, the discriminator does not change.
            yield float(off / (np.linalg.norm(move) or 1.0)), _NAMES_OF_STEP_KINDS[kind]


def _step_cosines(one: Recipe, other: Recipe) -> Iterator[tuple[float, str]]:
    """Cosines of weight changes: ``one`` recipe on the device and the ``other`` on the reference."""
    for kind in _step_kinds(one):
        with on_reference_device():
            exact = _weight_changes(other, kind, compiled=False)
        with on_checked_device():
            found = _weight_changes(one, kind, compiled=False)
        for part in _NETWORKS:
            if part in exact and exact[part].any():
                norms = np.linalg.norm(exact[part]) * np.linalg.norm(found[part])
                value = float(exact[part] @ found[part] / norms) if np.isfinite(norms) and norms else -1.0
                yield value, _NAMES_OF_STEP_KINDS[kind]


# --- the recipes' own steps ---


def compiled_step_checks() -> list[Check]:
    """Checks of compiled steps of the real recipes. Kernels are counted; a GPU also computes the steps."""
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("lava", f"{length} learned steps", {"data.seq_len": length}) for length in (32, 64, 200)
    ]
    cases += [
        ("lava", "float16", _FLOAT16_SETTINGS),
        ("duralava", "20 learned steps", {}),
        ("duralava", "float16", _FLOAT16_SETTINGS),
    ]
    meaning = (
        f"A kernel has more than {MAX_KERNEL_BUFFERS} arrays, or what the step computes is not finite. "
        "Training with these settings fails on a GPU. Report it."
    )
    allowed = f"≤ {MAX_KERNEL_BUFFERS}" + ("" if on_cpu() else ", finite")
    return [
        fail_without_compiler(
            Check(
                f"{name}, {how}", allowed, meaning, partial(_count_buffers_of_largest_kernel, name, settings)
            )
        )
        for name, how, settings in cases
    ]


def _count_buffers_of_largest_kernel(name: str, settings: dict[str, Any]) -> tuple[str, bool]:
    """Count the arrays that a step's largest kernel reads and writes. On a GPU also compute the step."""
    recipe = override(load_recipe(name), {**settings, "loss.d_start": 0.0})
    if not on_cpu():
        recipe = split_to_fit_memory(recipe, memory_budget_gb(), gpu=not on_cpu())
    with on_checked_device():
        trainer = Trainer(recipe, 10)
        state = trainer.init()
        kind = trainer.step_kinds[-1]  # the last kind has penalties, if the recipe has any: it is the largest
        after = trainer(state, *_random_batch(recipe), 1, kind=kind)
        most = max((kernel.buffers for kernel in operations_of_graph(after) if kernel.is_fused), default=0)
        if not most:
            return "not compiled", False
        if on_cpu():
            return str(most), most <= MAX_KERNEL_BUFFERS
        mx.eval(after)
        finite = all(mx.isfinite(array).all().item() for array in arrays_by_name(after).values())
        skipped = "skipped" in after[1] and bool(after[1]["skipped"].item())
    what = "not finite" if not finite else "skipped" if skipped else "finite"
    return f"{most}, {what}", what == "finite" and most <= MAX_KERNEL_BUFFERS


# --- how long, and how much memory ---

_CPU_BATCH_SIZE = 8
_MAX_PEAK_TO_PLAN_RATIO = 1.15  # a step may take so much more memory than planned


def full_step_checks() -> list[Check]:
    """Checks of three steps of lava in a row: their time, and their memory compared with the plan."""
    limit = 20.0 if on_cpu() else 5.0
    recipe, measured = (
        measure_once(_recipe_of_full_steps),
        measure_once(lambda: _measure_three_steps(recipe())),
    )

    def check_step_seconds() -> tuple[str, bool]:
        first, third, _ = measured()
        return f"{first:.2f} s, {third:.2f} s", third <= limit

    def check_peak_memory() -> tuple[str, bool]:
        found, planned = measured()[2], predict_peak_gb(recipe(), gpu=not on_cpu())
        return f"{found:.2f} of {planned:.2f} GB", found <= _MAX_PEAK_TO_PLAN_RATIO * planned

    return [
        Check(
            f"lava, {_CPU_BATCH_SIZE} clips: first, third" if on_cpu() else "lava: first and third step",
            f"third ≤ {limit:g} s",
            "Training fails on this machine, or takes long. Close other programs and check again. Report it.",
            check_step_seconds,
        ),
        Check(
            "peak memory against mlxlava plan",
            f"≤ {_MAX_PEAK_TO_PLAN_RATIO - 1:.0%} above",
            "Training fails, or takes more memory than is planned. Give train a smaller --memory. Report it.",
            check_peak_memory,
        ),
    ]


def _recipe_of_full_steps() -> Recipe:
    """The recipe lava, with D from the first step on.

    It fits into the memory of a GPU; a CPU has few clips.
    """
    recipe = override(load_recipe("lava"), {"loss.d_start": 0.0})
    if on_cpu():
        return override(recipe, {"data.batch_size": _CPU_BATCH_SIZE})
    return split_to_fit_memory(recipe, memory_budget_gb(), gpu=not on_cpu())


def _measure_three_steps(recipe: Recipe) -> tuple[float, float, float]:
    """Make three steps with penalties. Returns seconds of the first and third, and the peak memory in GB."""
    # Steps are made as in training. But on a CPU they are not compiled, since g++ takes minutes for a new
    # step.
    with on_reference_device() if on_cpu() else on_checked_device():
        trainer = Trainer(recipe, 10, compiled=not on_cpu())
        state = trainer.init()
        frames, times = _random_batch(recipe)
        mx.eval(frames, times)
        before = sum(array.nbytes for array in arrays_by_name([state, frames, times]).values())
        others = mx.get_active_memory() - before  # arrays of earlier checks
        mx.reset_peak_memory()
        seconds = []
        for step in range(3):
            began = time.perf_counter()
            state, terms = trainer(state, frames, times, step, kind=StepKind(True, True))
            mx.eval(state, terms)
            seconds.append(time.perf_counter() - began)
            if not all(np.isfinite(np.array(term)) for term in terms.values()):
                raise ValueError("A loss is not finite.")
        return seconds[0], seconds[2], (mx.get_peak_memory() - max(others, 0)) / 1e9
