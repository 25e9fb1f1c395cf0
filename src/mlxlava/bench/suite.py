"""The benchmark of ``make bench`` and ``mlxlava bench``: training, playing, preparing and scoring.

    mlxlava bench [--quick] [--only PATTERN] [--save] [--memory GB]

Every measurement has a process of its own. So the system counts its peak memory separately, and a measurement
that runs out of memory is only a line of the table. In a checkout where PyTorch is installed, the same
training steps run in PyTorch as well. They take turns with mlxlava's, so that other work on the machine slows
down both. Ctrl-C ends the suite early: the results so far are shown, and saved if that was asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxlava.backend import on_cpu, on_gpu_path
from mlxlava.backend.cpu.worker_streams import worker_streams
from mlxlava.bench import chart
from mlxlava.bench.floor import step_cost
from mlxlava.bench.harness import (
    CHECKOUT_FOLDER,
    RESULTS_FOLDER,
    Answer,
    Worker,
    WorkerDied,
    machine_facts,
    recommended_working_set_gb,
    summarise_timings,
    total_memory_gb,
)
from mlxlava.bench.measures import resized_recipe
from mlxlava.config import Recipe
from mlxlava.console import print_table, say
from mlxlava.errors import UserError
from mlxlava.training.memory_plan import predict_peak_gb

Row = dict[str, Any]

SMALL_MAC_MEMORY_GB = 16.0  # memory of an M1-class Mac
BATCH_SIZE = 32
FRAME_SIDES = (64, 128, 256)
SEQ_LENS = (20, 200)
# Pause in which the threads of the last measurement stop their busy loops.
_PAUSE_BETWEEN_WORKERS_SECONDS = 0.3
_KEEP_PAGES_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
# Peak of the process divided by the peak of MLX's arrays (docs/performance.md).
_PROCESS_TO_ARRAYS_RATIO = 1.25


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        race_seconds: longest time of a training race, without its warm-up. At least one turn is timed.
        race_turns: most turns of a training race.
        repeats: repeats of every other measurement.
        frames_per_repeat: frames that are played in a repeat.
        memory_ages: numbers of frames after which the memory of a roll-out is measured.
        film_seconds: length of a film.
        scored_frames: number of frames to score.
    """

    race_seconds: float = 80.0
    race_turns: int = 7
    repeats: int = 5
    frames_per_repeat: int = 300
    memory_ages: tuple[int, int] = (1_000, 20_000)
    film_seconds: int = 20
    scored_frames: int = 1024


FULL_EFFORT = Effort()
QUICK_EFFORT = Effort(
    race_seconds=12.0,
    race_turns=3,
    repeats=3,
    frames_per_repeat=60,
    memory_ages=(200, 1_000),
    film_seconds=4,
    scored_frames=256,
)


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


_MEASURE_COMMAND = ("-m", "mlxlava.bench.measures")
_PEER_COMMAND = ("-m", "benchmarks.peer")

MLXLAVA_CONTESTANT = Contestant("mlxlava", (*_MEASURE_COMMAND, "train"))


@dataclasses.dataclass
class SuiteState:
    """State that the measurements of one run of the suite share.

    Attributes:
        effort: how much is measured.
        memory_limit: memory in GB that a measurement may take; None for no limit.
        rates: measured rates: FLOP/s of a matrix product and bytes/s of a copy.
        folder: folder for temporary files.
        interrupted: whether Ctrl-C was pressed.
    """

    effort: Effort
    memory_limit: float | None
    folder: Path
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    interrupted: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """A measurement: its name, and a function that measures and returns rows."""

    name: str
    measure: Callable[[SuiteState], list[Row]]


# --- training steps ---


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
        for one in (MLXLAVA_CONTESTANT, *others):
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
                    for who, note in _race_in_turns(
                        name, settings, racing, session.effort, timings, peaks
                    ).items()
                ]
        except KeyboardInterrupt:  # the turns so far give rows
            session.interrupted = True
        return [*train_rows(name, settings, timings, peaks, session.rates), *found]

    return Job(f"{name} peer" if others else name, measure)


