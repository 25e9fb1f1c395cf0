"""What would fail on a GPU, held on a CPU: too wide kernels, float16 at full batches, leaks."""

from __future__ import annotations

import functools
import gc
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxlava.backend import gpu_path, kernels, mx, resident_memory, tree_map
from mlxlava.backend.cpu.chunks import Chunks
from mlxlava.backend.kernels import MOST_BUFFERS
from mlxlava.backend.ops import Convolution, conv3, conv4_stride2, conv4_transposed
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.footage.prepare import prepare_lamp
from mlxlava.models.duralava import batch_norm_leaky_relu
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import make_dynamics
from mlxlava.paths import latest_checkpoint
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import Weights, load_weights
from mlxlava.training.checkpoint import load_checkpoint
from mlxlava.training.folder import start_run
from mlxlava.training.step import Kind, Trainer

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
        found = kernels(trainer(state, frames, times, 0, kind=kind))
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


@pytest.mark.parametrize(
    ("form", "side", "outputs"),
    [(conv3, 3, 8), (conv4_stride2, 4, 8), (conv4_transposed, 4, 8), (conv4_transposed, 4, 3)],
)
def test_no_picture_is_a_kernel(form: Convolution, side: int, outputs: int) -> None:
    """The gradient with respect to a weight is a product of patches, not a convolution with whole pictures.

    The second gradients are made of the same operations (tests/backend/test_convolution.py).
    """
    x = mx.ones((2, 8, 8, 4))
    y = mx.ones_like(form(x, mx.ones((outputs, side, side, 4))))
    with gpu_path():
        gradient = mx.grad(lambda weight: (form(x, weight) * y).sum())(mx.ones((outputs, side, side, 4)))
        names = [kernel.name for kernel in kernels({"gradient": gradient})]
    assert "Matmul" in names and "Convolution" not in names


def test_a_kernel_of_many_sums_is_found() -> None:
    """The count sees what it is to see: a sum of many arrays is one kernel of many buffers."""
    arrays = [mx.ones((4,)) * n for n in range(30)]
    mx.eval(arrays)

    def total(*arrays: mx.array) -> mx.array:
        half = len(arrays) // 2
        return arrays[0] if half == 0 else total(*arrays[:half]) + total(*arrays[half:])

    assert max(kernel.buffers for kernel in kernels({"sum": mx.compile(total)(*arrays)})) > 20


def test_statistics_of_a_whole_batch_do_not_overflow_in_half_precision() -> None:
    """640×16×16 values, as `duralava` has them: the sum of their squares is beyond float16."""
    x = 3 * mx.random.normal((640, 16, 16, 8), key=mx.random.key(0)) + 1
    slope = mx.random.normal(x.shape, key=mx.random.key(1)) / 64
    weights = {"scale": mx.full((8,), 1.5), "bias": mx.full((8,), 0.25)}

    def loss(weights: dict[str, mx.array], x: mx.array) -> tuple[mx.array, mx.array]:
        (y,), stats = batch_norm_leaky_relu(weights, Chunks([x]))
        return (y.astype(mx.float32) * slope).sum(), stats["var"]

    results = []
    for dtype in (mx.float32, mx.float16):
        given = tree_map(lambda a, dtype=dtype: a.astype(dtype), (weights, x))
        with gpu_path():
            (value, var), gradients = mx.value_and_grad(loss, (0, 1))(*given)
        by_weights, by_x = tree_map(lambda a: np.array(a.astype(mx.float32)), gradients)
        results.append((value.item(), np.array(var), by_weights["scale"], by_weights["bias"], by_x))
    for exact, half in zip(*results, strict=True):
        assert np.isfinite(half).all()
        assert np.linalg.norm(half - exact) <= 0.01 * np.linalg.norm(exact)


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
        after, terms = trainer(state, mx.array(frames), mx.array(times), 1, kind=Kind(True, False))
        mx.eval(after, terms)
    assert terms["skipped"].item() == 0
    assert not np.array_equal(
        np.array(state["generator"]["up0"]["weight"]), after["generator"]["up0"]["weight"]
    )


def cached() -> int:
    """Entries in all caches of the package's functions."""
    found = [each for each in gc.get_objects() if isinstance(each, functools._lru_cache_wrapper)]
    ours = [each for each in found if getattr(each, "__module__", "").startswith("mlxlava")]
    return sum(each.cache_info().currsize for each in ours)


@pytest.mark.parametrize("on_gpu", [False, True], ids=["CPU path", "GPU path"])
@pytest.mark.parametrize("name", ["lava", "duralava"])
@pytest.mark.parametrize("frames", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_playing_keeps_caches_and_memory_flat(name: str, on_gpu: bool, frames: int, tmp_path: Path) -> None:
    with gpu_path(on_gpu):
        weights = load_weights("lava") if name == "lava" else untrained_duralava(narrow=frames < 2000)
        times = (n / 30 for n in itertools.count())
        playing = Rollout(weights).play(times)
        before = (0, 0.0)
        for n, _ in enumerate(itertools.islice(playing, frames)):
            if n == frames // 4:
                before = (cached(), resident_memory())
        assert cached() == before[0]
        # A cache that has a stream as its key gets four entries of 0.75 kB a frame: 4.5 MB in 1,500 frames.
        assert resident_memory() - before[1] < 0.0025 * max(1, frames / 1500)


def untrained_duralava(*, narrow: bool) -> Weights:
    recipe = load_recipe("duralava")
    if narrow:
        recipe = override(recipe, {"generator.widths": [16, 8, 8, 8], "dynamics.hidden": [32]})
    generator, dynamics = make_generator(recipe), make_dynamics(recipe)
    keys = mx.random.split(mx.random.key(0))
    stats = {"generator": generator.init_stats(), "dynamics": dynamics.init_bases()}
    arrays = {"generator": generator.init(keys[0]), "dynamics": dynamics.init(keys[1]), "stats": stats}
    return Weights(recipe, 5.0, arrays, {})
