"""What another version of a dependency costs or saves: training steps and frames under two Pythons, in turns.

    python -m benchmarks.environments OLD/bin/python NEW/bin/python [--turns 15] [--only PATTERN]

Both run this checkout's mlxlava, each with the packages of its own environment. Ratios are medians of turns,
with their quartiles: of wall time, and of processor time, which other work on the machine changes less. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any

from mlxlava.bench.harness import CHECKOUT_FOLDER, Worker
from mlxlava.console import print_table, say

_LAVA = {"recipe": "lava", "size": 64}
_TRAINED = {**_LAVA, "seq_len": 20, "batch_size": 24}
# A name, what measures.py is asked for: the measure, its arguments, a request.
_ROWS: list[tuple[str, str, dict[str, Any], str]] = [
    ("lava, step without D", "train", _TRAINED, "alone"),
    ("lava, step with D", "train", _TRAINED, "plain"),
    ("lava, step with penalties", "train", _TRAINED, "penalty"),
    ("lava, 300 frames one at a time", "live", _LAVA, "300"),
    ("lava 256×256, 30 frames one at a time", "live", {**_LAVA, "size": 256}, "30"),
    ("lava, 600 frames for a file", "batched", _LAVA, "600"),
]
_SETTLE = 0.2  # seconds in which the threads of who was just measured stop spinning


def race(pythons: Sequence[str], row: tuple[str, str, dict[str, Any], str], turns: int) -> dict[str, Any]:
    """Medians of each Python and the ratios of the second to the first."""
    name, measure, arguments, request = row
    environment = {"PYTHONPATH": str(CHECKOUT_FOLDER and CHECKOUT_FOLDER / "src")}
    command = ["-m", "mlxlava.bench.measures", measure, json.dumps(arguments)]
    old, new = (Worker(command, environment, python=python) for python in pythons)
    answers: dict[Worker, list[dict[str, float]]] = {old: [], new: []}
    with old, new:
        for turn in range(turns + 1):
            for worker in (old, new) if turn % 2 else (new, old):
                time.sleep(_SETTLE)
                answer = worker(request)
                if turn:  # the first one warms up
                    answers[worker].append(answer)
    found: dict[str, Any] = {"name": name, "turns": turns, "load": os.getloadavg()[0]}
    for key in ("seconds", "cpu_seconds"):
        before, after = ([answer[key] for answer in answers[worker]] for worker in (old, new))
        quartiles = statistics.quantiles([b / a for a, b in zip(before, after, strict=True)], n=4)
        found[key] = [statistics.median(before), statistics.median(after)]
        found[f"{key}_ratio"] = quartiles
    return found


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    cells = [row["name"]]
    for key in ("seconds", "cpu_seconds"):
        low, middle, high = row[f"{key}_ratio"]
        cells += [*(f"{value:.3g}" for value in row[key]), f"{middle:.3f} ({low:.3f} … {high:.3f})"]
    return (*cells, f"{row['load']:.1f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pythons", nargs=2, metavar="PYTHON", help="interpreters of two environments")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--only", default="", help="rows whose name this pattern matches")
    args = parser.parse_args()
    rows = []
    for row in _ROWS:
        if not re.search(args.only, row[0]):
            continue
        say(f"environments: {row[0]}")
        rows.append(race(args.pythons, row, args.turns))
    columns = ("what", "old, s", "new, s", "ratio (quartiles)", "old, CPU s", "new, CPU s", "ratio", "load")
    print_table("New by old", columns, [_cells(row) for row in rows], left_aligned=1)
    print(json.dumps({"pythons": args.pythons, "rows": rows}))


if __name__ == "__main__":
    main()
