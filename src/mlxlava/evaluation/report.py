"""Prints tables of ``score`` and ``drift``, and draws their figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlxlava.console import print_table
from mlxlava.errors import UserError
from mlxlava.evaluation.drift import FOLLOWED_MEASURES
from mlxlava.evaluation.features import ClipFeatures
from mlxlava.evaluation.frames import evenly_spaced_indices
from mlxlava.evaluation.measures import MEASURES, power_spectrum
from mlxlava.products import NumpyArray

Result = dict[str, Any]
FramesOfDriftWindows = list[tuple[int, NumpyArray]]

_HOW_TO_READ_A_RATIO = {
    "distance": "1 is right",
    "unbiased": "up to 1 is right",
    "level": "1 is right, less and more are not",
}
_FRAMES_PER_ROW = 10  # frames in a row of the figure
_STATE_STATISTICS = (
    "deviation",
    "kurtosis",
    "norm",
    "epps_pulley_axes",
    "epps_pulley_directions",
    "covariance",
)
_SHORT_STATISTIC_NAMES = {
    "epps_pulley_axes": "E–P axes",
    "epps_pulley_directions": "E–P directions",
    "covariance": "‖cov − I‖²/Z",
}


def print_score_table(result: Result) -> None:
    """Print the measures of a score, with their floors and ratios."""
    rows = [
        (
            name,
            f"{row['value']:.4g}",
            _format_interval(row["interval"]),
            f"{row['floor']:.4g}",
            _format_interval(row["floor_interval"]),
            "–" if row["ratio"] is None else f"{row['ratio']:.2f}",
            _HOW_TO_READ_A_RATIO[MEASURES[name].kind],
        )
        for name, row in result["measures"].items()
    ]
    title = (
        f"{result['weights']}: {result['clips']} clips of {result['clip_length']} learned steps; "
        f"in brackets 95 % intervals ({result['bootstrap_repeats']} bootstrap repeats)"
    )
    columns = ("measure", "drawn", "", "real against real", "", "ratio", "how to read the ratio")
    print_table(title, columns, rows)
    for name, ratio in result["headline"].items():
        print(f"{name}: {ratio:.2f} times real against real")
    arrow = result["measures"]["motion.arrow"]["ratio"]
    print(f"arrow of time: {arrow:+.2f} (real footage 1, back and forth 0, backwards −1)")


def print_drift_table(result: Result) -> None:
    """Print the windows of a drift, its slopes, returns and loops, and the Lyapunov exponent."""
    _print_windows(result)
    if "slopes" in result:
        _print_slopes(result["slopes"])
    returns = result["returns"]
    if returns["anchors"]:
        print(
            f"loops of states: the nearest return is {returns['own']:.2f} away on average, "
            f"{returns['nearest_own']:.2f} at least; where another lamp was, {returns['others']:.2f}; "
            f"ratio {returns['ratio']:.3f} {_format_interval(returns['interval'])}, 1 without loops"
        )
    if result["died_at"] is not None:
        print(f"the roll-out ended early: its states are not finite after {result['died_at']:,} steps")
    if "loops" not in result:
        return
    loops, chaos = result["loops"], result["lyapunov"]
    print(
        f"loops of frames: {loops['ratio']:.2f} of real footage's distance to the nearest earlier frame "
        f"({loops['length']} steps at the end)"
    )
    print(
        f"largest Lyapunov exponent: {chaos['per_step']:+.4f} a learned step "
        f"{_format_interval(chaos['interval'])}, {chaos['per_second']:+.3f} a second"
    )


def _print_windows(result: Result) -> None:
    """Print a row for each window of a drift, and one of what real footage and N(0, I) have."""
    columns = (
        "learned steps",
        *FOLLOWED_MEASURES,
        *(_SHORT_STATISTIC_NAMES.get(name, name) for name in _STATE_STATISTICS),
        "memory, GB",
    )
    rows = [
        (
            f"{row['frames']:,}",
            *(f"{row['measures'][name]:.4g}" for name in FOLLOWED_MEASURES),
            *(f"{row['state'][name]:.3f}" for name in _STATE_STATISTICS),
            f"{row['resident_gb']:.2f}",
        )
        for row in result["windows"]
    ]
    real, null = result["real"], result["null"]
    rows.append(
        (
            "real; N(0, I)",
            *(_format_interval((real[name][0], real[name][2])) for name in FOLLOWED_MEASURES),
            *(_format_interval(null[name]) for name in _STATE_STATISTICS),
            "",
        )
    )
    print_table(
        f"{result['weights']}: {result['lamps']} lamps, {result['frames']:,} frames each", columns, rows
    )


def _print_slopes(slopes: Result) -> None:
    """Print a row for each slope of a drift."""
    columns = (
        "slope a decade of frames",
        "",
        "95 % interval",
        "holds zero",
        f"95 % for all {len(slopes)} at once",
        "holds zero",
    )
    rows = [
        (
            name,
            f"{one['slope']:+.4g}",
            _format_interval(one["interval"]),
            "yes" if one["holds_zero"] else "no",
            _format_interval(one["interval_together"]),
            "yes" if one["holds_zero_together"] else "no",
        )
        for name, one in slopes.items()
    ]
    print_table("Drift", columns, rows)


def _format_interval(ends: Sequence[float]) -> str:
    return f"[{ends[0]:.3g}, {ends[1]:.3g}]"


def require_that_report_can_be_made(target: Path | None) -> None:
    """Check that a report can be made, before the long work begins.

    Raises:
        UserError: the extra ``score`` is not installed, or ``target`` cannot be written as a PNG.
    """
    try:
        import matplotlib
        import scipy  # noqa: F401
    except ImportError as error:
        raise UserError(f'score: {error.name} is missing; install "mlxlava[score]"') from error
    matplotlib.use("agg")
    if target is not None and (target.suffix.lower() != ".png" or not target.resolve().parent.is_dir()):
        raise UserError(f"score: cannot write {target}; give a .png in a folder that is there")


def write_figure(
    path: Path,
    *,
    drift: Result,
    window_frames: FramesOfDriftWindows,
    clips: tuple[Sequence[NumpyArray], Sequence[NumpyArray]] | None = None,
    features: tuple[ClipFeatures, ClipFeatures, ClipFeatures] | None = None,
    step_fps: float,
) -> None:
    """Write the figure of a score or a drift: rows of frames, curves of the drift, and power spectra.

    Args:
        path: PNG file to write.
        drift: result of ``drift``.
        window_frames: end of each window and a frame of it, as ``drift`` returns them.
        clips: real clips and drawn clips, uint8 (L, H, W, 3) each. Each clip becomes a row of frames.
        features: features of reference, held-out and drawn clips. Their spectra are drawn.
        step_fps: learned steps per second.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    strips = [
        (f"{name} {number}", np.concatenate(list(_frames_of_row(clip)), axis=1))
        for name, group in zip(("real", "drawn"), clips or ((), ()), strict=True)
        for number, clip in enumerate(group, 1)
    ]
    strips.append(("age", np.concatenate([frame for _, frame in window_frames], axis=1)))
    figure = Figure(figsize=(12, 1.35 * len(strips) + 4), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.35 * len(strips), 4))
    upper, lower = halves
    for axes, (name, strip) in zip(np.atleast_1d(upper.subplots(len(strips), 1)), strips, strict=True):
        axes.imshow(strip, interpolation="nearest")
        axes.set(xticks=[], yticks=[], ylabel=name)
    ends = [f"{end:,}" for end, _ in window_frames]
    width = window_frames[0][1].shape[1]
    axes.set_xticks([width * (at + 0.5) for at in range(len(ends))], ends)
    axes.set_xlabel("one lamp after so many learned steps")
    panels = lower.subplots(1, 2 if features is None else 3)
    _draw_drift(panels[0], panels[1], drift)
    if features is not None:
        _draw_spectra(panels[2], features, step_fps)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=80)
    try:
        path.write_bytes(image.getvalue())
    except OSError as error:
        raise UserError(f"score: cannot write {path}: {error.strerror}; give another -o") from error


