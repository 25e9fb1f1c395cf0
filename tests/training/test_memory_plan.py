"""What fits: predictions follow what is drawn, and what is chosen fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlxlava.backend.ops import MAX_PATCH_BYTES
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.errors import UserError
from mlxlava.training.memory_plan import (
    gigabytes_for_more_micro_batches,
    plan_rows,
    predict_peak_gb,
    split_to_fit_memory,
)

LAVA, DURALAVA = load_recipe("lava"), load_recipe("duralava")
ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"data.batch_size": 8}
QUARTER: dict[str, Any] = {"data.size": [32, 32]}


def measured(name: str, settings: dict[str, Any], *, gpu_path: bool = False) -> float:
    """MLX's peak in a step, GB, in a process of its own; compiling would take a minute."""
    environment = {**os.environ, "MLX_DISABLE_COMPILE": "1", "MLXLAVA_GPU_PATH": str(int(gpu_path))}
    command = [sys.executable, "-m", "benchmarks.memory", "--child", name, json.dumps(settings)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return float(ended.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "gigabytes", "micro_batches"),
    [
        ("lava", QUARTER, 0.4, 1),
        ("duralava", QUARTER, 0.33, 2),
        pytest.param("lava", SMALL, 0.35, 4, marks=pytest.mark.slow),
    ],
)
def test_what_is_said_to_fit_fits(
    name: str, settings: dict[str, Any], gigabytes: float, micro_batches: int
) -> None:
    """It fits into 95 % of the memory. Busy cores may hold less at a time, which does no harm."""
    fitted = split_to_fit_memory(override(load_recipe(name), settings), gigabytes)
    assert fitted.training.micro_batches == micro_batches and not fitted.training.recompute
    assert measured(name, {**settings, "training.micro_batches": micro_batches}) < 0.95 * gigabytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lava", "duralava"])
def test_what_is_predicted_to_take_more_takes_more(name: str) -> None:
    choices: list[dict[str, Any]] = [
        QUARTER,
        {**QUARTER, "training.micro_batches": 4},
        {"data.batch_size": 16},
    ]
    by_prediction = sorted(
        choices, key=lambda settings: predict_peak_gb(override(load_recipe(name), settings))
    )
    assert by_prediction == sorted(choices, key=lambda settings: measured(name, settings))


@pytest.mark.slow
def test_the_estimate_for_gpus_is_not_below_what_their_code_takes_here() -> None:
    """MLX's convolutions on a CPU are not those of a GPU, so it can only be an order of magnitude."""
    taken = measured("lava", SMALL, gpu_path=True)
    assert taken < predict_peak_gb(override(LAVA, SMALL), gpu=True) < 3 * taken


@pytest.mark.parametrize("recipe", [LAVA, DURALAVA])
def test_more_pictures_take_more_and_micro_batches_take_less(recipe: Recipe) -> None:
    whole = predict_peak_gb(recipe)
    assert predict_peak_gb(override(recipe, {"data.size": [128, 128]})) > 2 * whole
    assert predict_peak_gb(override(recipe, {"data.batch_size": 48})) > whole
    in_parts = override(recipe, {"training.micro_batches": 4})
    assert predict_peak_gb(in_parts) < whole
    assert predict_peak_gb(override(in_parts, {"training.recompute": True})) < predict_peak_gb(in_parts)
    assert predict_peak_gb(recipe, ranks=2) < whole


def test_a_longer_roll_takes_no_more() -> None:
    assert predict_peak_gb(override(LAVA, {"data.seq_len": 200})) == predict_peak_gb(LAVA)


def test_a_gpu_takes_more_but_no_more_patches_than_a_chunk_has() -> None:
    def more(size: int) -> float:
        sized = override(LAVA, {"data.size": [size, size]})
        return predict_peak_gb(sized, gpu=True) - predict_peak_gb(sized)

    assert 2 * MAX_PATCH_BYTES / 1e9 < more(64) <= more(128) < 2
    assert more(256) == pytest.approx(more(128))
    # A chunk has a picture at least.
    assert more(2048) - more(256) == pytest.approx(2 * (4 * 2048**2 * 9 * 16 - MAX_PATCH_BYTES) / 1e9)


# Peaks of MLX's arrays on an NVIDIA H100 (MLX 0.32.4), GB.
@pytest.mark.parametrize(
    ("name", "settings", "peak"),
    [
        ("lava", {}, 3.64),
        ("duralava", {}, 5.73),
        ("lava", {"data.size": [64, 32]}, 1.69),
        ("lava", {"data.size": [64, 32], "data.batch_size": 64}, 5.85),
    ],
)
def test_the_estimate_for_cuda_is_near_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any], peak: float
) -> None:
    monkeypatch.setattr("mlxlava.backend.on_cuda", lambda: True)
    assert 0.95 * peak < predict_peak_gb(override(load_recipe(name), settings), gpu=True) < 1.75 * peak


def test_what_fits_a_gpu_is_chosen_by_what_a_gpu_takes() -> None:
    assert split_to_fit_memory(LAVA, 1.2) == LAVA
    assert split_to_fit_memory(LAVA, 1.2, gpu=True).training.micro_batches > 1
    sized = override(LAVA, {"data.size": [256, 256]})
    fitted = split_to_fit_memory(sized, 10.3, gpu=True)
    assert fitted.training.micro_batches > 1 and predict_peak_gb(fitted, gpu=True) < 10.3


@pytest.mark.parametrize("gpu", [False, True])
def test_what_is_advised_works_on_fewer_clips(gpu: bool) -> None:
    recipe = override(LAVA, {"training.micro_batches": 2})
    gigabytes = gigabytes_for_more_micro_batches(recipe, gpu=gpu)
    assert gigabytes is not None
    assert split_to_fit_memory(recipe, gigabytes, gpu=gpu).training.micro_batches == 3
    assert gigabytes_for_more_micro_batches(override(LAVA, {"training.micro_batches": 24}), gpu=gpu) is None


def test_what_fits_is_left_as_it_is() -> None:
    assert split_to_fit_memory(LAVA, 2.0) == LAVA


@pytest.mark.parametrize("gigabytes", [0.8, 0.6, 0.45])
def test_what_is_chosen_fits_and_learns_from_the_same_batch(gigabytes: float) -> None:
    fitted = split_to_fit_memory(LAVA, gigabytes)
    assert predict_peak_gb(fitted) <= gigabytes
    assert fitted.training.micro_batches > 1
    assert fitted.data == LAVA.data


def test_batch_norm_sees_as_much_of_the_batch_as_fits() -> None:
    fitted = split_to_fit_memory(DURALAVA, 1.0)
    assert fitted.training.micro_batches == 2 and not fitted.training.recompute


def test_what_cannot_fit_says_how_much_it_takes() -> None:
    with pytest.raises(UserError, match=r"takes .* GB with one clip at a time, and 0.1 GB are given"):
        split_to_fit_memory(LAVA, 0.1)


def test_a_row_for_each_size_length_and_batch() -> None:
    rows = plan_rows(LAVA, 2.0, [(64, 64), (1024, 1024)], [20], [8, 32])
    assert [(row.recipe.data.size[0], row.recipe.data.batch_size) for row in rows] == [
        (64, 8),
        (64, 32),
        (1024, 8),
        (1024, 32),
    ]
    assert rows[0].fitted == rows[0].recipe
    (estimated,) = plan_rows(LAVA, 2.0, [(64, 64)], [20], [8], gpu=True)
    assert estimated.peak == predict_peak_gb(rows[0].recipe, gpu=True) > rows[0].peak
    assert rows[2].fitted is None and rows[2].peak > 2
