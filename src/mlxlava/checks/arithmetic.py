"""Checks of matrix products, random numbers and states."""

from __future__ import annotations

import math
import statistics

import numpy as np
import numpy.typing as npt

from mlxlava.backend import Tree, mx, tree_map
from mlxlava.checks.base import Check, at_most_check, on_checked_device
from mlxlava.config import load_recipe, override
from mlxlava.models.state_step import fixed_bases, make_dynamics
from mlxlava.rollout.weights import load_weights

_ROLLED_STEP_COUNT, _ROLLED_LAMP_COUNT = 1000, 32


# --- products ---


def matrix_product_checks() -> list[Check]:
    """Checks of matrix products."""
    return [
        at_most_check(
            "float32 products, 256×1024×256",
            1e-5,
            "Products are rounded, to TF32 most likely. States will drift in a long lamp. "
            "Set MLX_ENABLE_TF32=0 and check again.",
            _matrix_product_error,
        )
    ]


def _matrix_product_error() -> float:
    """The largest relative error of products in each orientation, against float64 (root mean square)."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((256, 1024), np.float32), rng.standard_normal((1024, 256), np.float32)
    with np.errstate(all="ignore"):  # with Accelerate, NumPy warns without a reason
        exact = a.astype(np.float64) @ b.astype(np.float64)
    turned_a, turned_b = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    with on_checked_device():
        left, right = mx.array(a), mx.array(b)
        found = [
            (left @ right, exact),
            (mx.array(turned_a).T @ right, exact),
            (left @ mx.array(turned_b).T, exact),
            (mx.addmm(mx.zeros((256,)), left, right), exact),
            (left[:1] @ right, exact[:1]),
        ]
        errors = [np.linalg.norm(np.array(one) - other) / np.linalg.norm(other) for one, other in found]
    return float(max(errors))


# --- random numbers and states ---


def state_checks() -> list[Check]:
    """Checks of random numbers, and of states that are rolled for a long time."""
    other = "A seed gives another lamp here than on other machines, and a run cannot be repeated elsewhere."
    return [
        Check("random bits", "0 wrong", other, _count_wrong_random_words),
        at_most_check("normal numbers", 1e-3, other, _random_normal_error),
        at_most_check(
            f"{_ROLLED_STEP_COUNT:,} state steps of {_ROLLED_LAMP_COUNT} lamps",
            1e-3,
            "The state step loses precision here. A lamp is another one after some minutes, and may drift.",
            _rolled_states_error,
        ),
        at_most_check(
            f"norms after {_ROLLED_STEP_COUNT:,} steps, rho = 1",
            1e-4,
            "Rotations do not keep the length of a state, so pictures get worse while a lamp plays for long.",
            _state_norm_error,
        ),
    ]


_KEY_HALVES = (3, 12345)  # both halves of the key differ from zero
_RANDOM_WORD_COUNT = 8192


def _random_key() -> mx.array:
    return mx.random.key((_KEY_HALVES[0] << 32) + _KEY_HALVES[1])


def threefry_words(key: tuple[int, int], count: int) -> npt.NDArray[np.uint32]:
    """The random words of MLX for a key: Threefry-2×32 with 20 rounds (Salmon 2011). ``count`` is even."""
    with np.errstate(over="ignore"):
        first = np.arange(count // 2, dtype=np.uint32)
        second = first + np.uint32(count // 2)
        keys = [np.uint32(key[0]), np.uint32(key[1]), np.uint32(key[0] ^ key[1] ^ 0x1BD11BDA)]
        first, second = first + keys[0], second + keys[1]
        for group in range(5):
            for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
                first = first + second
                second = (second << np.uint32(turn)) | (second >> np.uint32(32 - turn))
                second = second ^ first
            first = first + keys[(group + 1) % 3]
            second = second + keys[(group + 2) % 3] + np.uint32(group + 1)
    return np.concatenate([first, second])


def _count_wrong_random_words() -> tuple[str, bool]:
    with on_checked_device():
        # Keys that are split off a key are its random words, unchanged.
        bits = np.array(mx.random.split(_random_key(), _RANDOM_WORD_COUNT // 2)).reshape(-1)
    wrong = int((bits != threefry_words(_KEY_HALVES, _RANDOM_WORD_COUNT)).sum())
    return f"{wrong} of {_RANDOM_WORD_COUNT:,} wrong", wrong == 0


def _random_normal_error() -> float:
    """The largest error of normal numbers, against the inverse distribution function of the same words."""
    with on_checked_device():
        found = np.array(mx.random.normal((_RANDOM_WORD_COUNT,), key=_random_key()))
    uniform = np.clip(threefry_words(_KEY_HALVES, _RANDOM_WORD_COUNT) / (2.0**32 - 1), 1e-9, 1 - 1e-9)
    exact = np.array([statistics.NormalDist().inv_cdf(float(each)) for each in uniform])
    return float(np.abs(found - exact).max())


def _rolled_states_error() -> float:
    """The error of the shipped lamp's states against float64 on the CPU, root mean square."""
    weights = load_weights("lava-64")
    dynamics = make_dynamics(weights.recipe)
    arrays = {
        "weights": weights.arrays["dynamics"],
        "bases": dynamics.basis_changes(fixed_bases(weights.arrays)),
        "states": mx.random.normal(
            (_ROLLED_LAMP_COUNT, weights.recipe.generator.state_size), key=mx.random.key(1)
        ),
    }
    shape = (_ROLLED_STEP_COUNT, *arrays["states"].shape)
    arrays["noise"] = mx.random.normal(shape, key=mx.random.key(2))
    mx.eval(arrays)

    def roll(arrays: Tree) -> npt.NDArray[np.float64]:
        states = arrays["states"]
        for step in range(_ROLLED_STEP_COUNT):
            states = dynamics.step(arrays["weights"], arrays["bases"], states, arrays["noise"][step])
            if step % 50 == 0:
                mx.eval(states)
        return np.array(states).astype(np.float64)

    with on_checked_device():
        found = roll(arrays)
    with mx.stream(mx.cpu):
        exact = roll(tree_map(lambda array: array.astype(mx.float64), arrays))
    return float(np.sqrt(((found - exact) ** 2).mean()))


def _state_norm_error() -> float:
    """The largest relative change of a state's norm by rotations of untrained weights."""
    recipe = override(load_recipe("lava"), {"dynamics.rho": 1.0})
    dynamics = make_dynamics(recipe)
    with on_checked_device():
        weights, bases = dynamics.init(mx.random.key(0)), dynamics.basis_changes(dynamics.init_bases())
        states = mx.random.normal((_ROLLED_LAMP_COUNT, recipe.generator.state_size), key=mx.random.key(1))
        before = np.linalg.norm(np.array(states), axis=1)
        for step in range(_ROLLED_STEP_COUNT):
            states = dynamics.step(weights, bases, states, mx.zeros_like(states))
            if step % 50 == 0:
                mx.eval(states)
        after = np.linalg.norm(np.array(states), axis=1)
    change = np.abs(after / before - 1)
    return float(change.max()) if np.isfinite(change).all() else math.inf