def _frames_of_row(clip: NumpyArray) -> NumpyArray:
    shown: NumpyArray = clip[evenly_spaced_indices(len(clip), _FRAMES_PER_ROW)]
    return shown


def _draw_drift(left: Any, right: Any, drift: Result) -> None:
    ends = [row["frames"] for row in drift["windows"]]
    for name in FOLLOWED_MEASURES:
        floor = drift["real"][name][1]
        left.plot(ends, [row["measures"][name] / floor for row in drift["windows"]], marker=".", label=name)
    left.axhline(1, color="grey", linewidth=1)
    left.set(title="distance over real against real", xlabel="learned steps", xscale="log", yscale="log")
    left.legend(fontsize="small")
    for name in _STATE_STATISTICS:
        low, high = drift["null"][name]
        values = [2 * (row["state"][name] - low) / (high - low) - 1 for row in drift["windows"]]
        right.plot(ends, values, marker=".", label=_SHORT_STATISTIC_NAMES.get(name, name))
    right.axhspan(-1, 1, color="grey", alpha=0.2)
    right.set(title="the state; grey: 95 % of N(0, I)", xlabel="learned steps", xscale="log")
    right.legend(fontsize="small")


def _draw_spectra(
    axes: Any, features: tuple[ClipFeatures, ClipFeatures, ClipFeatures], step_fps: float
) -> None:
    for name, one in zip(("reference", "held out", "drawn"), features, strict=True):
        power = power_spectrum(one).sum(1)
        frequencies = (np.arange(len(power)) + 1) * step_fps / one.features.shape[1]
        axes.loglog(frequencies, power, label=name)
    # A lamp that stands still has almost no power; its curve would compress the others.
    real = power_spectrum(features[0]).sum(1)
    axes.set(title="power of all modes", xlabel="frequency, Hz", ylim=(1e-2 * real.min(), 1e2 * real.max()))
    axes.legend(fontsize="small")
