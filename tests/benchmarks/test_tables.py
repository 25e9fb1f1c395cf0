"""Tables of the docs: every figure stands in its column."""

from __future__ import annotations

import pytest

from benchmarks import tables


def test_scores_stand_side_by_side() -> None:
    row = {"value": 0.2, "interval": [0.1, 0.3], "floor": 0.1, "floor_interval": [0.05, 0.15], "ratio": 2.0}
    result = {"weights": "lava", "measures": {"image.frechet": row}, "headline": {"image": 2.0}}
    head, rule, measured, headline = tables.score([result, {**result, "weights": "other"}])
    assert head == "| measure | real against real | lava | ratio | other | ratio |"
    assert rule.count("---") == 6
    assert measured.startswith("| `image.frechet` | 0.1 (0.05 … 0.15) | 0.2 (0.1 … 0.3) | 2 |")
    assert headline == "| **image** |  |  | **2** |  | **2** |"


def test_a_drift_says_which_slopes_miss_zero() -> None:
    state = dict.fromkeys(("deviation", "kurtosis", "norm"), 1.0)
    state |= dict.fromkeys(("epps_pulley_axes", "epps_pulley_directions", "covariance"), 1.0)
    flat = {"slope": 0.0, "interval": [-1.0, 1.0], "holds_zero": True, "holds_zero_together": True}
    slopes = {f"state.{name}": flat for name in state}
    slopes["image.frechet"] = {**flat, "slope": 1.0, "interval": [0.5, 1.5], "holds_zero": False}
    window = {"frames": 1000, "measures": {"image.frechet": 0.05}, "state": state, "resident_gb": 0.5}
    result = {
        "windows": [window],
        "real": {"image.frechet": [0.04, 0.05, 0.06]},
        "null": {name: [0.9, 1.1] for name in state},
        "slopes": slopes,
        "returns": {"own": 7.0, "others": 7.1, "ratio": 1.0, "interval": [0.9, 1.1]},
        "seconds": 120,
    }
    lines = tables.drift(result)
    assert lines[2].startswith("| 1,000 | 0.05 | 1.000 |")
    assert "0.04 … 0.06" in lines[3]
    assert lines[4].startswith("| *slope a decade* | 1 (0.5 … 1.5) **≠ 0** | 0 (−1 … 1) |")
    assert "6 of 7 slopes hold zero; not: image.frechet" in "\n".join(lines)


def test_a_benchmark_has_steps_the_rest_and_what_was_skipped() -> None:
    timing = {"median_s": 2.0, "min_s": 1.5, "max_s": 2.5, "repeats": 3, "peak_process_gb": 1.5}
    step = {"name": "train lava 64x64 seq20 plain", **timing, "clips_per_s": 16.0, "floor_s": 0.5}
    rows = [
        {**step, "who": "mlxlava", "peak_arrays_gb": 1.0, "mlxlava_ratio": 1.0},
        {**step, "who": "PyTorch", "mlxlava_ratio": 1.25},
        {"name": "play live lava 64x64", "who": "mlxlava", **timing, "frames_per_s": 150.0},
        {"name": "rate matmul", "who": "mlxlava", **timing, "per_s": 1.5e11},
        {"name": "train lava 256x256 seq20", "who": "mlxlava", "note": "skipped: too large"},
    ]
    lines = tables.bench({"rows": rows})
    spread = "1.5 … 2.5 (3×)"
    assert lines[2] == f"| lava 64x64 seq20 plain | mlxlava | 2 s | {spread} | 16 | 4 |  | 1.50 (1.00) |"
    assert lines[3] == f"| lava 64x64 seq20 plain | PyTorch | 2 s | {spread} | 16 | 4 | 1.25 | 1.50 |"
    assert f"| play live lava 64x64 | 2 s | {spread} | 150 frames/s | 1.500 |" in lines
    assert any("150 GFLOP/s" in line for line in lines)
    assert lines[-1] == "- train lava 256x256 seq20, mlxlava: skipped: too large"


def test_without_files_it_says_what_to_give() -> None:
    with pytest.raises(SystemExit, match="mlxlava score --json"):
        tables.main([])
