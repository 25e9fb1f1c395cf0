"""Training, playing, preparing and scoring on this machine: behind ``make bench`` and ``mlxlava bench``.

    mlxlava bench [--quick] [--only PATTERN] [--save] [--memory GB]

Every measurement has a process of its own, because the system counts peak memory a process, and because
one that runs out of memory is then a line of the table. In a checkout where PyTorch is installed, the same
training steps run in it as well, in turns with mlxlava's, so that whatever else the machine does meets both.
Ctrl-C ends the suite early: what was measured until then is shown, and saved if that was asked for.
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
    CHECKOUT,
    RESULTS,
    Answer,
    Died,
    Worker,
    machine,
    summarise,
    total_memory,
    working_set,
)
from mlxlava.bench.measures import sized
from mlxlava.config import Recipe
from mlxlava.console import print_table, say
from mlxlava.errors import UserError
from mlxlava.training.plan import predict

Row = dict[str, Any]

MAC_GB = 16.0  # what an M1-class Mac has
BATCH = 32
SIZES = (64, 128, 256)
SEQ_LENS = (20, 200)
_SETTLE = 0.3  # seconds in which the threads of who was just measured stop spinning
_KEEP_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
_PROCESS = 1.25  # peak of the process to that of MLX's arrays (docs/performance.md)


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        seconds: of one training race, its warm-up aside; one turn is timed in any case.
        turns: of one training race, at most.
        repeats: of everything else.
        frames: of one repeat of playing.
        ages: frames after which the memory of a roll-out is looked at.
        play_seconds: length of a film.
        scored: frames to score.
    """

    seconds: float = 80.0
    turns: int = 7
    repeats: int = 5
    frames: int = 300
    ages: tuple[int, int] = (1_000, 20_000)
    play_seconds: int = 20
    scored: int = 1024


FULL = Effort()
QUICK = Effort(seconds=12.0, turns=3, repeats=3, frames=60, ages=(200, 1_000), play_seconds=4, scored=256)


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Who makes training steps.

    Attributes:
        name: as in the table.
        command: what follows the interpreter on the command line, before the arguments as JSON.
        options: what that needs besides the recipe and the sizes.
        environment: variables to add.
        patience: seconds to wait for one step.
    """

    name: str
    command: Sequence[str]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    patience: float = 1_200.0


_MEASURES = ("-m", "mlxlava.bench.measures")
_PEER = ("-m", "benchmarks.peer")

MLXLAVA = Contestant("mlxlava", (*_MEASURES, "train"))


@dataclasses.dataclass
class Session:
    """What measurements of one run know of each other.

    Attributes:
        effort: how much is measured.
        limit: memory that a measurement may take, GB; None for no limit.
        rates: FLOP/s of a matrix product and bytes/s of a copy, as measured.
        folder: for files that are measured with.
        interrupted: whether Ctrl-C was pressed.
    """

    effort: Effort
    limit: float | None
    folder: Path
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    interrupted: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """A measurement: its name, which --only is matched with, and what gives its rows."""

    name: str
    rows: Callable[[Session], list[Row]]


# --- training steps ---


def predicted_peak(recipe: Recipe) -> float:
    """Peak memory of a process that trains a recipe, GB; peers are taken to need as much."""
    return predict(recipe, gpu=on_gpu_path()) * _PROCESS


def shares(recipe: Recipe) -> dict[str, float]:
    """The kinds of a recipe's training step, and the share of each in a run."""
    if recipe.loss.kind != "relativistic":
        return {"plain": 1.0}
    alone, penalised = recipe.loss.d_start, 1 / recipe.loss.penalty_every
    return {
        "alone": alone,
        "plain": (1 - alone) * (1 - penalised),
        "penalty": (1 - alone) * penalised,
    }


def peers(size: int, quick: bool) -> list[Contestant]:
    """PyTorch in the forms that are worth a look at a size: all of them at 64×64, then the best one.

    Pictures in PyTorch's own order or in NHWC (channels last); eager or compiled by Inductor.
    """
    device = "cpu" if on_cpu() else "mps" if sys.platform == "darwin" else "cuda"
    # glibc's allocator gives pages back, which the kernel clears anew; mlxlava stops that for itself.
    keep = _KEEP_PAGES if sys.platform.startswith("linux") and device == "cpu" else {}
    kept = ", pages kept" if keep else ""

    def form(name: str, environment: Mapping[str, str], last: bool, compiled: bool = False) -> Contestant:
        options = {"device": device, "channels_last": last, "compiled": compiled}
        # Inductor takes minutes for the first step, if it comes to an end.
        return Contestant(f"PyTorch {name}", _PEER, options, environment, 300.0 if compiled else 1_200.0)

    best = form(f"NHWC{kept}", keep, True)
    if quick or size > SIZES[0]:
        return [best]
    forms = [form("eager", {}, False), form("NHWC", {}, True)] if keep else []
    return [
        *forms,
        form(f"eager{kept}", keep, False),
        best,
        form(f"NHWC compiled{kept}", keep, True, True),
    ]


