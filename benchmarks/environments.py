"""What a change costs or saves: two environments, or two checkouts, make training steps and frames in turns.

    python -m benchmarks.environments OLD/bin/python NEW/bin/python [--turns 15] [--only PATTERN]
    python -m benchmarks.environments OLD/ NEW/                     # folders of two checkouts

Pythons run this checkout's mlxlava, each with the packages of its own environment. Of checkouts, this Python
runs each one's mlxlava. Ratios are medians of turns, with their quartiles: of wall time, and of processor
time, which depends less on other work on the machine. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxlava.bench.harness import CHECKOUT_FOLDER, Worker
from mlxlava.console import print_table, say

_LAVA = {"recipe": "lava", "size": 64}
_DURALAVA = {"recipe": "duralava", "size": 64}
_TRAINED = {**_LAVA, "seq_len": 20, "batch_size": 24}
# A name, and what mlxlava.bench.measures is asked for: a measure, its arguments, and a request.
_ROWS: list[tuple[str, str, dict[str, Any], str]] = [
    ("lava, step without D", "train", _TRAINED, "alone"),
    ("lava, step with D", "train", _TRAINED, "plain"),
    ("lava, step with penalties", "train", _TRAINED, "penalty"),
    ("duralava, step", "train", {**_DURALAVA, "seq_len": 20, "batch_size": 32}, "plain"),
    ("lava, 300 frames one at a time", "live", _LAVA, "300"),
    ("lava 256×256, 30 frames one at a time", "live", {**_LAVA, "size": 256}, "30"),
    ("lava, 600 frames for a file", "batched", _LAVA, "600"),
    ("duralava, 200 frames one at a time", "live", _DURALAVA, "200"),
]
_SETTLE_SECONDS = 0.2  # after which the threads of the process that was just measured have come to rest


def race(places: Sequence[str], row: tuple[str, str, dict[str, Any], str], turns: int) -> dict[str, Any]:
    """The medians of both places, and the quartiles of the ratio of the second to the first."""
    name, measure, arguments, request = row
    old, new = (_worker(Path(place), [measure, json.dumps(arguments)]) for place in places)
    answers: dict[Worker, list[dict[str, float]]] = {old: [], new: []}
    with old, new:
        for turn in range(turns + 1):
            for worker in (old, new) if turn % 2 else (new, old):
                time.sleep(_SETTLE_SECONDS)
                answer = worker(request)
                if turn:  # the first one warms up
                    answers[worker].append(answer)
    found: dict[str, Any] = {"name": name, "turns": turns, "load": os.getloadavg()[0]}
    for key in ("seconds", "cpu_seconds"):
        if any(key not in answer for answer in answers[old]):  # measures of an older checkout
            continue
        before, after = ([answer[key] for answer in answers[worker]] for worker in (old, new))
        quartiles = statistics.quantiles([b / a for a, b in zip(before, after, strict=True)], n=4)
        found[key] = [statistics.median(before), statistics.median(after)]
        found[f"{key}_ratio"] = quartiles
    return found


def _worker(place: Path, request: list[str]) -> Worker:
    """A process that measures with a Python, or with a checkout's mlxlava."""
    if not place.is_dir():
        environment = {"PYTHONPATH": str(CHECKOUT_FOLDER and CHECKOUT_FOLDER / "src")}
        return Worker(["-m", "mlxlava.bench.measures", *request], environment, python=str(place))
    source, old_module = place / "src", place / "benchmarks/measures.py"
    environment = {"PYTHONPATH": f"{source}:{place / 'benchmarks'}"}
    module = [str(old_module)] if old_module.exists() else ["-m", "mlxlava.bench.measures"]
    return Worker([*module, *request], environment)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    cells = [row["name"]]
    for key in ("seconds", "cpu_seconds"):
        if key not in row:
            cells += ["", "", ""]
            continue
        low, middle, high = row[f"{key}_ratio"]
        cells += [*(f"{value:.3g}" for value in row[key]), f"{middle:.3f} ({low:.3f} … {high:.3f})"]
    return (*cells, f"{row['load']:.1f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("places", nargs=2, metavar="PLACE", help="two interpreters or two checkouts")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--only", default="", help="rows whose name this pattern matches")
    args = parser.parse_args()
    rows = []
    for row in _ROWS:
        if not re.search(args.only, row[0]):
            continue
        say(f"environments: {row[0]}")
        rows.append(race(args.places, row, args.turns))
    columns = ("what", "old, s", "new, s", "ratio (quartiles)", "old, CPU s", "new, CPU s", "ratio", "load")
    print_table("New by old", columns, [_cells(row) for row in rows], left_aligned=1)
    print(json.dumps({"places": args.places, "rows": rows}))


if __name__ == "__main__":
    main()
