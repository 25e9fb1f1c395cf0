"""What the package's own JSON files hold: a check for each kind of file (``schema.py``).

Keys that are not named here are kept as they are, so that a file of a newer version can be read.
"""

from __future__ import annotations

from typing import Any

from mlxlava.schema import (
    Check,
    Mismatch,
    anything,
    boolean,
    either,
    integer,
    items,
    nullable,
    number,
    row,
    table,
    text,
)

_MOST_STEPS = 2**31 - 1
_STEP = integer(0, _MOST_STEPS)
_SECONDS = number(0, 1e12)
_PATH = text(4096)
_WORDS = text(10_000)
_COUNT = integer(0, 2**53)
_PLAIN = nullable(either(_WORDS, number(-1e300, 1e300), boolean))  # a value without parts

# checkpoints/*/progress.json
PROGRESS = table({"step": _STEP, "seconds": _SECONDS})

_CHOICE = table({"setting": text(200), "value": anything, "reason": _WORDS})
_FACTS = table(rest=_PLAIN)
_FOOTAGE_OF_WEIGHTS = table(
    optional={"sources": items(_PATH), "prepared": _PATH, "frames": nullable(_COUNT), "key": text(200)}
)


def _decisions(value: Any, name: str) -> Any:
    """The decisions of a schedule: the first one has step 0, and their steps rise."""
    found = items(row(_STEP, _STEP, boolean), 10_000)(value, name)
    steps = [step for step, _, _ in found]
    if not found or steps != sorted(set(steps)) or steps[0]:
        raise Mismatch(f"{name} must have steps that rise from 0")
    return found


_SCHEDULE = table({"decisions": _decisions, "minutes": nullable(number(0, 1e9))})
_SIZE = row(integer(1, 2**15), integer(1, 2**15))
# A training in the history of the weights that another training started from.
_TRAINING = table(
    {"recipe": text(1000), "size": _SIZE},
    {
        "batch_size": _COUNT,
        "footage": table(optional={"sources": items(_PATH), "frames": nullable(_COUNT)}),
        "steps": _STEP,
        "seconds": _SECONDS,
        "command": nullable(text(100_000)),
    },
)
_ABOUT = {
    "footage": _FOOTAGE_OF_WEIGHTS,
    "machine": _FACTS,
    "command": nullable(text(100_000)),
    "choices": items(_CHOICE, 1000),
    "total_steps": _STEP,
    "schedule": nullable(_SCHEDULE),
    "steps": _STEP,
    "seconds": _SECONDS,
    "pace": number(1e-6, 1e6),
    "initial": items(_TRAINING, 1000),
}
# The format is compared by whoever reads the file, since another one needs another message.
_WEIGHTS = {"format": anything, "step_fps": number(1e-9, 1e4), "recipe": table()}

# config.json of weights, and of a run that is played
WEIGHTS_CONFIG = table(_WEIGHTS, _ABOUT)


def _run_config() -> Check:
    whole = table(
        {
            **_WEIGHTS,
            "footage": table(
                {"sources": items(_PATH), "prepared": _PATH, "key": text(200)}, {"frames": _COUNT}
            ),
        },
        _ABOUT,
    )

    def check(value: Any, name: str) -> Any:
        found = whole(value, name)
        # Older runs have a fixed number of steps, newer ones a schedule.
        return found if found.get("schedule") else table({"total_steps": _STEP})(found, name)

    return check


# config.json of a run that goes on
RUN_CONFIG = _run_config()

# growth.json of a run that grows
GROWTH_PLAN = table(
    {
        "recipe": table(),
        "sources": items(_PATH),
        "memory": nullable(number(0, 1e9)),
        "command": text(100_000),
    },
    {"free": items(text(200), 1000), "choices": items(_CHOICE, 1000), "minutes": nullable(number(0, 1e9))},
)

# A line of log.jsonl. Terms may be NaN, and are left out where they are used.
LOG_LINE = table({"step": _STEP})
# A line of messages.jsonl, and of scores.jsonl
MESSAGE_LINE = table(optional={"time": text(100), "text": text(100_000)})
SCORE_LINE = table({"step": _STEP})

# footage.json of prepared footage
FOOTAGE = table(
    {
        "format": anything,
        "size": _SIZE,
        "cuts": items(integer(1, 2**53)),
        "fps": number(1e-9, 1e6),
        "every_nth": integer(1, 10**9),
        "frames": integer(1, 2**53),
    },
    {"key": text(200), "sources": items(table()), "warnings": items(_WORDS)},
)

_MEASURE = table(
    {"value": number(-1e300, 1e300), "floor": number(-1e300, 1e300), "ratio": nullable(number(0, 1e300))}
)
# What `mlxlava score --json` prints
SCORE = table(
    {
        "headline": table({"image": number(0, 1e300), "motion": number(0, 1e300)}),
        "clips": _COUNT,
        "clip_length": _COUNT,
        "seed": integer(-(2**63), 2**63),
        "measures": table(rest=_MEASURE),
    }
)
