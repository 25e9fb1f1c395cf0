"""The curves of a run: every term of its log as means over blocks of steps, few enough for a page."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxlava.records import LOG_LINE
from mlxlava.schema import is_finite_number, read_lines

_MAX_BLOCKS = 400  # a screen is hardly wider, and a page with so many points stays small
_NO_TERMS = frozenset({"step"})


class _Block:
    """Sums of terms over neighbouring steps."""

    def __init__(self) -> None:
        self.last_step = self.steps = 0
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, step: int, terms: Mapping[str, Any]) -> None:
        self.last_step, self.steps = step, self.steps + 1
        for name, value in terms.items():
            if name not in _NO_TERMS and is_finite_number(value):
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = (total + value, count + 1)

    def append(self, later: _Block) -> None:
        self.last_step, self.steps = later.last_step, self.steps + later.steps
        for name, (total, count) in later.sums.items():
            before, number = self.sums.get(name, (0.0, 0))
            self.sums[name] = (before + total, number + count)


class Curves:
    """Means of each term over blocks of steps.

    Blocks hold one step each at first. When there are 400 blocks, neighbours are joined. So memory and time
    do not grow with the length of a run, and no step is left out. A term that only some steps have, such as a
    penalty, is averaged over these steps.
    """

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._steps_per_block = 1

    def add(self, step: int, terms: Mapping[str, Any]) -> None:
        """Add the next step. Values that are no finite numbers are left out."""
        if not self._blocks or self._blocks[-1].steps >= self._steps_per_block:
            if len(self._blocks) >= _MAX_BLOCKS:
                self._join_neighbours()
            self._blocks.append(_Block())
        self._blocks[-1].add(step, terms)

    def _join_neighbours(self) -> None:
        for first, second in zip(self._blocks[::2], self._blocks[1::2], strict=True):
            first.append(second)
        self._blocks = self._blocks[::2]
        self._steps_per_block *= 2

    @property
    def last_step(self) -> int:
        """The last step that was added; 0 if there is none."""
        return self._blocks[-1].last_step if self._blocks else 0

    @property
    def steps(self) -> list[int]:
        """The last step of each block."""
        return [block.last_step for block in self._blocks]

    def terms(self) -> dict[str, list[float | None]]:
        """By name, the mean of a term in each block; None in a block without it."""
        names = dict.fromkeys(name for block in self._blocks for name in block.sums)
        return {name: [_mean(block, name) for block in self._blocks] for name in names}

    def latest(self, name: str) -> float | None:
        """The last mean of a term; None if no step has it."""
        return next(
            (mean for block in reversed(self._blocks) if (mean := _mean(block, name)) is not None), None
        )


def _mean(block: _Block, name: str) -> float | None:
    total, count = block.sums.get(name, (0.0, 0))
    return total / count if count else None


def read_curves(run: Path) -> Curves:
    """The curves of a run's log. Lines that cannot be read are left out; without a log there are none."""
    curves = Curves()
    with contextlib.suppress(OSError):
        for _, line in read_lines(run / "log.jsonl", LOG_LINE):
            curves.add(line["step"], line)
    return curves