def train_job(recipe: str, size: int, seq_len: int, others: Sequence[Contestant]) -> Job:
    """Training steps of all contestants."""
    settings = sized(recipe, size, seq_len, BATCH)
    name = f"train {recipe} {size}x{size} seq{seq_len}"

    def rows(session: Session) -> list[Row]:
        fitting: list[Contestant] = []
        found: list[Row] = []
        peak = predicted_peak(settings)
        for one in (MLXLAVA, *others):
            if session.limit is not None and peak > session.limit:
                note = f"skipped: about {peak:.0f} GB would not fit in {session.limit:.0f} GB"
                found.append({"name": name, "who": one.name, "note": note})
            else:
                fitting.append(one)
        together = session.limit is None or peak * len(fitting) <= session.limit
        races = [fitting] if together else [[one] for one in fitting]
        timings: dict[str, dict[str, list[float]]] = {}
        peaks: dict[str, dict[str, Answer]] = {}
        try:
            for racing in races:
                found += [
                    {"name": name, "who": who, "note": note}
                    for who, note in _race(name, settings, racing, session.effort, timings, peaks).items()
                ]
        except KeyboardInterrupt:  # the turns that were made are rows
            session.interrupted = True
        return [*train_rows(name, settings, timings, peaks, session.rates), *found]

    return Job(f"{name} peer" if others else name, rows)


def _race(
    name: str,
    recipe: Recipe,
    racing: Sequence[Contestant],
    effort: Effort,
    timings: dict[str, dict[str, list[float]]],
    peaks: dict[str, dict[str, Answer]],
) -> dict[str, str]:
    """Step in turns, all but one idle; fill in ``timings`` and ``peaks``, and say who could not go on."""
    failed: dict[str, str] = {}
    data, spent = recipe.data, 0.0
    sizes = {"size": data.size[0], "seq_len": data.seq_len, "batch_size": data.batch_size}
    with contextlib.ExitStack() as stack:
        # A compiler that is ended halfway leaves broken files in a cache that others would trust.
        own = {"TORCHINDUCTOR_CACHE_DIR": stack.enter_context(tempfile.TemporaryDirectory())}
        workers = {
            one.name: stack.enter_context(
                Worker(
                    [*one.command, json.dumps({"recipe": recipe.name, **sizes, **one.options})],
                    {**one.environment, **own},
                    one.patience,
                    CHECKOUT,  # where Python finds the peer
                )
            )
            for one in racing
        }
        for turn in itertools.count():
            began = time.perf_counter()
            for who, worker in list(workers.items()):
                for kind in shares(recipe):
                    time.sleep(_SETTLE if len(workers) > 1 else 0)
                    try:
                        answer = worker(kind)
                    except Died as reason:
                        failed[who] = f"{kind} step: {reason}"
                        del workers[who]
                        break
                    say(f"{name}, turn {turn}: {who}, {kind}: {answer['seconds']:.2f} s")
                    # Kinds rise in what they take, so what was the peak after each one was its own.
                    if not turn:
                        now = {key: value for key, value in answer.items() if key.startswith("peak")}
                        peaks.setdefault(who, {})[kind] = now
                    if turn:
                        timings.setdefault(who, {}).setdefault(kind, []).append(answer["seconds"])
            last = time.perf_counter() - began
            spent += last if turn else 0.0  # the first turn warms up: it compiles, and touches its pages
            if not workers or (turn and (turn >= effort.turns or spent + last > effort.seconds)):
                return failed
    raise AssertionError("a race has an end")


