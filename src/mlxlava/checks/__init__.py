"""Checks that this machine computes what it should, within minutes. They cover all that is known to break.

A check compares results of the GPU with results of the CPU, by the same functions of the package. If there is
no GPU, the code for GPUs is compared with the code for CPUs, and compiled functions with uncompiled ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from mlxlava.backend import limit_memory
from mlxlava.checks.arithmetic import matrix_product_checks, state_checks
from mlxlava.checks.base import Check, Result, describe_comparison, run_check
from mlxlava.checks.convolutions import convolution_checks, half_precision_checks
from mlxlava.checks.machine import machine_checks
from mlxlava.checks.playing import PLAYED_FRAMES, endurance_checks, frame_checks
from mlxlava.checks.training import compiled_step_checks, full_step_checks, tiny_step_checks
from mlxlava.console import progress
from mlxlava.errors import UserError
from mlxlava.machine import machine_facts

# The order matters: first come the groups on which later ones depend.
CHECK_GROUPS: dict[str, Callable[[], list[Check]]] = {
    "the machine, and files of each format": machine_checks,
    "matrix products, against float64": matrix_product_checks,
    "random numbers and states, against their definition": state_checks,
    "convolutions, with first and second gradients, relative": convolution_checks,
    "frames of the shipped lamp": frame_checks,
    "tiny training steps, every kind, relative": tiny_step_checks,
    "compiled training steps, arrays in the largest kernel": compiled_step_checks,
    "half precision, relative": half_precision_checks,
    "whole training steps": full_step_checks,
    f"lamps that play on, {PLAYED_FRAMES} frames": endurance_checks,
}


def run_checks(only: str = "") -> Iterator[tuple[str, list[Result]]]:
    """Run the checks, one group at a time, and show progress on stderr.

    Args:
        only: regular expression; only checks whose group or name it matches are run.

    Yields:
        The name of each group and its results.

    Raises:
        UserError: ``only`` is no regular expression or matches nothing.
    """
    limit_memory()
    chosen = _matching_checks(only)
    total, done = sum(len(checks) for checks in chosen.values()), 0
    for group, checks in chosen.items():
        results = []
        # The bar ends before a group is shown. Otherwise lines on stdout would be drawn into the bar.
        with progress("check") as update:
            for check in checks:
                update(done, total, f"{group.partition(',')[0]}: {check.name}")
                results.append(run_check(group, check))
                done += 1
        yield group, results


def _matching_checks(only: str) -> dict[str, list[Check]]:
    """The checks whose group or name matches. Groups without such a check are left out."""
    checks = {group: _make_checks_of_group(make) for group, make in CHECK_GROUPS.items()}
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


def _make_checks_of_group(make: Callable[[], list[Check]]) -> list[Check]:
    """Make the checks of a group. If that fails, the result is a check that fails with the same error."""
    try:
        return make()
    except Exception as error:
        failed = error

    def fail() -> tuple[str, bool]:
        raise failed

    return [Check("to be made", "no error", "None of these checks could be made. Report it.", fail)]


def checked_machine_facts() -> dict[str, str]:
    """What ``mlxlava info`` says of the machine, and what is compared on it."""
    return {**machine_facts(), "compared": describe_comparison()}
