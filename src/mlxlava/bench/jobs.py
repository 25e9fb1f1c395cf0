"""The measurements of playing, preparing, scoring and starting, and of the machine's best rates."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence

from mlxlava.backend import on_cpu
from mlxlava.backend.cpu.worker_streams import worker_streams
from mlxlava.bench.base import FRAME_SIDES, MEASURE_COMMAND, OWN_NAME, Job, Row, SuiteState
from mlxlava.bench.harness import Answer, Worker, WorkerDied, summarise_timings
from mlxlava.rollout.weights import load_weights


def _start_worker(measure: str, arguments: Answer) -> Worker:
    return Worker([*MEASURE_COMMAND, measure, json.dumps(arguments)])


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
    row: Row = {"name": name, "who": OWN_NAME, **summarise_timings(seconds), **peaks}
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

    def seconds_to_first_frame(frame_bytes: int) -> float:
        command = _mlxlava_command("loop", "--forever", "-o", "-", "--format", "raw")
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            whole = len(process.stdout.read(frame_bytes)) == frame_bytes
            seconds = time.perf_counter() - began
            process.stdout.close()  # the closed pipe ends the command
        if not whole:
            raise WorkerDied("mlxlava loop wrote no frame")
        return seconds

    def measure(session: SuiteState) -> list[Row]:
        frame_bytes = 3 * math.prod(load_weights().recipe.data.size)
        seconds = [seconds_to_first_frame(frame_bytes) for _ in range(1 + session.effort.repeats)][1:]
        return [_make_row("start first frame", seconds, {})]

    return Job("start first frame", measure)


def help_job() -> Job:
    """The job that times ``mlxlava --help``."""

    def measure(session: SuiteState) -> list[Row]:
        command = _mlxlava_command("--help")
        seconds = [_seconds_of_command(command) for _ in range(1 + session.effort.repeats)][1:]
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