def train_rows(
    name: str,
    recipe: Recipe,
    timings: Mapping[str, Mapping[str, Sequence[float]]],
    peaks: Mapping[str, Mapping[str, Answer]],
    rates: Mapping[str, float],
) -> list[Row]:
    """Rows of a race: each kind of step and, weighted by their shares of a run, their mean.

    Args:
        name: of the race.
        recipe: what is trained.
        timings: of each contestant and kind, seconds in each turn.
        peaks: of each contestant and kind.
        rates: ``matmul`` and ``copy``, for the floor; empty for none.
    """
    parts = shares(recipe)
    frames = recipe.encoder.context_frames + (recipe.data.drawn_frames or recipe.data.seq_len)
    floors = (
        {kind: step_cost(recipe, kind).seconds(rates["matmul"], rates["copy"]) for kind in parts}
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
            row: Row = {"name": f"{name} {kind}", "who": who, **summarise(values)}
            row |= peaks[who][kind if kind in parts else list(parts)[-1]]
            row["clips_per_s"] = recipe.data.batch_size / row["median_s"]
            row["frames_per_s"] = frames * row["clips_per_s"]
            row["left_of_16_gb"] = MAC_GB - row["peak_process_gb"]
            if floors:
                row["floor_s"] = floors[kind]
            if ours := series.get((MLXLAVA.name, kind)):
                # The ratio of each turn, then the median: what slows a turn down slows both.
                row["mlxlava_ratio"] = statistics.median(a / b for a, b in zip(ours, values, strict=False))
            rows.append(row)
    return rows


# --- everything else ---


def _worker(measure: str, arguments: Answer) -> Worker:
    return Worker([*_MEASURES, measure, json.dumps(arguments)])


def _asked(
    measure: str, arguments: Answer, request: str, warm: int, repeats: int
) -> tuple[list[float], Answer]:
    """Seconds of each repeat in one process, and the last answer."""
    with _worker(measure, arguments) as worker:
        for _ in range(warm):
            worker(request)
        answers = [worker(request) for _ in range(repeats)]
    return [answer["seconds"] for answer in answers], answers[-1]


def _row(name: str, seconds: Sequence[float], answer: Answer, frames: int = 0) -> Row:
    peaks = {key: value for key, value in answer.items() if key.startswith("peak")}
    row: Row = {"name": name, "who": MLXLAVA.name, **summarise(seconds), **peaks}
    if frames:
        row["frames_per_s"] = frames / row["median_s"]
    return row


def rates_job() -> Job:
    """The matrix product and the copy that floors are made of."""

    def rows(session: Session) -> list[Row]:
        small = on_cpu()
        arguments = {"side": 2048 if small else 8192, "floats": 2**26 if small else 2**28}
        found = []
        for what in ("matmul", "copy"):
            seconds, _ = _asked("rates", arguments, what, 2, 7)
            row = _row(f"rate {what}", seconds, {})
            work = 2 * arguments["side"] ** 3 if what == "matmul" else 8 * arguments["floats"]
            work *= len(worker_streams())  # each does as much
            session.rates[what] = row["per_s"] = work / row["median_s"]
            found.append(row)
        return found

    return Job("rate train peer", rows)


def play_job(kind: str, recipe: str, size: int) -> Job:
    """Frames ``live``, one at a time at twice the learned rate; or ``batched``, as for a file."""
    name = f"play {kind} {recipe} {size}x{size}"

    def rows(session: Session) -> list[Row]:
        count = session.effort.frames * SIZES[0] // size
        arguments = {"recipe": recipe, "size": size}
        seconds, answer = _asked(kind, arguments, str(count), 1, session.effort.repeats)
        return [_row(name, seconds, answer, count)]

    return Job(name, rows)


def memory_job() -> Job:
    """What a roll-out holds when it is young and when it is old."""
    name = "play memory lava 64x64"

    def rows(session: Session) -> list[Row]:
        found, at = [], 0
        with _worker("live", {"recipe": "lava", "size": 64}) as worker:
            for age in session.effort.ages:
                answer = worker(str(age - at))
                row = _row(f"{name} frame {age}", [answer["seconds"]], answer, age - at)
                found.append({**row, "resident_gb": answer["resident_gb"]})
                at = age
        return found

    return Job(name, rows)


def _mlxlava(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mlxlava", *arguments]


def _timed(command: Sequence[str]) -> float:
    began = time.perf_counter()
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ended.returncode:
        raise Died(ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else "no reason given")
    return time.perf_counter() - began


def film_job(format: str) -> Job:
    """``mlxlava loop`` into a file, with everything from its start to a file that can be played."""
    name = f"play {format}"

    def rows(session: Session) -> list[Row]:
        length = session.effort.play_seconds
        command = _mlxlava("loop", "--seconds", str(length), "-o", str(session.folder / f"film.{format}"))
        seconds = [_timed(command) for _ in range(1 + session.effort.repeats)][1:]
        return [_row(f"{name} shipped {length} s", seconds, {}, length * 30)]

    return Job(name, rows)


def first_frame_job() -> Job:
    """From the command to the first frame's last byte."""

    def once() -> float:
        command = _mlxlava("loop", "--forever", "-o", "-", "--format", "raw")
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            size = 64 * 64 * 3
            whole = len(process.stdout.read(size)) == size
            seconds = time.perf_counter() - began
            process.stdout.close()  # a closed pipe ends it
        if not whole:
            raise Died("mlxlava loop wrote no frame")
        return seconds

    def rows(session: Session) -> list[Row]:
        return [_row("start first frame", [once() for _ in range(1 + session.effort.repeats)][1:], {})]

    return Job("start first frame", rows)


def help_job() -> Job:
    """``mlxlava --help``."""

    def rows(session: Session) -> list[Row]:
        seconds = [_timed(_mlxlava("--help")) for _ in range(1 + session.effort.repeats)][1:]
        return [_row("start help", seconds, {})]

    return Job("start help", rows)


def footage_job() -> Job:
    """A film made ready for training."""

    def rows(session: Session) -> list[Row]:
        film = session.folder / "lamp.mp4"
        _timed(_mlxlava("lamp", "--size", "64", "--scale", "6", "--seconds", "10", "-o", str(film)))
        arguments = {"video": str(film), "size": 64}
        seconds, answer = _asked("prepare", arguments, "", 1, session.effort.repeats)
        return [_row("footage 384x384 to 64x64", seconds, answer, answer["frames"])]

    return Job("footage", rows)


def score_job() -> Job:
    """``mlxlava score`` of the shipped weights, without drawing the footage."""

    def rows(session: Session) -> list[Row]:
        seconds, answer = _asked("score", {"frames": session.effort.scored}, "", 0, 1)
        return [_row(f"score {answer['frames']} frames", seconds, answer)]

    return Job("score", rows)


# --- the suite ---


def jobs(quick: bool, with_peer: bool) -> list[Job]:
    """All measurements, cheap ones first, and small ones before those that are predicted from them."""
    found = [help_job(), first_frame_job(), play_job("live", "lava", 64), play_job("batched", "lava", 64)]
    if not quick:
        found += [
            play_job("live", "lava", 128),
            play_job("live", "lava", 256),
            play_job("live", "duralava", 64),
            play_job("batched", "lava", 256),
        ]
    found += [film_job("raw"), film_job("mp4"), memory_job(), footage_job(), score_job(), rates_job()]
    for size, recipe in itertools.product(SIZES[:1] if quick else SIZES, ("lava", "duralava")):
        for seq_len in SEQ_LENS[:1] if quick else SEQ_LENS:
            others = peers(size, quick) if with_peer and seq_len == SEQ_LENS[0] else []
            found.append(train_job(recipe, size, seq_len, others))
    return found


def _cell(row: Row, key: str, form: str) -> str:
    return format(row[key], form) if row.get(key) is not None else ""


def _spread(row: Row) -> str:
    return f"{row['min_s']:.3g} … {row['max_s']:.3g} ({row['repeats']})"


def _train_cells(row: Row) -> tuple[str, ...]:
    """The cells of a training step, without the name of its race."""
    over = f"{row['median_s'] / row['floor_s']:.2f}" if row.get("floor_s") else ""
    ratio = _cell(row, "mlxlava_ratio", ".2f") if row["who"] != MLXLAVA.name else ""
    memory = [_cell(row, f"{key}_gb", ".2f") for key in ("peak_arrays", "peak_process", "left_of_16")]
    rates = [_cell(row, key, ".3g") for key in ("clips_per_s", "frames_per_s")]
    kind = row["name"].rpartition(" ")[2]
    return (row["who"], kind, _cell(row, "median_s", ".3g"), _spread(row), *rates, over, ratio, *memory)


def _other_cells(row: Row) -> tuple[str, ...]:
    """The cells of anything else."""
    rate = f"{row['frames_per_s']:.4g} frames/s" if "frames_per_s" in row else ""
    if "per_s" in row:
        rate = f"{row['per_s'] / 1e9:.4g} {'GFLOP/s' if row['name'] == 'rate matmul' else 'GB/s'}"
    memory = [_cell(row, f"{key}_gb", ".3f") for key in ("peak_arrays", "peak_process", "resident")]
    return (row["name"], _cell(row, "median_s", ".3g"), _spread(row), rate, *memory)


_TRAIN_COLUMNS = (
    *("who", "step", "median, s", "min … max (times)", "clips/s", "frames/s"),
    *("÷ floor", "mlxlava ÷ it", "arrays, GB", "process", "of 16 left"),
)
_OTHER_COLUMNS = ("what", "median, s", "min … max (times)", "rate", "arrays, GB", "process", "at the end")


def show(rows: Sequence[Row]) -> None:
    """Print a table of each race of training steps, one of the rest, and what could not be measured."""
    measured = [row for row in rows if "note" not in row]
    races = itertools.groupby(
        (row for row in measured if row["name"].startswith("train ")),
        key=lambda row: row["name"].rpartition(" ")[0],
    )
    for name, steps in races:
        print_table(name, _TRAIN_COLUMNS, [_train_cells(row) for row in steps], left=2)
    others = [_other_cells(row) for row in measured if not row["name"].startswith("train ")]
    if others:
        print_table("Playing and the rest", _OTHER_COLUMNS, others)
    for row in rows:
        if "note" in row:
            print(f"{row['name']}, {row['who']}: {row['note']}")


def file_name(about: Mapping[str, str], quick: bool) -> str:
    """Name of a result: when, and what kind of machine; names sort by time."""
    when = datetime.datetime.fromisoformat(about["time"]).strftime("%Y%m%dT%H%M%SZ")
    kind = f"{platform.system()}-{platform.machine()}-{about['device']}".lower()
    return f"{when}-{kind}-quick.json" if quick else f"{when}-{kind}.json"


def _save(result: Answer) -> None:
    path = RESULTS / file_name(result["machine"], result["quick"])
    try:
        path.parent.mkdir(exist_ok=True)
        # A row a line: small, and readable in a diff.
        rows = ",\n".join(json.dumps(row) for row in result["rows"])
        rest = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1)
        path.write_text(f'{rest[:-2]},\n "rows": [\n{rows}\n]}}\n', encoding="utf-8")
    except OSError as error:
        raise UserError(f"bench: cannot write {path}: {error.strerror}") from error
    say(f"bench: wrote {path}")
    chart.write(result, path.with_suffix(".png"))


def _rounded(rows: Sequence[Row]) -> list[Row]:
    """Figures to five digits: more are noise."""
    return [
        {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]


def main(quick: bool = False, only: str = "", save: bool = False, memory: float | None = None) -> None:
    """Measure and print a table; the last line is JSON.

    Args:
        quick: fewer repeats, training at 64×64 alone: under two minutes on two cores.
        only: regular expression; measurements whose name it matches.
        save: write the result to a file of its own in ``results/``, and a chart beside it.
        memory: what measurements may take, GB; that of the machine when None.

    Raises:
        UserError: ``only`` is no pattern or matches nothing.
        KeyboardInterrupt: it was interrupted; what was measured until then has been shown and saved.
    """
    began = time.monotonic()
    with_torch = importlib.util.find_spec("torch") is not None
    with_peer = with_torch and CHECKOUT is not None
    try:
        chosen = [job for job in jobs(quick, with_peer) if re.search(only, job.name)]
    except re.error as error:
        raise UserError(f"bench: --only {only}: {error}; give a regular expression") from error
    if not chosen:
        names = ", ".join(job.name for job in jobs(quick, with_peer))
        raise UserError(f"bench: --only {only} matches none of: {names}")
    about = machine()
    if with_peer:
        about["torch"] = importlib.metadata.version("torch")
    elif CHECKOUT is None:
        say("bench: the same steps in PyTorch are part of a checkout, so they are not compared with")
    else:
        say('bench: PyTorch is not installed, so it is not compared with; pip install "mlxlava[peer]"')
    limit = total_memory() if memory is None else memory
    working = working_set()
    if working is not None:
        about["recommended working set"] = f"{working:.1f} GB"
    print("\n".join(f"{name:14}  {value}" for name, value in about.items()), flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        session = Session(QUICK if quick else FULL, limit, Path(folder))
        for number, job in enumerate(chosen):
            say(f"bench {number + 1}/{len(chosen)}: {job.name}")
            try:
                rows += job.rows(session)
            except Died as reason:
                rows.append({"name": job.name, "who": MLXLAVA.name, "note": str(reason)})
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
    result = {**result, "rows": _rounded(rows)}
    show(rows)
    if save:
        _save(result)
    print(json.dumps(result), flush=True)
    if session.interrupted:
        raise KeyboardInterrupt
