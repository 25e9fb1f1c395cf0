"""The tables of ``mlxlava bench``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from mlxlava.bench.base import OWN_NAME, Row
from mlxlava.console import print_table

_TRAIN_COLUMNS = (
    *("who", "step", "median, s", "min … max (times)", "clips/s", "frames/s"),
    *("÷ floor", "mlxlava ÷ it", "arrays, GB", "process", "left of 16 GB"),
)
_OTHER_COLUMNS = ("what", "median, s", "min … max (times)", "rate", "arrays, GB", "process", "at the end")


def _format_cell(row: Row, key: str, form: str) -> str:
    return format(row[key], form) if row.get(key) is not None else ""


def _format_min_and_max(row: Row) -> str:
    return f"{row['min_s']:.3g} … {row['max_s']:.3g} ({row['repeats']})"


def _cells_of_train_row(row: Row) -> tuple[str, ...]:
    """The cells of a row about a training step, without the name of its race."""
    over = f"{row['median_s'] / row['floor_s']:.2f}" if row.get("floor_s") else ""
    ratio = _format_cell(row, "mlxlava_ratio", ".2f") if row["who"] != OWN_NAME else ""
    memory = [_format_cell(row, f"{key}_gb", ".2f") for key in ("peak_arrays", "peak_process", "left_of_16")]
    rates = [_format_cell(row, key, ".3g") for key in ("clips_per_s", "frames_per_s")]
    kind = row["name"].rpartition(" ")[2]
    return (
        row["who"],
        kind,
        _format_cell(row, "median_s", ".3g"),
        _format_min_and_max(row),
        *rates,
        over,
        ratio,
        *memory,
    )


def _cells_of_other_rows(row: Row) -> tuple[str, ...]:
    """The cells of any other row."""
    rate = f"{row['frames_per_s']:.4g} frames/s" if "frames_per_s" in row else ""
    if "per_s" in row:
        rate = f"{row['per_s'] / 1e9:.4g} {'GFLOP/s' if row['name'] == 'rate matmul' else 'GB/s'}"
    memory = [_format_cell(row, f"{key}_gb", ".3f") for key in ("peak_arrays", "peak_process", "resident")]
    return (row["name"], _format_cell(row, "median_s", ".3g"), _format_min_and_max(row), rate, *memory)


def print_tables(rows: Sequence[Row]) -> None:
    """Print a table for each race of training steps, a table of all other rows, and what was not measured."""
    measured = [row for row in rows if "note" not in row]
    races = itertools.groupby(
        (row for row in measured if row["name"].startswith("train ")),
        key=lambda row: row["name"].rpartition(" ")[0],
    )
    for name, steps in races:
        print_table(name, _TRAIN_COLUMNS, [_cells_of_train_row(row) for row in steps], left_aligned=2)
    others = [_cells_of_other_rows(row) for row in measured if not row["name"].startswith("train ")]
    if others:
        print_table("Playing and the rest", _OTHER_COLUMNS, others)
    for row in rows:
        if "note" in row:
            print(f"{row['name']}, {row['who']}: {row['note']}")
