"""Draws time and memory of a training step over the resolution.

    python -m mlxlava.bench.chart benchmarks/results/NAME.json [-o FILE.png]

``mlxlava bench --save`` writes it beside the result.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxlava.console import say

Curves = dict[str, list[tuple[int, float, float]]]

_TRAIN_ROW_NAME = re.compile(r"train (?P<recipe>\w+) (?P<size>\d+)x\d+ seq(?P<seq>\d+) (?P<kind>\w+)")


def curves_of_result(result: Mapping[str, Any]) -> Curves:
    """The curves of the chart. Each is a list of (size, seconds, GB), with rising sizes.

    There is a curve for each recipe, sequence length and contestant. If a recipe has several kinds of steps,
    the curve shows their mean over a run.
    """
    found: Curves = {}
    for row in result["rows"]:
        match = _TRAIN_ROW_NAME.fullmatch(row["name"])
        if "note" in row or not match or match["kind"] not in ("mean", "plain"):
            continue
        if match["kind"] == "plain" and match["recipe"] == "lava":
            continue
        label = f"{match['recipe']}, sequence {match['seq']}: {row['who']}"
        found.setdefault(label, []).append((int(match["size"]), row["median_s"], row["peak_process_gb"]))
    return {label: sorted(points) for label, points in found.items()}


def write_chart(result: Mapping[str, Any], path: Path) -> None:
    """Draw the chart of a result, or print a line that says why there is none."""
    lines = curves_of_result(result)
    if not lines:
        say("chart: the result has no training step, so there is nothing to draw")
        return
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
        from matplotlib import ticker
    except ImportError:
        say('chart: matplotlib is not installed; pip install "mlxlava[score]"')
        return
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    recipes = sorted({label.partition(",")[0] for label in lines})
    for label, points in lines.items():
        sizes, seconds, memory = zip(*points, strict=True)
        style: dict[str, Any] = {
            "color": f"C{recipes.index(label.partition(',')[0])}",
            "linestyle": "-" if label.endswith("mlxlava") else "--",
            "marker": "o" if "sequence 20:" in label else "s",
            "alpha": 1.0 if label.endswith("mlxlava") else 0.6,
        }
        axes[0].plot(sizes, seconds, label=label, **style)
        axes[1].plot(sizes, memory, **style)
    axes[1].axhline(16, color="grey", linewidth=0.8, linestyle=":")
    axes[1].annotate("16 GB", (0.02, 16), xycoords=("axes fraction", "data"), va="bottom", color="grey")
    ticks = sorted({size for points in lines.values() for size, _, _ in points})
    for axis, title in zip(axes, ("seconds a training step, batch 32", "process peak, GB"), strict=True):
        axis.set(xscale="log", yscale="log", title=title, xlabel="height and width of a frame")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    about = result["machine"]
    figure.suptitle(f"{about['processor']}, {about['device']}, MLX {about['mlx']}, {about['time'][:10]}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=90)
    plt.close(figure)
    say(f"chart: wrote {path}")


def main() -> None:
    """Draw the chart of a saved result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("result", type=Path, help="what mlxlava bench --save wrote")
    parser.add_argument("-o", dest="target", type=Path, help="picture to write; beside the result")
    args = parser.parse_args()
    result = json.loads(args.result.read_text(encoding="utf-8"))
    write_chart(result, args.target or args.result.with_suffix(".png"))


if __name__ == "__main__":
    main()
