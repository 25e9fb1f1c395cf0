"""The output of ``score`` and ``drift``: tables for the terminal, and one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlxlava.console import print_table
from mlxlava.errors import UserError
from mlxlava.evaluation.drift import FOLLOWED
from mlxlava.evaluation.features import Array, ClipFeatures, evenly_spaced
from mlxlava.evaluation.measures import MEASURES, spectrum

Result = dict[str, Any]
Pictures = list[tuple[int, Array]]

_READING = {
    "distance": "1 is right",
    "unbiased": "up to 1 is right",
    "level": "1 is right, less and more are not",
}
_SHOWN = 10  # frames in a row of the picture
_STATE = ("deviation", "kurtosis", "norm", "epps_pulley_axes", "epps_pulley_directions", "covariance")
_SHORT = {
    "epps_pulley_axes": "E–P axes",
    "epps_pulley_directions": "E–P directions",
    "covariance": "‖cov − I‖²/Z",
}


def score_table(result: Result) -> None:
    """Measures, their floors and ratios."""
    rows = [
        (
            name,
            f"{row['value']:.4g}",
            _interval(row["interval"]),
            f"{row['floor']:.4g}",
            _interval(row["floor_interval"]),
            "–" if row["ratio"] is None else f"{row['ratio']:.2f}",
            _READING[MEASURES[name].kind],
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


def drift_table(result: Result) -> None:
    """Windows beside real footage and N(0, I); slopes, returns, loops and the Lyapunov exponent."""
    columns = ("learned steps", *FOLLOWED, *(_SHORT.get(name, name) for name in _STATE), "memory, GB")
    rows = [
        (
            f"{row['frames']:,}",
            *(f"{row['measures'][name]:.4g}" for name in FOLLOWED),
            *(f"{row['state'][name]:.3f}" for name in _STATE),
            f"{row['resident_gb']:.2f}",
        )
        for row in result["windows"]
    ]
    real, null = result["real"], result["null"]
    rows.append(
        (
            "real; N(0, I)",
            *(_interval((real[name][0], real[name][2])) for name in FOLLOWED),
            *(_interval(null[name]) for name in _STATE),
            "",
        )
    )
    print_table(
        f"{result['weights']}: {result['lamps']} lamps, {result['frames']:,} frames each", columns, rows
    )
    slopes = result.get("slopes", {})
    rows = [
        (
            name,
            f"{one['slope']:+.4g}",
            _interval(one["interval"]),
            "yes" if one["holds_zero"] else "no",
            _interval(one["interval_together"]),
            "yes" if one["holds_zero_together"] else "no",
        )
        for name, one in slopes.items()
    ]
    if rows:
        columns = (
            "slope a decade of frames",
            "",
            "95 % interval",
            "holds zero",
            f"95 % for all {len(rows)} at once",
            "holds zero",
        )
        print_table("Drift", columns, rows)
    returns = result["returns"]
    if returns["anchors"]:
        print(
            f"secret loops, states: nearest return {returns['own']:.2f} on average, "
            f"{returns['nearest_own']:.2f} at least; to where another lamp was {returns['others']:.2f}; "
            f"ratio {returns['ratio']:.3f} {_interval(returns['interval'])}, 1 without loops"
        )
    if result["died_at"] is not None:
        print(f"the lamp died: its states are not finite after {result['died_at']:,} steps")
    if "loops" not in result:
        return
    loops, chaos = result["loops"], result["lyapunov"]
    print(
        f"secret loops, frames: {loops['ratio']:.2f} of real footage's distance to the nearest earlier frame "
        f"({loops['length']} steps at the end)"
    )
    print(
        f"largest Lyapunov exponent: {chaos['per_step']:+.4f} a learned step {_interval(chaos['interval'])}, "
        f"{chaos['per_second']:+.3f} a second"
    )


def _interval(ends: Sequence[float]) -> str:
    return f"[{ends[0]:.3g}, {ends[1]:.3g}]"


def require(target: Path | None) -> None:
    """Check that a report can be made, before long work and not after it.

    Raises:
        UserError: the extra ``score`` is not installed, or ``target`` is no PNG that could be written.
    """
    try:
        import matplotlib
        import scipy  # noqa: F401
    except ImportError as error:
        raise UserError(f'score: {error.name} is missing; install "mlxlava[score]"') from error
    matplotlib.use("agg")
    if target is not None and (target.suffix.lower() != ".png" or not target.resolve().parent.is_dir()):
        raise UserError(f"score: cannot write {target}; give a .png in a folder that is there")


def picture(
    path: Path,
    *,
    drift: Result,
    ages: Pictures,
    clips: tuple[Sequence[Array], Sequence[Array]] | None = None,
    features: tuple[ClipFeatures, ClipFeatures, ClipFeatures] | None = None,
    step_fps: float,
) -> None:
    """Write the picture of a score: real and drawn frames, the spectra, the drift curve.

    Args:
        path: PNG to write.
        drift: the result of ``drift``.
        ages: a frame of every window, which ``drift`` returned with it.
        clips: real and drawn clips, uint8 (L, H, W, 3) each; a row of frames is shown of each.
        features: of reference, held-out and drawn clips, for spectra.
        step_fps: learned steps a second.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    strips = [
        (f"{name} {number}", np.concatenate(list(_some(clip)), axis=1))
        for name, group in zip(("real", "drawn"), clips or ((), ()), strict=True)
        for number, clip in enumerate(group, 1)
    ]
    strips.append(("age", np.concatenate([frame for _, frame in ages], axis=1)))
    figure = Figure(figsize=(12, 1.35 * len(strips) + 4), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.35 * len(strips), 4))
    upper, lower = halves
    for axes, (name, strip) in zip(np.atleast_1d(upper.subplots(len(strips), 1)), strips, strict=True):
        axes.imshow(strip, interpolation="nearest")
        axes.set(xticks=[], yticks=[], ylabel=name)
    ends = [f"{end:,}" for end, _ in ages]
    width = ages[0][1].shape[1]
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


