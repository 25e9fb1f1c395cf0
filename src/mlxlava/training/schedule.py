"""How far a run has come at each of its steps. Learning rates follow from that, and when D joins in.

The number of steps of a run may change while it trains: where a time is given, it follows from the speed of
steps, which is measured again and again. Each change is a decision, kept in the run's config. Progress is a
function of the decisions alone. So a run that resumes with the same decisions gives the same weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlxlava.config import Recipe


class Decision(NamedTuple):
    """From step ``step`` on, the run has ``total`` steps.

    Attributes:
        step: training steps made when that was decided.
        total: training steps in all.
        stretched: Progress goes on as in a run that had ``total`` steps from its beginning, so it may go
            back, and learning rates rise again. Otherwise it goes on from where it is.
    """

    step: int
    total: int
    stretched: bool = False


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The decisions of a run.

    Attributes:
        decisions: in the order of their steps; the first one has step 0.
        minutes: minutes of all sessions together that the run may take; None if steps were given.
    """

    decisions: tuple[Decision, ...]
    minutes: float | None = None

    @classmethod
    def of_steps(cls, total: int) -> Schedule:
        """A schedule whose number of steps never changes."""
        return cls((Decision(0, total),))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """The schedule in the config of a run. Older runs have none, and a fixed number of steps.

        Raises:
            KeyError, TypeError, ValueError: the config is damaged.
        """
        values = config.get("schedule")
        if values is None:
            return cls.of_steps(int(config["total_steps"]))
        decisions = tuple(Decision(int(at), int(total), bool(new)) for at, total, new in values["decisions"])
        minutes = values["minutes"]
        return cls(decisions, None if minutes is None else float(minutes))

    def to_config(self) -> dict[str, Any]:
        """What the config of a run says of it."""
        return {
            "total_steps": self.total_steps,
            "schedule": {"minutes": self.minutes, "decisions": [list(each) for each in self.decisions]},
        }

    @property
    def total_steps(self) -> int:
        """Training steps of the whole run, as decided last."""
        return self.decisions[-1].total

    def progress(self, step: int) -> float:
        """Progress at a step: 0 at the first one, 1 after the last one."""
        return next(reversed([self._in_piece(piece, step) for piece in self._pieces() if piece[0] <= step]))

    def first_step_at(self, progress: float) -> int:
        """The first step with so much progress, to the nearest step. If progress goes back, it stays."""
        pieces = self._pieces()
        for number, (start, before, total) in enumerate(pieces):
            end = pieces[number + 1][0] if number + 1 < len(pieces) else None
            if before >= progress:
                return start
            slope = (1 - before) / max(total - start, 1)
            found = start + round((progress - before) / slope)
            if end is None or found < end:
                return found
        raise AssertionError("the last piece has no end")

    def progress_at_join(self, joins: int, step: int) -> float:
        """Progress at the step ``joins``, as a run sees it at ``step``: by its length if it was stretched."""
        stretches = [each for each in self.decisions if each.stretched and joins < each.step <= step]
        return joins / stretches[-1].total if stretches else self.progress(joins)

    def with_decision(self, step: int, total: int, *, stretched: bool = False) -> Schedule:
        """The schedule with another number of steps from ``step`` on, without decisions for later steps."""
        kept = tuple(each for each in self.decisions if each.step < step)
        return dataclasses.replace(self, decisions=(*kept, Decision(step, max(total, step), stretched)))

    def lengthen(self, step: int, total: int, joins_at: float) -> Schedule:
        """The schedule of a run that is to have ``total`` steps, at its step ``step``.

        Where it gets longer after the discriminator has joined in, or when it is finished, it is stretched.
        So a finished run, whose learning rate is 0, can go on. ``joins_at`` is the progress at which the
        discriminator joins in.
        """
        begun = step >= min(self.first_step_at(joins_at), self.total_steps)
        return self.with_decision(step, total, stretched=begun and total > self.total_steps)

    def _pieces(self) -> list[tuple[int, float, int]]:
        """For each decision: its step, the progress there, and the number of steps in all."""
        pieces: list[tuple[int, float, int]] = []
        for step, total, stretched in self.decisions:
            before = step / max(total, 1) if stretched or not pieces else self._in_piece(pieces[-1], step)
            pieces.append((step, min(1.0, before), total))
        return pieces

    @staticmethod
    def _in_piece(piece: tuple[int, float, int], step: int) -> float:
        start, before, total = piece
        if total <= start:
            return 1.0
        return min(1.0, before + (1 - before) * (step - start) / (total - start))


def d_start(recipe: Recipe) -> float:
    """Progress at which the discriminator joins in; 1 if it never does, as for a lamp that grows."""
    return 1.0 if recipe.generator.upsampler_widths else recipe.loss.d_start


def learning_rates(recipe: Recipe, schedule: Schedule, step: int) -> tuple[float, float]:
    """Learning rates of a step: of G, R and E, and of D.

    With the cosine schedule, that of G, R and E falls from its full size to 0 at the last step. D's begins to
    fall when D joins in, and as slowly, so it never gets so small.
    """
    training = recipe.training
    progress = schedule.progress(step)
    joins = schedule.first_step_at(d_start(recipe))

    def rate(full: float, progress: float, own_steps: int) -> float:
        rise = min(1.0, (own_steps + 1) / training.warm_up) if training.warm_up else 1.0
        falls = 0.5 * (1 + math.cos(math.pi * progress)) if training.schedule == "cosine" else 1.0
        return full * rise * falls

    return (
        rate(training.learning_rate, progress, step),
        rate(
            training.d_rate * training.learning_rate,
            max(0.0, progress - schedule.progress_at_join(joins, step)),
            max(0, step - joins),
        ),
    )
