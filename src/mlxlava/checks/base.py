"""What a check is, the two ways to compute that most of them compare, and how far results are apart."""

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

from mlxlava.backend import gpu_path, mx, on_cpu

Value = TypeVar("Value")

RECIPES = ("lava", "duralava")

_NO_COMPILER = (
    "g++ is missing, and MLX compiles with it on Linux. Everything is many times slower. Install it, for "
    "example with: apt install g++"
)


@dataclasses.dataclass(frozen=True)
class Check:
    """Something to measure.

    Attributes:
        name: what is measured.
        allowed: what may be found, as text.
        meaning: what it means for the user where something else is found, and what to do.
        measure: gives what was found, as text, and whether it is allowed.
    """

    name: str
    allowed: str
    meaning: str
    measure: Callable[[], tuple[str, bool]]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a check has found; the fields are those of the JSON."""

    group: str
    name: str
    found: str
    allowed: str
    ok: bool
    meaning: str


def outcome(group: str, check: Check) -> Result:
    """Measure; an error is a result like any other, so that the checks after it are made."""
    meaning = check.meaning
    try:
        found, ok = check.measure()
    except Exception as error:
        text = " ".join(str(error).split())
        found, ok, meaning = type(error).__name__, False, f"{text.rstrip('.') or 'It stopped'}. {meaning}"
    return Result(group, check.name, found, check.allowed, bool(ok), meaning)


def lacks_compiler() -> bool:
    """Whether MLX's compiled functions need a compiler that is not there; they run uncompiled then."""
    return on_cpu() and sys.platform.startswith("linux") and shutil.which("g++") is None


def compiling(check: Check) -> Check:
    """The check, or one that fails for want of a compiler where it would measure what was not compiled."""
    if not lacks_compiler():
        return check
    return dataclasses.replace(check, meaning=_NO_COMPILER, measure=lambda: ("not compiled", False))


def at_most(name: str, limit: float, meaning: str, figure: Callable[[], float | tuple[float, str]]) -> Check:
    """A check of a figure, which may come with where it was found; what is no number is too much."""

    def measure() -> tuple[str, bool]:
        found = figure()
        value, where = found if isinstance(found, tuple) else (found, "")
        return f"{value:.1e} {where}".rstrip(), value <= limit

    return Check(name, f"≤ {limit:.0e}", meaning, measure)


def worst(figures: Iterable[tuple[float, str]]) -> tuple[float, str]:
    """The largest figure and where it was found; one that is no number is the largest."""
    return max(figures, key=lambda each: each[0] if np.isfinite(each[0]) else np.inf)


@contextlib.contextmanager
def reference() -> Iterator[None]:
    """Compute what the device is compared with: on the CPU, and with the code for CPUs if there is no GPU.

    Nothing is to be compiled in here: on macOS that would need Apple's command line tools.
    """
    with gpu_path(False) if on_cpu() else mx.stream(mx.cpu):
        yield


@contextlib.contextmanager
def device() -> Iterator[None]:
    """Compute what is checked: on the GPU, or on a CPU with the code for GPUs."""
    with gpu_path() if on_cpu() else contextlib.nullcontext():
        yield


def compared() -> str:
    """What is compared with what."""
    if on_cpu():
        return "the code for GPUs, run by the CPU, with the code for CPUs"
    return "the GPU with the CPU"


def apart(found: npt.NDArray[Any], exact: npt.NDArray[Any]) -> float:
    """The largest difference of two arrays, in the largest number of the second; infinite if not finite."""
    if not np.isfinite(found).all():
        return math.inf
    return float(np.abs(found - exact).max() / max(np.abs(exact).max(), 1e-30))


def once(function: Callable[[], Value]) -> Callable[[], Value]:
    """A measurement that several checks look at: made when the first does, also if it fails."""
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
