"""Training steps of mlxlava and of PyTorch, which take turns so that other work slows down both."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlxlava.backend import on_cpu, on_gpu_path
from mlxlava.bench.base import FRAME_SIDES, MEASURE_COMMAND, OWN_NAME, Effort, Job, Row, SuiteState
from mlxlava.bench.floor import step_cost
from mlxlava.bench.harness import CHECKOUT_FOLDER, Answer, Worker, WorkerDied, summarise_timings
from mlxlava.bench.measures import resized_recipe
from mlxlava.config import Recipe
from mlxlava.console import say
from mlxlava.training.memory_plan import predict_peak_gb

SMALL_MAC_MEMORY_GB = 16.0  # memory of an M1-class Mac
BATCH_SIZE = 32
# Pause in which the threads of the last measurement stop their busy loops.
_PAUSE_BETWEEN_WORKERS_SECONDS = 0.3
_KEEP_PAGES_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
# Peak of the process divided by the peak of MLX's arrays (docs/performance.md).
_PROCESS_TO_ARRAYS_RATIO = 1.25
_PEER_COMMAND = ("-m", "benchmarks.peer")


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A framework that makes training steps, and how to start it.

    Attributes:
        name: name in the table.
        command: arguments of the interpreter, before the arguments as JSON.
        options: further arguments, in addition to the recipe and the sizes.
        environment: environment variables to add.
        timeout: seconds to wait for one step.
    """

    name: str
    command: Sequence[str]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    timeout: float = 1_200.0


_OWN_STEPS = Contestant(OWN_NAME, (*MEASURE_COMMAND, "train"))


def predicted_process_peak_gb(recipe: Recipe) -> float:
    """Predicted peak memory in GB of a process that trains a recipe. PyTorch needs as much."""
    return predict_peak_gb(recipe, gpu=on_gpu_path()) * _PROCESS_TO_ARRAYS_RATIO


def step_kind_shares(recipe: Recipe) -> dict[str, float]:
    """The kinds of a recipe's training steps, and the share of each kind in a run."""
    if recipe.loss.kind != "relativistic":
        return {"plain": 1.0}
    alone, penalised = recipe.loss.d_start, 1 / recipe.loss.penalty_every
    return {
        "alone": alone,
        "plain": (1 - alone) * (1 - penalised),
        "penalty": (1 - alone) * penalised,
    }


def pytorch_contestants(size: int, quick: bool) -> list[Contestant]:
    """The variants of PyTorch to compare with: all variants at 64×64, only the best one at larger sizes.

    Variants differ in the order of axes (PyTorch's own, or NHWC, channels last), and in whether Inductor
    compiles.
    """
    device = "cpu" if on_cpu() else "mps" if sys.platform == "darwin" else "cuda"
    # The allocator of glibc gives pages back, and the kernel clears them anew. mlxlava turns this off for
    # itself.
    keep = _KEEP_PAGES_ENVIRONMENT if sys.platform.startswith("linux") and device == "cpu" else {}
    kept = ", pages kept" if keep else ""

    def contestant(
        name: str, environment: Mapping[str, str], last: bool, compiled: bool = False
    ) -> Contestant:
        options = {"device": device, "channels_last": last, "compiled": compiled}
        # Inductor takes minutes for the first step, and sometimes never ends.
        return Contestant(
            f"PyTorch {name}", _PEER_COMMAND, options, environment, 300.0 if compiled else 1_200.0
        )

    best = contestant(f"NHWC{kept}", keep, True)
    if quick or size > FRAME_SIDES[0]:
        return [best]
    forms = [contestant("eager", {}, False), contestant("NHWC", {}, True)] if keep else []
    return [
        *forms,
        contestant(f"eager{kept}", keep, False),
        best,
        contestant(f"NHWC compiled{kept}", keep, True, True),
    ]


def train_job(recipe: str, size: int, seq_len: int, others: Sequence[Contestant]) -> Job:
    """The job that measures training steps of all contestants."""
    settings = resized_recipe(recipe, size, seq_len, BATCH_SIZE)
    name = f"train {recipe} {size}x{size} seq{seq_len}"

    def measure(session: SuiteState) -> list[Row]:
        fitting: list[Contestant] = []
        found: list[Row] = []
        peak = predicted_process_peak_gb(settings)
        for one in (_OWN_STEPS, *others):
            if session.memory_limit is not None and peak > session.memory_limit:
                note = f"skipped: about {peak:.0f} GB would not fit in {session.memory_limit:.0f} GB"
                found.append({"name": name, "who": one.name, "note": note})
            else:
                fitting.append(one)
        together = session.memory_limit is None or peak * len(fitting) <= session.memory_limit
        races = [fitting] if together else [[one] for one in fitting]
        timings: dict[str, dict[str, list[float]]] = {}
        peaks: dict[str, dict[str, Answer]] = {}
        try:
            for racing in races:
                found += [
                    {"name": name, "who": who, "note": note}
                    for who, note in race_in_turns(
                        name, settings, racing, session.effort, timings, peaks
                    ).items()
                ]
        except KeyboardInterrupt:  # the turns so far give rows
            session.interrupted = True
        return [*train_rows(name, settings, timings, peaks, session.rates), *found]

    return Job(f"{name} peer" if others else name, measure)


