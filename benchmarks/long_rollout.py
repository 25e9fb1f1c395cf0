"""A long roll-out: does the lamp stay what it was?

    python benchmarks/long_rollout.py [--weights NAME|PATH] [--frames 20000] [--seed 0] [--save]

Rolls a lamp for so many learned steps, one frame each, as ``mlxlava loop`` plays it. Reports whether every
frame is finite and differs from the one before, the moments of the state and the motion in the first and
in the last window, and the memory of the process on the way. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

import suite
from mlxlava.checkpoint import load_weights
from mlxlava.console import clock, progress
from mlxlava.rollout import Rollout

_WINDOW = 500  # frames at either end


def moments(states: npt.NDArray[np.float32]) -> dict[str, float]:
    """Of all numbers of a window of states (T, Z); a normal law has 0, 1, 0, 3, and norm √Z."""
    values = states.astype(np.float64)
    mean, deviation = values.mean(), values.std()
    normal = (values - mean) / deviation
    return {
        "mean": float(mean),
        "deviation": float(deviation),
        "skewness": float((normal**3).mean()),
        "kurtosis": float((normal**4).mean()),
        "norm": float(np.linalg.norm(values, axis=1).mean()),
    }


def resident() -> float:
    """Memory of the process now, GB; its peak where the system does not say."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def roll(name: str | None, count: int, seed: int) -> suite.Answer:
    """Roll ``count`` learned steps and look at both ends."""
    weights = load_weights(name)
    rollout = Rollout(weights, seed)
    states = np.empty((2, _WINDOW, weights.recipe.generator.state_size), np.float32)
    motion = np.zeros(count)
    memory: dict[str, float] = {}
    still = 0
    last = None
    began = time.perf_counter()
    times = (step / weights.step_fps for step in range(count))
    with progress("roll-out") as update:
        for step, (_, frame) in enumerate(rollout.play(times)):
            if last is not None:
                motion[step] = np.abs(frame.astype(np.int16) - last).mean()
                still += int(np.array_equal(frame, last))
            last = frame.astype(np.int16)
            # The next frame is queued already, so these are the states of one step on.
            for end, first in enumerate((0, count - _WINDOW)):
                if first <= step < first + _WINDOW:
                    states[end, step - first] = rollout.states[0]
            if step + 1 in (1000, count):
                memory[str(step + 1)] = resident()
            update(step + 1, count, f"{step + 1} of {count} frames")
    ends = ("first", "last")
    return {
        "frames": count,
        "lamp_time": clock(count / weights.step_fps),
        "frames_per_second": count / (time.perf_counter() - began),
        "finite": bool(np.isfinite(states).all() and np.isfinite(rollout.states).all()),
        "frames_that_stand_still": still,
        "state": {end: moments(states[i]) for i, end in enumerate(ends)},
        "motion": {"first": float(motion[1:_WINDOW].mean()), "last": float(motion[-_WINDOW:].mean())},
        "last_frame": {"mean": float(last.mean()), "deviation": float(last.std())}
        if last is not None
        else {},
        "resident_gb": memory,
    }


def main() -> None:
    """Roll and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", metavar="NAME|PATH", help="a learned lamp; the shipped one if not given")
    parser.add_argument("--frames", type=int, default=20_000, help=f"learned steps, at least {2 * _WINDOW}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="append the result to results/long_rollout.jsonl")
    args = parser.parse_args()
    if args.frames < 2 * _WINDOW:
        parser.error(f"--frames must be at least {2 * _WINDOW}")
    result = roll(args.weights, args.frames, args.seed)
    columns = ("of the state", "first", "last")
    first, last = result["state"]["first"], result["state"]["last"]
    rows: list[tuple[str, ...]] = [(name, f"{first[name]:+.3f}", f"{last[name]:+.3f}") for name in first]
    rows.append(("motion, grey levels a step", *(f"{value:.2f}" for value in result["motion"].values())))
    suite.print_table(f"{args.frames} learned steps, {_WINDOW} at either end", columns, rows)
    suite.finish("long_rollout", {"machine": suite.machine(), "weights": args.weights, **result}, args.save)


if __name__ == "__main__":
    main()
