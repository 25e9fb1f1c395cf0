"""Checks and their results; the two ways to compute that checks compare; and the error of a result."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mlxlava.backend import mx, on_cpu, use_gpu_path

Value = TypeVar("Value")

CHECKED_RECIPES = ("lava", "duralava")

_NO_COMPILER_ADVICE = (
    "g++ is missing, and MLX compiles with it on Linux. Everything is many times slower. Install it, for "
    "example with: apt install g++"
)


@dataclasses.dataclass(frozen=True)
class Check:
    """A check: something to measure, and which values are allowed.

    Attributes:
        name: name of the measured quantity.
        allowed: allowed values, as text.
        meaning: what a failure means for the user, and what to do.
        measure: measures, and returns the value as text and whether it is allowed.
    """

    name: str
    allowed: str
    meaning: str
    measure: Callable[[], tuple[str, bool]]


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a check. Its fields are the fields of the JSON output."""

    group: str
    name: str
    found: str
    allowed: str
    ok: bool
    meaning: str


def run_check(group: str, check: Check) -> Result:
    """Run a check. An exception gives a failed result, so that later checks are still run."""
    meaning = check.meaning
    try:
        found, ok = check.measure()
    except Exception as error:
        text = " ".join(str(error).split())
        found, ok, meaning = type(error).__name__, False, f"{text.rstrip('.') or 'It stopped'}. {meaning}"
    return Result(group, check.name, found, check.allowed, bool(ok), meaning)


def lacks_compiler() -> bool:
    """Whether MLX's compiled functions need a compiler that is missing. Then they run uncompiled."""
    return on_cpu() and sys.platform.startswith("linux") and shutil.which("g++") is None


def fail_without_compiler(check: Check) -> Check:
    """The check; or, if the compiler is missing, a check that fails and says so."""
    if not lacks_compiler():
        return check
    return dataclasses.replace(check, meaning=_NO_COMPILER_ADVICE, measure=lambda: ("not compiled", False))


def at_most_check(
    name: str, limit: float, meaning: str, figure: Callable[[], float | tuple[float, str]]
) -> Check:
    """Make a check that a figure is at most ``limit``. NaN fails.

    ``figure`` returns the figure, or the figure and the place where it was found.
    """

    def measure() -> tuple[str, bool]:
        found = figure()
        value, where = found if isinstance(found, tuple) else (found, "")
        return f"{value:.1e} {where}".rstrip(), value <= limit

    return Check(name, f"≤ {limit:.0e}", meaning, measure)


def largest_value(figures: Iterable[tuple[float, str]]) -> tuple[float, str]:
    """The largest figure and the place where it was found. NaN counts as the largest."""
    return max(figures, key=lambda each: each[0] if np.isfinite(each[0]) else np.inf)


@contextlib.contextmanager
def on_reference_device() -> Iterator[None]:
    """Compute the reference inside this block: on the CPU; without a GPU, with the code for CPUs.

    Nothing may be compiled inside it: on macOS that would need Apple's command line tools.
    """
    with use_gpu_path(False) if on_cpu() else mx.stream(mx.cpu):
        yield


@contextlib.contextmanager
def on_checked_device() -> Iterator[None]:
    """Compute what is checked inside this block: on the GPU, or on a CPU with the code for GPUs."""
    with use_gpu_path() if on_cpu() else contextlib.nullcontext():
        yield


def describe_comparison() -> str:
    """Describe what is compared with what."""
    if on_cpu():
        return "the code for GPUs, run by the CPU, with the code for CPUs"
    return "the GPU with the CPU"


def relative_error(found: npt.NDArray[Any], exact: npt.NDArray[Any]) -> float:
    """The largest difference of two arrays, divided by the largest exact number; infinite if not finite."""
    if not np.isfinite(found).all():
        return math.inf
    return float(np.abs(found - exact).max() / max(np.abs(exact).max(), 1e-30))


def measure_once(function: Callable[[], Value]) -> Callable[[], Value]:
    """Wrap a measurement that several checks use. It is made once; its result or its error is kept."""
    made: list[Value | Exception] = []

    def measured() -> Value:
        if not made:
            try:
                made.append(function())
            except Exception as error:
                made.append(error)
        if isinstance(made[0], Exception):
            raise made[0]
        return made[0]

    return measured
