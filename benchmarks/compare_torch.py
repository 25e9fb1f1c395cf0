"""mlxlava's training step beside the same step in PyTorch, in one run: behind ``make bench-compare``.

    python benchmarks/compare_torch.py [--recipe duralava] [--rounds 5] [--save]

Each contestant has a process of its own that is kept alive; they step in turns, so that whatever else
the machine does meets all of them, and all but one are idle. PyTorch runs eagerly, as it is installed
and with two helps: channels-last pictures, and an allocator that keeps its pages (mlxlava sets the
same for itself; see docs/benchmarks.md). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import suite
from mlxlava.console import print_table

_HERE = Path(__file__).resolve().parent
_KEEP_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
_SETTLE = 0.3  # seconds in which the threads of who was just measured stop spinning


def torch_steps(recipe: str, layout: str, device: str) -> Callable[[str], suite.Answer]:
    """Training steps of the PyTorch peer on random frames; answers as :func:`suite.train_steps` does."""
    import peer_torch

    rng = np.random.default_rng(0)
    last = layout == "channels-last"
    # lava: four frames to encode, three to draw
    batch, count = (32, 20) if recipe == "duralava" else (24, 7)
    frames = rng.integers(0, 256, (batch, count, 64, 64, 3), dtype=np.uint8)
    make: dict[str, Callable[[], dict[str, float]]] = {}
    if recipe == "duralava":
        step = peer_torch.make_step(device=device, channels_last=last)
        make["plain"] = lambda: step(frames)
    else:
        every = np.tile(np.arange(32, dtype=np.int32), (batch, 1))
        times = np.sort(rng.permuted(every, axis=1)[:, :3], axis=1)
        plain = peer_torch.make_lava_step(device=device, channels_last=last, penalty_every=0)
        penalised = peer_torch.make_lava_step(device=device, channels_last=last, penalty_every=1)
        make |= {"plain": lambda: plain(frames, times), "penalty": lambda: penalised(frames, times)}

    def answer(kind: str) -> suite.Answer:
        began = time.perf_counter()
        make[kind]()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "peak_process_gb": peer_torch.peak_rss_mb() / 1e3}

    return answer


def compare(recipe: str, rounds: int, device: str) -> suite.Answer:
    """Step all contestants in turns, once to warm up and then ``rounds`` times."""
    script = str(Path(__file__).resolve())
    kinds = ("plain", "penalty") if recipe == "lava" else ("plain",)
    seconds: dict[str, dict[str, list[float]]] = {}
    peaks: dict[str, suite.Answer] = {}
    with contextlib.ExitStack() as stack:
        mine = suite.Worker([str(_HERE / "suite.py"), "--child", "step", recipe, "64"])
        workers = {"mlxlava": stack.enter_context(mine)}
        for layout in ("eager", "channels-last"):
            for pages, environment in (("", {}), (", pages kept", _KEEP_PAGES)):
                if pages and not sys.platform.startswith("linux"):
                    continue
                command = [script, "--child", recipe, layout, device]
                worker = stack.enter_context(suite.Worker(command, environment))
                workers[f"PyTorch {layout}{pages}"] = worker
        for turn in range(1 + rounds):
            for name, worker in workers.items():
                for kind in kinds:
                    time.sleep(_SETTLE)
                    answer = worker(kind)
                    print(
                        f"{recipe}, turn {turn}: {name}, {kind}: {answer['seconds']:.2f} s", file=sys.stderr
                    )
                    peaks[name] = {key: value for key, value in answer.items() if key.startswith("peak")}
                    if turn:
                        seconds.setdefault(name, {}).setdefault(kind, []).append(answer["seconds"])
    result: suite.Answer = {"recipe": recipe, "rounds": rounds, "device": device}
    for name, by_kind in seconds.items():
        result[name] = {kind: suite.summarise(values) for kind, values in by_kind.items()} | peaks[name]
        for kind, values in by_kind.items():
            # The ratio of each turn, then the median: what slows a turn down slows both.
            ours = seconds["mlxlava"][kind]
            ratio = statistics.median(a / b for a, b in zip(ours, values, strict=True))
            result[name][kind]["mlxlava_ratio"] = ratio
    return result


def _rows(result: suite.Answer) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, part in result.items():
        if not isinstance(part, dict):
            continue
        memory = (
            f"{part['peak_mlx_gb']:.2f}" if "peak_mlx_gb" in part else "",
            f"{part['peak_process_gb']:.2f}",
        )
        for kind, label in (("plain", "step"), ("penalty", "step with penalties")):
            if kind in part:
                timing = part[kind]
                spread = f"{timing['min_s']:.3f} … {timing['max_s']:.3f}"
                ratio = f"{timing['mlxlava_ratio']:.2f}"
                rows.append((name, label, f"{timing['median_s']:.3f}", spread, ratio, *memory))
    return rows


def _device() -> str:
    """PyTorch's name of what MLX runs on."""
    from mlxlava.backend import on_cpu

    if on_cpu():
        return "cpu"
    return "mps" if sys.platform == "darwin" else "cuda"


def main(recipes: list[str], rounds: int, device: str, save: bool) -> None:
    """Compare and print; the last line is JSON."""
    import torch

    about = suite.machine() | {"torch": torch.__version__, "torch threads": torch.get_num_threads()}
    print("\n".join(f"{name:14}  {value}" for name, value in about.items()), flush=True)
    results = []
    for recipe in recipes:
        results.append(compare(recipe, rounds, device))
        columns = (
            "who",
            "what",
            "median, s",
            "min … max",
            "mlxlava ÷ it",
            "MLX peak, GB",
            "process peak, GB",
        )
        print_table(f"{recipe}, 64×64", columns, _rows(results[-1]), left=2)
    suite.finish("compare_torch", {"machine": about, "results": results}, save)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", choices=("duralava", "lava"), help="both when not given")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each, after one that warms up")
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "mps"), help="of PyTorch; as MLX's when not given"
    )
    parser.add_argument("--save", action="store_true", help="append the result to results/")
    parser.add_argument("--child", nargs=3, metavar=("RECIPE", "LAYOUT", "DEVICE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        suite.serve(torch_steps(*args.child))
    else:
        main(
            [args.recipe] if args.recipe else ["duralava", "lava"],
            args.rounds,
            args.device or _device(),
            args.save,
        )