def _some(clip: Array) -> Array:
    shown: Array = clip[evenly_spaced(len(clip), _SHOWN)]
    return shown


def _draw_drift(left: Any, right: Any, drift: Result) -> None:
    ends = [row["frames"] for row in drift["windows"]]
    for name in FOLLOWED:
        floor = drift["real"][name][1]
        left.plot(ends, [row["measures"][name] / floor for row in drift["windows"]], marker=".", label=name)
    left.axhline(1, color="grey", linewidth=1)
    left.set(title="distance over real against real", xlabel="learned steps", xscale="log", yscale="log")
    left.legend(fontsize="small")
    for name in _STATE:
        low, high = drift["null"][name]
        values = [2 * (row["state"][name] - low) / (high - low) - 1 for row in drift["windows"]]
        right.plot(ends, values, marker=".", label=_SHORT.get(name, name))
    right.axhspan(-1, 1, color="grey", alpha=0.2)
    right.set(title="the state; grey: 95 % of N(0, I)", xlabel="learned steps", xscale="log")
    right.legend(fontsize="small")


def _draw_spectra(
    axes: Any, features: tuple[ClipFeatures, ClipFeatures, ClipFeatures], step_fps: float
) -> None:
    for name, one in zip(("reference", "held out", "drawn"), features, strict=True):
        power = spectrum(one).sum(1)
        frequencies = (np.arange(len(power)) + 1) * step_fps / one.features.shape[1]
        axes.loglog(frequencies, power, label=name)
    # A lamp that stands still has almost no power; its curve would compress the others.
    real = spectrum(features[0]).sum(1)
    axes.set(title="power of all modes", xlabel="frequency, Hz", ylim=(1e-2 * real.min(), 1e2 * real.max()))
    axes.legend(fontsize="small")