def _race_in_turns(
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
            if ours := series.get((MLXLAVA_CONTESTANT.name, kind)):
                # The median of the ratios of turns: other work that slows down a turn slows down both
                # contestants.
                row["mlxlava_ratio"] = statistics.median(a / b for a, b in zip(ours, values, strict=False))
            rows.append(row)
    return rows


# --- everything else ---


def _start_worker(measure: str, arguments: Answer) -> Worker:
    return Worker([*_MEASURE_COMMAND, measure, json.dumps(arguments)])


def _measure_repeats(
    measure: str, arguments: Answer, request: str, warm_up_requests: int, repeats: int
) -> tuple[list[float], Answer]:
    """Repeat a measurement in one process. Returns the seconds of each repeat, and the last answer."""
    with _start_worker(measure, arguments) as worker:
        for _ in range(warm_up_requests):
            worker(request)
        answers = [worker(request) for _ in range(repeats)]
    return [answer["seconds"] for answer in answers], answers[-1]


def _make_row(name: str, seconds: Sequence[float], answer: Answer, frames: int = 0) -> Row:
    peaks = {key: value for key, value in answer.items() if key.startswith("peak")}
    row: Row = {"name": name, "who": MLXLAVA_CONTESTANT.name, **summarise_timings(seconds), **peaks}
    if frames:
        row["frames_per_s"] = frames / row["median_s"]
    return row


def peak_rates_job() -> Job:
    """The job that measures the rates of a matrix product and a copy, for the floors."""

    def measure(session: SuiteState) -> list[Row]:
        small = on_cpu()
        arguments = {"side": 2048 if small else 8192, "floats": 2**26 if small else 2**28}
        found = []
        for what in ("matmul", "copy"):
            seconds, _ = _measure_repeats("rates", arguments, what, 2, 7)
            row = _make_row(f"rate {what}", seconds, {})
            work = 2 * arguments["side"] ** 3 if what == "matmul" else 8 * arguments["floats"]
            work *= len(worker_streams())  # each stream does the same work
            session.rates[what] = row["per_s"] = work / row["median_s"]
            found.append(row)
        return found

    return Job("rate train peer", measure)


def play_job(kind: str, recipe: str, size: int) -> Job:
    """The job that plays frames at twice the learned rate: ``live``, one at a time, or ``batched``."""
    name = f"play {kind} {recipe} {size}x{size}"

    def measure(session: SuiteState) -> list[Row]:
        count = session.effort.frames_per_repeat * FRAME_SIDES[0] // size
        arguments = {"recipe": recipe, "size": size}
        seconds, answer = _measure_repeats(kind, arguments, str(count), 1, session.effort.repeats)
        return [_make_row(name, seconds, answer, count)]

    return Job(name, measure)


def rollout_memory_job() -> Job:
    """The job that measures the memory of a roll-out when it is young and when it is old."""
    name = "play memory lava 64x64"

    def measure(session: SuiteState) -> list[Row]:
        found, at = [], 0
        with _start_worker("live", {"recipe": "lava", "size": 64}) as worker:
            for age in session.effort.memory_ages:
                answer = worker(str(age - at))
                row = _make_row(f"{name} frame {age}", [answer["seconds"]], answer, age - at)
                found.append({**row, "resident_gb": answer["resident_gb"]})
                at = age
        return found

    return Job(name, measure)


def _mlxlava_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mlxlava", *arguments]


def _seconds_of_command(command: Sequence[str]) -> float:
    began = time.perf_counter()
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ended.returncode:
        raise WorkerDied(ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else "no reason given")
    return time.perf_counter() - began


def write_file_job(format: str) -> Job:
    """The job that times ``mlxlava loop`` into a file, from the start of the command to its end."""
    name = f"play {format}"

    def measure(session: SuiteState) -> list[Row]:
        length = session.effort.film_seconds
        command = _mlxlava_command(
            "loop", "--seconds", str(length), "-o", str(session.folder / f"film.{format}")
        )
        seconds = [_seconds_of_command(command) for _ in range(1 + session.effort.repeats)][1:]
        return [_make_row(f"{name} shipped {length} s", seconds, {}, length * 30)]

    return Job(name, measure)


def first_frame_job() -> Job:
    """The job that times the first frame, from the start of the command to the frame's last byte."""

    def seconds_to_first_frame() -> float:
        command = _mlxlava_command("loop", "--forever", "-o", "-", "--format", "raw")
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            size = 64 * 64 * 3
            whole = len(process.stdout.read(size)) == size
            seconds = time.perf_counter() - began
            process.stdout.close()  # the closed pipe ends the command
        if not whole:
            raise WorkerDied("mlxlava loop wrote no frame")
        return seconds

    def measure(session: SuiteState) -> list[Row]:
        return [
            _make_row(
                "start first frame",
                [seconds_to_first_frame() for _ in range(1 + session.effort.repeats)][1:],
                {},
            )
        ]

    return Job("start first frame", measure)


def help_job() -> Job:
    """The job that times ``mlxlava --help``."""

    def measure(session: SuiteState) -> list[Row]:
        seconds = [
            _seconds_of_command(_mlxlava_command("--help")) for _ in range(1 + session.effort.repeats)
        ][1:]
        return [_make_row("start help", seconds, {})]

    return Job("start help", measure)


def prepare_footage_job() -> Job:
    """The job that times preparing a film for training."""

    def measure(session: SuiteState) -> list[Row]:
        film = session.folder / "lamp.mp4"
        _seconds_of_command(
            _mlxlava_command("lamp", "--size", "64", "--scale", "6", "--seconds", "10", "-o", str(film))
        )
        arguments = {"video": str(film), "size": 64}
        seconds, answer = _measure_repeats("prepare", arguments, "", 1, session.effort.repeats)
        return [_make_row("footage 384x384 to 64x64", seconds, answer, answer["frames"])]

    return Job("footage", measure)


def score_job() -> Job:
    """The job that times ``mlxlava score`` of the shipped weights, without drawing the footage."""

    def measure(session: SuiteState) -> list[Row]:
        seconds, answer = _measure_repeats("score", {"frames": session.effort.scored_frames}, "", 0, 1)
        return [_make_row(f"score {answer['frames']} frames", seconds, answer)]

    return Job("score", measure)


# --- the suite ---


def all_jobs(quick: bool, with_peer: bool) -> list[Job]:
    """All measurements. Cheap ones come first."""
    found = [help_job(), first_frame_job(), play_job("live", "lava", 64), play_job("batched", "lava", 64)]
    if not quick:
        found += [
            play_job("live", "lava", 128),
            play_job("live", "lava", 256),
            play_job("live", "duralava", 64),
            play_job("batched", "lava", 256),
        ]
    found += [
        write_file_job("raw"),
        write_file_job("mp4"),
        rollout_memory_job(),
        prepare_footage_job(),
        score_job(),
        peak_rates_job(),
    ]
    for size, recipe in itertools.product(FRAME_SIDES[:1] if quick else FRAME_SIDES, ("lava", "duralava")):
        for seq_len in SEQ_LENS[:1] if quick else SEQ_LENS:
            others = pytorch_contestants(size, quick) if with_peer and seq_len == SEQ_LENS[0] else []
            found.append(train_job(recipe, size, seq_len, others))
    return found


def _format_cell(row: Row, key: str, form: str) -> str:
    return format(row[key], form) if row.get(key) is not None else ""


def _format_min_and_max(row: Row) -> str:
    return f"{row['min_s']:.3g} … {row['max_s']:.3g} ({row['repeats']})"


def _cells_of_train_row(row: Row) -> tuple[str, ...]:
    """The cells of a row about a training step, without the name of its race."""
    over = f"{row['median_s'] / row['floor_s']:.2f}" if row.get("floor_s") else ""
    ratio = _format_cell(row, "mlxlava_ratio", ".2f") if row["who"] != MLXLAVA_CONTESTANT.name else ""
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


_TRAIN_COLUMNS = (
    *("who", "step", "median, s", "min … max (times)", "clips/s", "frames/s"),
    *("÷ floor", "mlxlava ÷ it", "arrays, GB", "process", "left of 16 GB"),
)
_OTHER_COLUMNS = ("what", "median, s", "min … max (times)", "rate", "arrays, GB", "process", "at the end")


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


def result_file_name(about: Mapping[str, str], quick: bool) -> str:
    """The file name of a result. It has the time, so that names sort by time, and the kind of machine."""
    when = datetime.datetime.fromisoformat(about["time"]).strftime("%Y%m%dT%H%M%SZ")
    kind = f"{platform.system()}-{platform.machine()}-{about['device']}".lower()
    return f"{when}-{kind}-quick.json" if quick else f"{when}-{kind}.json"


def _save_result(result: Answer) -> None:
    path = RESULTS_FOLDER / result_file_name(result["machine"], result["quick"])
    try:
        path.parent.mkdir(exist_ok=True)
        # Each row is a line, so that the file is small, and readable in a diff.
        rows = ",\n".join(json.dumps(row) for row in result["rows"])
        rest = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1)
        path.write_text(f'{rest[:-2]},\n "rows": [\n{rows}\n]}}\n', encoding="utf-8")
    except OSError as error:
        raise UserError(f"bench: cannot write {path}: {error.strerror}") from error
    say(f"bench: wrote {path}")
    chart.write_chart(result, path.with_suffix(".png"))


