"""Training steps and roll-out on this machine: behind ``make bench`` and ``mlxlava bench``.

    python benchmarks/suite.py [--quick] [--save]

Uses what the package offers to everyone. Every measurement has a process of its own, because the
system counts peak memory a process. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlxlava.console import print_table

RESULTS = Path(__file__).resolve().parent / "results"

Answer = dict[str, Any]

_FULL = {"warm": 2, "repeats": 7, "frames": 300}
_QUICK = {"warm": 1, "repeats": 3, "frames": 90}
_PLAY_FPS = 30.0
_PLAY_STEP_FPS = 15.0  # so every other frame is drawn from a state between learned steps


# --- a process for each measurement ---


class Worker:
    """A Python script that answers one line of JSON to each request; it idles in between.

    Args:
        command: what follows the interpreter on the command line.
        environment: variables to add.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def __call__(self, request: str) -> Answer:
        """Ask, and wait for the answer.

        Raises:
            RuntimeError: the process ended; what it said is on stderr.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"benchmark: {process.args!r} ended with status {process.wait()}")
        answer: Answer = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # the end of its requests
        self._process.wait()


def serve(answer: Callable[[str], Answer]) -> None:
    """Be the other end of a :class:`Worker`."""
    for line in sys.stdin:
        print(json.dumps(answer(line.strip())), flush=True)


def train_steps(recipe_name: str, size: int) -> Callable[[str], Answer]:
    """Training steps of a recipe on random frames.

    Args:
        recipe_name: a recipe that comes with the package.
        size: height and width of a frame.

    Returns:
        A function of the kind of step (``plain``, or ``penalty``: with gradient penalties) that makes
        one and gives its seconds, how often it occurs in training, and the peaks so far.
    """
    import numpy as np

    from mlxlava.backend import mx, peak_memory
    from mlxlava.config import load_recipe, override
    from mlxlava.step import Trainer

    recipe = override(load_recipe(recipe_name), {"data.size": [size, size], "loss.alone": 0.0})
    data, every = recipe.data, recipe.loss.penalty_every
    rng = np.random.default_rng(0)
    count = data.drawn_frames or data.seq_len
    views = recipe.encoder.views  # these come first
    frames = rng.integers(0, 256, (data.batch_size, views + count, size, size, 3), dtype=np.uint8)
    steps = np.tile(np.arange(data.seq_len, dtype=np.int32), (data.batch_size, 1))
    times = np.sort(rng.permuted(steps, axis=1)[:, :count], axis=1)
    times = np.concatenate([steps[:, :views], times], axis=1)
    trainer = Trainer(recipe, 10**6)
    state = trainer.init()
    rounds = 0

    def step(kind: str) -> Answer:
        nonlocal state, rounds
        rounds += 1
        # The step's number decides whether it has penalties (step.py).
        index = rounds * every + (kind != "penalty")
        began = time.perf_counter()
        state, terms = trainer(state, mx.array(frames), mx.array(times), index)
        mx.eval(state, terms)
        seconds = time.perf_counter() - began
        share = 0.0 if recipe.loss.kind != "relativistic" else 1 / every
        return {
            "seconds": seconds,
            "share": share if kind == "penalty" else 1 - share,
            "clips": data.batch_size,
            **{f"peak_{name}_gb": value for name, value in peak_memory().items()},
        }

    return step


def play(recipe_name: str, size: int) -> Callable[[str], Answer]:
    """Roll-out of fresh weights of a recipe, as ``mlxlava loop`` plays: one frame at a time.

    Args:
        recipe_name: a recipe that comes with the package.
        size: height and width of a frame.

    Returns:
        A function of a number of frames that plays on for so many and gives the seconds of one frame
        and the peaks so far.
    """
    from mlxlava.backend import peak_memory
    from mlxlava.checkpoint import Weights, playable
    from mlxlava.config import load_recipe, override
    from mlxlava.rollout import Rollout
    from mlxlava.step import Trainer

    recipe = override(load_recipe(recipe_name), {"data.size": [size, size], "loss.alone": 0.0})
    weights = Weights(recipe, _PLAY_STEP_FPS, playable(Trainer(recipe, 1).init()), {})

    def clock() -> Iterator[float]:
        frame = 0
        while True:
            yield frame / _PLAY_FPS
            frame += 1

    frames = Rollout(weights, seed=0).play(clock())

    def frames_of(count: str) -> Answer:
        began = time.perf_counter()
        for _ in range(int(count)):
            next(frames)
        seconds = (time.perf_counter() - began) / int(count)
        return {"seconds": seconds, **{f"peak_{name}_gb": gb for name, gb in peak_memory().items()}}

    return frames_of


# --- the suite ---


def machine() -> dict[str, Any]:
    """What was measured on: processor, memory, load, system, versions."""
    from mlxlava.backend import describe

    about: dict[str, Any] = {**describe(), "python": platform.python_version(), "system": platform.platform()}
    with contextlib.suppress(ValueError, OSError):  # names that a system may lack
        about["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"
    # Beside other work two BLAS threads wait for each other: timings at a load above 0.5 are no good.
    about["load average"] = f"{os.getloadavg()[0]:.2f}"
    about["time"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return about


def summarise(seconds: Sequence[float]) -> Answer:
    """Median and spread (smallest, largest) of repeated timings."""
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}


def _measure(kind: str, recipe: str, size: int, requests: Sequence[str], repeats: dict[str, int]) -> Answer:
    """Warm up, repeat and summarise each request in one process."""
    result: Answer = {"what": kind, "recipe": recipe, "size": size}
    with Worker([str(Path(__file__).resolve()), "--child", kind, recipe, str(size)]) as worker:
        for request in requests:
            for _ in range(repeats["warm"]):
                worker(request)
            answers = [worker(request) for _ in range(repeats["repeats"])]
            last = answers[-1]
            summary = summarise([answer.pop("seconds") for answer in answers])
            result[request if kind == "step" else "frame"] = {**summary, **last}
    if kind == "step":
        parts = [result[request] for request in requests]
        result["mean_s"] = sum(part["median_s"] * part["share"] for part in parts)
    return result


def _rows(result: Answer) -> Iterator[tuple[str, ...]]:
    """The lines of the table for one measurement."""
    name = f"{result['recipe']} {result['size']}×{result['size']}"
    for key, label in (("plain", "step"), ("penalty", "step with penalties"), ("frame", "frame")):
        if key not in result:
            continue
        part = result[key]
        spread = f"{part['min_s']:.4g} … {part['max_s']:.4g}"
        rate = f"{1 / part['median_s']:.0f} frames/s"
        if key != "frame":
            rate = f"{part['clips'] / part['median_s']:.1f} clips/s"
        memory = (f"{part['peak_mlx_gb']:.2f}", f"{part['peak_process_gb']:.2f}")
        yield (name, label, f"{part['median_s']:.4g}", spread, rate, *memory)
    if "penalty" in result:
        rate = f"{result['penalty']['clips'] / result['mean_s']:.1f} clips/s"
        yield (name, "step, weighted mean", f"{result['mean_s']:.4g}", "", rate, "", "")


def finish(name: str, result: Answer, save: bool) -> None:
    """Print the result as the closing JSON line; with ``save``, append it to the history as well."""
    line = json.dumps({"benchmark": name, **result})
    if save:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as history:
            history.write(line + "\n")
    print(line)


def main(quick: bool = False, save: bool = False) -> None:
    """Measure and print; the last line is JSON.

    Args:
        quick: fewer repeats, and no training at 128×128: under two minutes on two cores.
        save: append the result to ``results/suite.jsonl`` beside this file.
    """
    about = machine()
    print("\n".join(f"{name:14}  {value}" for name, value in about.items()), flush=True)
    repeats = _QUICK if quick else _FULL
    both, plain, frames = ("plain", "penalty"), ("plain",), (str(repeats["frames"]),)
    plan: list[tuple[str, str, int, Sequence[str]]] = [
        ("step", "lava", 64, both),
        ("step", "duralava", 64, plain),
        ("play", "lava", 64, frames),
        ("play", "lava", 128, frames),
        ("play", "duralava", 64, frames),
    ]
    if not quick:
        plan[2:2] = [("step", "lava", 128, both)]
    results = []
    for what, recipe, size, requests in plan:
        print(f"measuring: {what}, {recipe} {size}×{size}", file=sys.stderr, flush=True)
        results.append(_measure(what, recipe, size, requests, repeats))
    columns = ("recipe", "what", "median, s", "min … max", "rate", "MLX peak, GB", "process peak, GB")
    print_table("Medians", columns, [row for result in results for row in _rows(result)], left=2)
    finish("suite", {"machine": about, "quick": quick, "results": results}, save)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repeats: under two minutes")
    parser.add_argument("--save", action="store_true", help="append the result to results/suite.jsonl")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "RECIPE", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, recipe_name, size = args.child
        serve({"step": train_steps, "play": play}[kind](recipe_name, int(size)))
    else:
        main(args.quick, args.save)
