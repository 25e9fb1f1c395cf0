"""Compares two saved runs of the suite: a ratio for each row, and which changes are beyond the spread.

make bench-compare                          # the last saved run against the one before on such a machine
make bench-compare WITH=results/OLD.json    # against any other
python -m benchmarks.compare OLD.json NEW.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxlava.bench.harness import RESULTS_FOLDER
from mlxlava.console import print_table

Row = Mapping[str, Any]

# The least spread that is assumed, as a share of the median: few repeats can agree by chance.
_LEAST_SPREAD = 0.05
_LEAST_MEMORY_CHANGE = 0.05  # of a peak, as a share: smaller ones are not marked
# Facts of a machine on which the time of the same code depends.
_MACHINE_FACTS = ("processor", "device", "threads", "memory", "mlx", "torch", "python")


def verdict(old: Row, new: Row) -> str:
    """``slower`` or ``faster`` where the spreads lie apart, else nothing.

    A spread reaches from the smallest to the largest repeat, and at least 5 % about the median.
    """

    def spread(row: Row) -> tuple[float, float]:
        median = row["median_s"]
        return min(row["min_s"], median * (1 - _LEAST_SPREAD)), max(
            row["max_s"], median * (1 + _LEAST_SPREAD)
        )

    (old_low, old_high), (new_low, new_high) = spread(old), spread(new)
    if new_low > old_high:
        return "slower"
    return "faster" if new_high < old_low else ""


def compared(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A line for each row that both results have: name, who, medians, ratio, verdict, peaks, ratio."""
    before = {(row["name"], row["who"]): row for row in old["rows"] if "note" not in row}
    for row in new["rows"]:
        known = before.get((row["name"], row["who"]))
        if known is None or "note" in row:
            continue
        ratio = row["median_s"] / known["median_s"]
        cells = [f"{known['median_s']:.3g}", f"{row['median_s']:.3g}", f"{ratio:.2f}", verdict(known, row)]
        memory = ["", "", ""]
        if "peak_process_gb" in row and "peak_process_gb" in known:
            change = row["peak_process_gb"] / known["peak_process_gb"]
            flag = "" if abs(change - 1) <= _LEAST_MEMORY_CHANGE else " more" if change > 1 else " less"
            memory = [f"{one['peak_process_gb']:.2f}" for one in (known, row)] + [f"{change:.2f}{flag}"]
        yield (row["name"], row["who"], *cells, *memory)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The facts in which the machines differ. Then the ratios do not come from the code alone."""
    pairs = (
        (key, old["machine"].get(key, "none"), new["machine"].get(key, "none")) for key in _MACHINE_FACTS
    )
    return [f"{key}: {was} → {now}" for key, was, now in pairs if was != now]


def chosen(paths: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """The old and the new result: the two that are given, that one and the last, or the last two of a kind.

    Raises:
        SystemExit: there are not enough.
    """
    if len(paths) == 2:
        return Path(paths[0]), Path(paths[1])
    saved = sorted(folder.glob("[!.]*T*Z-*.json"))
    if not saved:
        sys.exit(f"compare: no result in {folder}; make one with mlxlava bench --save")
    if paths:
        return Path(paths[0]), saved[-1]
    kind = saved[-1].stem.partition("-")[2]
    alike = [path for path in saved[:-1] if path.stem.partition("-")[2] == kind]
    if not alike:
        sys.exit(f"compare: no run before {saved[-1].name} of its kind; name one with WITH=FILE")
    return alike[-1], saved[-1]


def main(paths: Sequence[str]) -> None:
    """Print the comparison of two results."""
    if len(paths) > 2:
        sys.exit("compare: give no file, the old result, or the old and the new one")
    try:
        sides = chosen(paths, RESULTS_FOLDER)
        old, new = (json.loads(path.read_text(encoding="utf-8")) for path in sides)
        rows = list(compared(old, new))
    except (OSError, json.JSONDecodeError, KeyError) as error:
        sys.exit(f"compare: no result of mlxlava bench --save: {error}")
    for side, path in zip(("old", "new"), sides, strict=True):
        print(f"{side}  {path}")
    for text in differences(old, new):
        print(f"the machines differ: {text}")
    if not rows:
        sys.exit("compare: the two have no row in common")
    columns = (
        "what",
        "who",
        "old, s",
        "new, s",
        "new ÷ old",
        "beyond the spread",
        "old, GB",
        "new, GB",
        "new ÷ old",
    )
    print_table("New against old", columns, rows, left_aligned=2)
    print(f"{len(rows)} rows, {sum(bool(row[5]) for row in rows)} beyond the spread")


if __name__ == "__main__":
    main(sys.argv[1:])