def _round_numbers(rows: Sequence[Row]) -> list[Row]:
    """Round figures to five digits, since more digits are noise."""
    return [
        {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]


def main(quick: bool = False, only: str = "", save: bool = False, memory: float | None = None) -> None:
    """Run the benchmark and print tables. The last line is JSON.

    Args:
        quick: whether to measure less: fewer repeats, and training only at 64×64. It takes less than
            two minutes on two cores.
        only: regular expression; only measurements whose name it matches are made.
        save: whether to write the result to a file in ``results/``, and a chart beside it.
        memory: memory in GB that measurements may take; the memory of the machine when None.

    Raises:
        UserError: ``only`` is not a regular expression or matches nothing.
        KeyboardInterrupt: Ctrl-C was pressed. The results so far have been shown and saved.
    """
    began = time.monotonic()
    with_torch = importlib.util.find_spec("torch") is not None
    with_peer = with_torch and CHECKOUT_FOLDER is not None
    try:
        chosen = [job for job in all_jobs(quick, with_peer) if re.search(only, job.name)]
    except re.error as error:
        raise UserError(f"bench: --only {only}: {error}; give a regular expression") from error
    if not chosen:
        names = ", ".join(job.name for job in all_jobs(quick, with_peer))
        raise UserError(f"bench: --only {only} matches none of: {names}")
    about = machine_facts()
    if with_peer:
        about["torch"] = importlib.metadata.version("torch")
    elif CHECKOUT_FOLDER is None:
        say("bench: the same steps in PyTorch are part of a checkout, so they are not compared with")
    else:
        say('bench: PyTorch is not installed, so it is not compared with; pip install "mlxlava[peer]"')
    limit = total_memory_gb() if memory is None else memory
    working = recommended_working_set_gb()
    if working is not None:
        about["recommended working set"] = f"{working:.1f} GB"
    print("\n".join(f"{name:14}  {value}" for name, value in about.items()), flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        session = SuiteState(QUICK_EFFORT if quick else FULL_EFFORT, limit, Path(folder))
        for number, job in enumerate(chosen):
            say(f"bench {number + 1}/{len(chosen)}: {job.name}")
            try:
                rows += job.measure(session)
            except WorkerDied as reason:
                rows.append({"name": job.name, "who": MLXLAVA_CONTESTANT.name, "note": str(reason)})
            except KeyboardInterrupt:
                session.interrupted = True
            if session.interrupted:
                say(f"bench: interrupted at {job.name}; this is what was measured before")
                break
    if working is not None:
        for row in rows:
            if "left_of_16_gb" in row:
                row["left_of_working_set_gb"] = working - (
                    row.get("peak_arrays_gb") or row["peak_process_gb"]
                )
    result = {"benchmark": "suite", "quick": quick, "machine": about, "seconds": time.monotonic() - began}
    if session.interrupted:
        result["interrupted"] = True
    result = {**result, "rows": _round_numbers(rows)}
    print_tables(rows)
    if save:
        _save_result(result)
    print(json.dumps(result), flush=True)
    if session.interrupted:
        raise KeyboardInterrupt
