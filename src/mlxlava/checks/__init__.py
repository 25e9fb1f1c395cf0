"""Does this machine compute what it should? Everything that is known to break, within minutes.

A check compares what the GPU computes with what the CPU does, by the same functions of the package. Where
there is no GPU, the code for GPUs is compared with the code for CPUs, and compiled functions with others.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

from mlxlava import __version__
from mlxlava.backend import describe, limit_memory, memory_budget
from mlxlava.checks.arithmetic import convolutions, half_precision, products, states
from mlxlava.checks.base import Check, Result, compared, outcome
from mlxlava.checks.machine import machine
from mlxlava.checks.playing import FRAMES, endurance, frames
from mlxlava.checks.training import compiled_steps, full_steps, steps
from mlxlava.console import progress
from mlxlava.errors import UserError

# In this order: what others stand on comes first.
GROUPS: dict[str, Callable[[], list[Check]]] = {
    "the machine, and files of each format": machine,
    "matrix products, against float64": products,
    "random numbers and states, against their definition": states,
    "convolutions, with first and second gradients, relative": convolutions,
    "frames of the shipped lamp": frames,
    "tiny training steps, every kind, relative": steps,
    "compiled training steps, arrays in the largest kernel": compiled_steps,
    "half precision, relative": half_precision,
    "whole training steps": full_steps,
    f"lamps that play on, {FRAMES} frames": endurance,
}


def run(only: str = "") -> Iterator[tuple[str, list[Result]]]:
    """Make the checks, a group at a time, and show how far they are on stderr.

    Args:
        only: regular expression; checks whose group or name it matches.

    Yields:
        The name of a group and its results.

    Raises:
        UserError: ``only`` is no pattern or matches nothing.
    """
    limit_memory()
    chosen = _chosen(only)
    total, done = sum(len(checks) for checks in chosen.values()), 0
    for group, checks in chosen.items():
        results = []
        # Ended before a group is shown: lines on stdout would be drawn into a bar.
        with progress("check") as update:
            for check in checks:
                update(done, total, f"{group.partition(',')[0]}: {check.name}")
                results.append(outcome(group, check))
                done += 1
        yield group, results


def _chosen(only: str) -> dict[str, list[Check]]:
    """The checks whose group or name matches; groups without any are left out."""
    checks = {group: _made(make) for group, make in GROUPS.items()}
    try:
        chosen = {
            group: [each for each in found if re.search(only, f"{group}: {each.name}")]
            for group, found in checks.items()
        }
    except re.error as error:
        raise UserError(f"check: --only {only}: {error}; give a regular expression") from error
    chosen = {group: found for group, found in chosen.items() if found}
    if not chosen:
        names = "; ".join(f"{group}: {', '.join(each.name for each in checks[group])}" for group in checks)
        raise UserError(f"check: --only {only} matches none of: {names}")
    return chosen


def _made(make: Callable[[], list[Check]]) -> list[Check]:
    """The checks of a group; an error in making them is found by a check as well."""
    try:
        return make()
    except Exception as error:
        failed = error

    def fail() -> tuple[str, bool]:
        raise failed

    return [Check("to be made", "no error", "None of these checks could be made. Report it.", fail)]


def about() -> dict[str, str]:
    """The versions and the machine, for a report."""
    rows = {"mlxlava": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in ("numpy", "pillow", "imageio-ffmpeg"):
        try:
            rows[package] = version(package)
        except PackageNotFoundError:
            rows[package] = "not installed"
    return {**rows, **describe(), "memory budget": f"{memory_budget():.1f} GB", "compared": compared()}