def race_in_turns(
    name: str,
    recipe: Recipe,
    racing: Sequence[Contestant],
    effort: Effort,
    timings: dict[str, dict[str, list[float]]],
    peaks: dict[str, dict[str, Answer]],
) -> dict[str, str]:
    """Let contestants make steps in turns. Fills ``timings`` and ``peaks``; returns who failed, and why."""
    failed: dict[str, str] = {}
    data, spent = recipe.data, 0.0
    sizes = {"size": data.size[0], "seq_len": data.seq_len, "batch_size": data.batch_size}
    with contextlib.ExitStack() as stack:
        # A compiler that is ended halfway leaves broken files in its cache. So each race has a cache of its
        # own.
        own = {"TORCHINDUCTOR_CACHE_DIR": stack.enter_context(tempfile.TemporaryDirectory())}
        workers = {
            one.name: stack.enter_context(
                Worker(
                    [*one.command, json.dumps({"recipe": recipe.name, **sizes, **one.options})],
                    {**one.environment, **own},
                    one.timeout,
                    CHECKOUT_FOLDER,  # the folder from which Python imports benchmarks.peer
                )
            )
            for one in racing
        }
        for turn in itertools.count():
            began = time.perf_counter()
            for who, worker in list(workers.items()):
                for kind in step_kind_shares(recipe):
                    time.sleep(_PAUSE_BETWEEN_WORKERS_SECONDS if len(workers) > 1 else 0)
                    try:
                        answer = worker(kind)
                    except WorkerDied as reason:
                        failed[who] = f"{kind} step: {reason}"
                        del workers[who]
                        break
                    say(f"{name}, turn {turn}: {who}, {kind}: {answer['seconds']:.2f} s")
                    # Later kinds take more memory. So the peak after a kind is the peak of that kind.
                    if not turn:
                        now = {key: value for key, value in answer.items() if key.startswith("peak")}
                        peaks.setdefault(who, {})[kind] = now
                    if turn:
                        timings.setdefault(who, {}).setdefault(kind, []).append(answer["seconds"])
            last = time.perf_counter() - began
            spent += last if turn else 0.0  # the first turn is a warm-up: it compiles, and touches its pages
            if not workers or (turn and (turn >= effort.race_turns or spent + last > effort.race_seconds)):
                return failed
    raise AssertionError("a race has an end")


def train_rows(
    name: str,
    recipe: Recipe,
    timings: Mapping[str, Mapping[str, Sequence[float]]],
    peaks: Mapping[str, Mapping[str, Answer]],
    rates: Mapping[str, float],
) -> list[Row]:
    """The rows of a race: one for each kind of step, and one for their mean.

    Args:
        name: name of the race.
        recipe: recipe that is trained.
        timings: for each contestant and kind, the seconds of each turn.
        peaks: for each contestant and kind, the peak memory.
        rates: rates of ``matmul`` and ``copy``, for the floor; empty for no floor.
    """
    parts = step_kind_shares(recipe)
    frames = recipe.encoder.context_frames + (recipe.data.drawn_frames or recipe.data.seq_len)
    floors = (
        {kind: step_cost(recipe, kind).min_seconds(rates["matmul"], rates["copy"]) for kind in parts}
        if rates
        else {}
    )
    rows: list[Row] = []
    series: dict[tuple[str, str], list[float]] = {}
    for who, by_kind in timings.items():
        whole = {kind: list(values) for kind, values in by_kind.items()}
        if len(parts) > 1 and len(whole) == len(parts):
            turns = zip(*(whole[kind] for kind in parts), strict=False)
            whole["mean"] = [
                sum(s * share for s, share in zip(turn, parts.values(), strict=True)) for turn in turns
            ]
        if floors:
            floors["mean"] = sum(floors[kind] * share for kind, share in parts.items())
        for kind, values in whole.items():
            series[who, kind] = values
            row: Row = {"name": f"{name} {kind}", "who": who, **summarise_timings(values)}
            row |= peaks[who][kind if kind in parts else list(parts)[-1]]
            row["clips_per_s"] = recipe.data.batch_size / row["median_s"]
            row["frames_per_s"] = frames * row["clips_per_s"]
            row["left_of_16_gb"] = SMALL_MAC_MEMORY_GB - row["peak_process_gb"]
            if floors:
                row["floor_s"] = floors[kind]
            if ours := series.get((OWN_NAME, kind)):
                # The median of the ratios of turns: other work that slows down a turn slows down both
                # contestants.
                row["mlxlava_ratio"] = statistics.median(a / b for a, b in zip(ours, values, strict=False))
            rows.append(row)
    return rows
