"""Markdown tables of docs/score.md and docs/performance.md, out of the JSON that commands print or save.

mlxlava score lava --json > lava.json
python -m benchmarks.tables lava.json other.json     # a column for each
mlxlava drift lava --frames 1000000 --json > drift.json
python -m benchmarks.tables drift.json
python -m benchmarks.tables benchmarks/results/NAME.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]

_STATE = {
    "deviation": "deviation",
    "kurtosis": "kurtosis",
    "norm": "norm",
    "epps_pulley_axes": "E–P axes",
    "epps_pulley_directions": "E–P directions",
    "covariance": "‖cov − I‖²/Z",
}


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}".replace("-", "−")


def _with(value: float, interval: Sequence[float]) -> str:
    return f"{_number(value)} ({_number(interval[0])} … {_number(interval[1])})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def score(results: Sequence[Result]) -> list[str]:
    """A row a measure: the floor, then value and ratio of each result."""
    head = ["measure", "real against real"]
    for result in results:
        head += [str(result["weights"]), "ratio"]
    rows = [_row(head), "|---" * len(head) + "|"]
    for name, first in results[0]["measures"].items():
        cells = [f"`{name}`", _with(first["floor"], first["floor_interval"])]
        for result in results:
            one = result["measures"][name]
            cells += [_with(one["value"], one["interval"]), _number(one["ratio"])]
        rows.append(_row(cells))
    for name in results[0]["headline"]:
        cells = [f"**{name}**", ""]
        for result in results:
            cells += ["", f"**{_number(result['headline'][name])}**"]
        rows.append(_row(cells))
    return rows


def drift(result: Result) -> list[str]:
    """A row a window, what real footage and N(0, I) give, the slopes; and a line each for the rest."""
    measures = list(result["windows"][0]["measures"])
    head = ["learned steps", *(f"`{name}`" for name in measures), *_STATE.values()]
    rows = [_row(head), "|---" * len(head) + "|"]
    for window in result["windows"]:
        cells = [f"{window['frames']:,}", *(_number(window["measures"][name]) for name in measures)]
        rows.append(_row([*cells, *(f"{window['state'][name]:.3f}" for name in _STATE)]))
    ranges = [(result["real"][name][0], result["real"][name][2]) for name in measures]
    ranges += [result["null"][name] for name in _STATE]
    rows.append(
        _row(["*real; 95 % of N(0, I)*", *(f"{_number(low)} … {_number(high)}" for low, high in ranges)])
    )
    slopes = [result["slopes"][name] for name in [*measures, *(f"state.{name}" for name in _STATE)]]
    cells = [
        _with(one["slope"], one["interval"]) + ("" if one["holds_zero"] else " **≠ 0**") for one in slopes
    ]
    rows += [_row(["*slope a decade*", *cells]), ""]
    every = result["slopes"]
    missed = [name for name, one in every.items() if not one["holds_zero"]]
    drifting = [name for name, one in every.items() if not one["holds_zero_together"]]
    returns = result["returns"]
    said = [
        f"{len(every) - len(missed)} of {len(every)} slopes hold zero"
        + (f"; not: {', '.join(missed)}" if missed else ""),
        f"at once, with 95 % for all of them: {', '.join(drifting) if drifting else 'none'} misses zero",
        f"nearest return {returns['own']:.2f}, to another lamp's place {returns['others']:.2f}, "
        f"ratio {_with(returns['ratio'], returns['interval'])}",
    ]
    if "lyapunov" in result:
        exponent = result["lyapunov"]
        said.append(f"largest Lyapunov exponent a step {_with(exponent['per_step'], exponent['interval'])}")
        said.append(f"loops within a clip: ratio to real footage {_number(result['loops']['ratio'])}")
    said.append(f"memory {result['windows'][-1]['resident_gb']:.2f} GB; {result['seconds'] / 60:.0f} min")
    return [*rows, *(f"- {text}" for text in said)]


def bench(result: Result) -> list[str]:
    """Training steps, then everything else, then what could not be measured; seconds are medians."""
    measured = [row for row in result["rows"] if "note" not in row]
    head = ["", "who", "step", "min … max", "clips/s", "÷ floor", "mlxlava ÷ it", "process, GB (arrays)"]
    rows = [_row(head), "|---" * len(head) + "|"]
    for row in measured:
        if not row["name"].startswith("train "):
            continue
        over = _number(row["median_s"] / row["floor_s"]) if "floor_s" in row else ""
        ratio = _number(row["mlxlava_ratio"]) if row["who"] != "mlxlava" and "mlxlava_ratio" in row else ""
        memory = f"{row['peak_process_gb']:.2f}"
        if "peak_arrays_gb" in row:
            memory += f" ({row['peak_arrays_gb']:.2f})"
        cells = [row["name"].removeprefix("train "), row["who"], *_seconds(row), _number(row["clips_per_s"])]
        rows.append(_row([*cells, over, ratio, memory]))
    head = ["", "median", "min … max", "rate", "process, GB"]
    rows += ["", _row(head), "|---" * len(head) + "|"]
    for row in measured:
        if row["name"].startswith("train "):
            continue
        rate = f"{_number(row['frames_per_s'], 4)} frames/s" if "frames_per_s" in row else ""
        if "per_s" in row:
            rate = f"{row['per_s'] / 1e9:.3g} {'GFLOP/s' if row['name'] == 'rate matmul' else 'GB/s'}"
        memory = row.get("resident_gb", row.get("peak_process_gb"))
        rows.append(_row([row["name"], *_seconds(row), rate, "" if memory is None else f"{memory:.3f}"]))
    notes = [f"- {row['name']}, {row['who']}: {row['note']}" for row in result["rows"] if "note" in row]
    return [*rows, "", *notes]


def _seconds(row: Result) -> tuple[str, str]:
    spread = f"{_number(row['min_s'])} … {_number(row['max_s'])} ({row['repeats']}×)"
    return f"{_number(row['median_s'])} s", spread


def main(paths: Sequence[str]) -> None:
    """Print the table of one drift or benchmark, or of scores side by side."""
    results = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    if not results:
        sys.exit("give files that mlxlava score --json or drift --json printed, or bench --save wrote")
    if "rows" in results[0]:
        for result in results:
            print("\n".join(bench(result)))
    elif "windows" in results[0]:
        for result in results:
            print("\n".join(drift(result)), end="\n\n")
    else:
        print("\n".join(score(results)))


if __name__ == "__main__":
    main(sys.argv[1:])
