"""What `train --watch` costs: pictures a second, and the training steps a second with and without a viewer.

    python -m benchmarks.watching                          # the built-in lamp, four minutes
    python -m benchmarks.watching --stretches 36 --set data.size=32

A training runs with its web page. This process looks at the page in every second stretch of some seconds,
and says at once that it has drawn what it gets. Steps are counted in the run's own log, and belong to a
stretch if they began and ended in it. So both kinds of stretches see the same other load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import aiohttp

from benchmarks.viewers import view
from mlxlava.bench.harness import machine_facts
from mlxlava.records import LOG_LINE
from mlxlava.schema import read_lines

_SETTLING_SECONDS = 20.0  # the first steps compile, and the viewer waits for weights


async def _count_pictures(url: str, seconds: float) -> int:
    """Look at the page for a while, and return the number of pictures."""
    async with aiohttp.ClientSession() as session:
        count, _ = await view(session, url, time.monotonic() + seconds)
    return count


def _steps(log: Path) -> list[tuple[int, float]]:
    """Each training step that was logged, with the seconds of training until its end."""
    return [(row["step"], row["seconds"]) for _, row in read_lines(log, LOG_LINE) if "seconds" in row]


def _measure(url: str, log: Path, stretches: int, seconds: float) -> dict[str, list[float]]:
    """Steps a second of ``watched`` stretches and of those ``alone``; ``pictures`` a second while watched."""
    found: dict[str, list[float]] = {"watched": [], "alone": [], "pictures": []}
    for stretch in range(stretches):
        first = len(_steps(log))
        watched = stretch % 2 == 0
        if watched:
            found["pictures"].append(asyncio.run(_count_pictures(url, seconds)) / seconds)
        else:
            time.sleep(seconds)
        steps = _steps(log)[first:]
        if len(steps) > 1:
            (start, began), (end, ended) = steps[0], steps[-1]
            found["watched" if watched else "alone"].append((end - start) / (ended - began))
    return found


def main() -> None:
    """Train, look in turns, and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stretches", type=int, default=35)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each stretch")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="settings of the recipe"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "mlxlava",
            "train",
            "-o",
            str(run),
            "--watch",
            "web",
            "--steps",
            "100000",
        ]
        for setting in arguments.set:
            command += ["--set", setting]
        training = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert training.stderr is not None
            url = ""
            while not url:
                line = training.stderr.readline()
                if not line:
                    raise SystemExit("the training has ended")
                if matched := re.search(r"watch it at (\S+?);", line):
                    url = matched[1]
            time.sleep(_SETTLING_SECONDS)
            while not (run / "log.jsonl").exists() or len(_steps(run / "log.jsonl")) < 3:
                time.sleep(1)
            found = _measure(url, run / "log.jsonl", arguments.stretches, arguments.seconds)
        finally:
            training.send_signal(signal.SIGINT)
            training.communicate()
    result = {name: round(median(values), 3) for name, values in found.items()}
    result["watched by alone"] = round(result["watched"] / result["alone"], 3)
    print(json.dumps({**result, "stretches": arguments.stretches, "machine": machine_facts()}, indent=2))


if __name__ == "__main__":
    main()
