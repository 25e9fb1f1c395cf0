"""Play for long on each kind of screen, and report what grows: memory, descriptors, threads, lateness.

    python -m benchmarks.soak                          # 2.5 minutes each: pipe, web, terminal, window
    python -m benchmarks.soak web --minutes 240        # one of them, for 4 hours
    python -m benchmarks.soak web --minutes 150 --warm-up 30 --keep web.npz    # two hours counted, and kept
    python -m benchmarks.soak pipe --lamp duralava     # other weights: a folder, a run, or a shipped lamp

It plays the real command in a process of its own. A pipe is read at 30 frames a second. The web page has 20
viewers, each of which stays for two seconds at most, leaves (sometimes without a word), and comes back. The
terminal is tmux, and the window is on Xvfb; where there is no such program, that part is left out.

A slope is fitted to means of blocks, because samples of memory that follow each other are not independent.
Its interval is Student's t, 95 %. What happens at first (caches fill) is not counted: the first half of the
time, or ``--warm-up``. A frame's lateness is the moment at which it was shown, less its time in the lamp,
less the least of these differences within the same five seconds: after a gap of more than a second the lamp
goes on from where it was. A pipe has no such gaps, so its lateness is counted from its earliest frame.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import math
import os
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from mlxlava.bench.harness import machine_facts
from mlxlava.console import print_table

SCREENS = ("pipe", "web", "terminal", "window")
FPS = 30.0
VIEWERS = 20
_STAY_SECONDS = (0.1, 2.0)
_LATENESS_WINDOW_SECONDS = 5.0
_BLOCKS = 12  # of samples, whose means a slope is fitted to
_WARM_UP = 0.5  # share of the time that is not counted, if nothing else is said
_START_SECONDS = 120.0  # for C++ that may have to be compiled
# A row of a child's log: time.monotonic(), the lamp's time of the frame, and four moments of the state.
_ROW = struct.Struct("6d")

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Soak:
    """What was measured.

    Attributes:
        screen: one of ``SCREENS``.
        seconds: length of what was counted.
        frames: number of frames in that time.
        memory_mb: resident memory at its end, MB.
        slope: MB an hour, with the two ends of its interval.
        blocks_mb: mean memory of each block, MB: a leak grows all the time, caches and a heap in steps.
        descriptors: least and most descriptors that were open.
        threads: least and most threads.
        lateness: 50th, 99th percentile and maximum, in frames.
        moments: least and most of the state's mean, standard deviation, skewness and kurtosis.
        errors: what the command printed on stderr, except for lines of its own that tell how it goes.
    """

    screen: str
    seconds: float
    frames: int
    memory_mb: float
    slope: tuple[float, float, float]
    blocks_mb: tuple[float, ...]
    descriptors: tuple[int, int]
    threads: tuple[int, int]
    lateness: tuple[float, float, float]
    moments: tuple[tuple[float, float], ...]
    errors: str


def missing_program(screen: str) -> str | None:
    """The program that a soak of a screen needs and that is not installed; None if there is everything."""
    needed = {"terminal": "tmux", "window": "Xvfb"}.get(screen)
    return needed if needed and shutil.which(needed) is None else None


def soak(
    screen: str,
    minutes: float,
    lamp: str = "lava",
    warm_up_minutes: float | None = None,
    keep: Path | None = None,
) -> Soak:
    """Play a lamp on a screen for some minutes, and measure.

    Args:
        screen: one of ``SCREENS``.
        minutes: how long.
        lamp: weights: a name, a folder or a run.
        warm_up_minutes: what is not counted; half of the time if None.
        keep: an ``.npz`` file for all samples and frames.

    Raises:
        RuntimeError: the command ended early.
    """
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as name:
        folder = Path(name)
        with _OPENERS[screen](folder, lamp) as (process, viewers_end):
            log = folder / "frames"
            _wait_for(lambda: log.exists() and log.stat().st_size >= 30 * _ROW.size, process, folder)
            samples = _sample(process, minutes * 60, folder)
            viewers_end()
            rows = np.frombuffer(_whole_rows(log.read_bytes()), np.float64).reshape(-1, 6)
        if keep is not None:
            np.savez_compressed(keep, samples=samples, frames=rows)
        warm_up = 60 * (_WARM_UP * minutes if warm_up_minutes is None else warm_up_minutes)
        return _summarize(screen, samples, rows, warm_up, _read_errors(folder))


def slope_per_hour(seconds: FloatArray, values: FloatArray) -> tuple[float, float, float]:
    """Least-squares slope per hour of the means of blocks, and the ends of its 95 % interval."""
    from scipy import stats

    times = np.array([block.mean() for block in np.array_split(seconds, _BLOCKS)]) / 3600
    means = np.array([block.mean() for block in np.array_split(values, _BLOCKS)])
    if np.ptp(means) == 0:  # of these linregress gives an error of NaN
        return 0.0, 0.0, 0.0
    fit = stats.linregress(times, means)
    half = float(stats.t.ppf(0.975, _BLOCKS - 2)) * float(fit.stderr)
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


def _sample(process: psutil.Process, seconds: float, folder: Path) -> FloatArray:
    """Time, resident memory (MB), descriptors and threads, every half second."""
    rows = []
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        try:
            with process.oneshot():
                memory = process.memory_info().rss / 1e6
                rows.append((now, memory, process.num_fds(), process.num_threads()))
        except psutil.Error as error:
            raise RuntimeError(f"the command has ended: {_read_errors(folder)}") from error
        time.sleep(0.5)
    return np.array(rows)


def _summarize(
    screen: str, samples: FloatArray, rows: FloatArray, warm_up_seconds: float, errors: str
) -> Soak:
    start = samples[0, 0] + warm_up_seconds
    samples = samples[samples[:, 0] >= start]
    rows = rows[(rows[:, 0] >= start) & (rows[:, 0] <= samples[-1, 0])]
    late = _lateness(rows, math.inf if screen == "pipe" else _LATENESS_WINDOW_SECONDS)
    blocks = [block.mean() for block in np.array_split(samples[:, 1], _BLOCKS)]
    moments = [column[np.isfinite(column)] for column in rows[:, 2:].T]
    return Soak(
        screen=screen,
        seconds=float(samples[-1, 0] - samples[0, 0]),
        frames=len(rows),
        memory_mb=float(samples[-1, 1]),
        slope=slope_per_hour(samples[:, 0], samples[:, 1]),
        blocks_mb=tuple(round(float(block), 2) for block in blocks),
        descriptors=(int(samples[:, 2].min()), int(samples[:, 2].max())),
        threads=(int(samples[:, 3].min()), int(samples[:, 3].max())),
        lateness=(float(np.median(late)), float(np.percentile(late, 99)), float(late.max())),
        moments=tuple((float(each.min()), float(each.max())) for each in moments if len(each)),
        errors=errors,
    )


def _lateness(rows: FloatArray, window_seconds: float) -> FloatArray:
    """Lateness of each frame, in frames, against the earliest one of its window."""
    offsets = (rows[:, 0] - rows[:, 1]) * FPS
    windows = ((rows[:, 0] - rows[0, 0]) // window_seconds).astype(int)
    earliest = np.full(windows.max() + 1, np.inf)
    np.minimum.at(earliest, windows, offsets)
    late: FloatArray = offsets - earliest[windows]
    return late


# --- the screens ---

Opened = tuple[psutil.Process, Callable[[], None]]


@contextlib.contextmanager
def _open_pipe(folder: Path, lamp: str) -> Iterator[Opened]:
    command = [sys.executable, "-m", "mlxlava", "loop", "--weights", lamp, "--forever", "--fps", f"{FPS:g}"]
    command += ["-o", "-", "--format", "y4m"]
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
    reader = threading.Thread(target=_read_pipe, args=(process, folder / "frames"))
    reader.start()
    try:
        yield psutil.Process(process.pid), lambda: None
    finally:
        process.terminate()
        process.wait()
        reader.join()


def _read_pipe(process: subprocess.Popen[bytes], log: Path) -> None:
    """Read a frame when it is due, as a player does, and write down when it was there.

    A pipe says nothing of the state, so its moments are NaN.
    """
    assert process.stdout is not None
    header = process.stdout.readline().split()
    width, height = (int(word[1:]) for word in header[1:3])
    frame_bytes = len(b"FRAME\n") + 3 * width * height  # 4:4:4
    with log.open("wb", buffering=64 * _ROW.size) as file:
        start, number = 0.0, 0
        while len(process.stdout.read(frame_bytes)) == frame_bytes:
            start = start or time.monotonic()
            file.write(_ROW.pack(time.monotonic(), number / FPS, *[math.nan] * 4))
            number += 1
            time.sleep(max(0.0, start + number / FPS - time.monotonic()))


@contextlib.contextmanager
def _open_web(folder: Path, lamp: str) -> Iterator[Opened]:
    with _open_child(_child(folder, lamp, "web", "--port", "0"), folder) as process:
        _wait_for(lambda: "://" in _read_text(folder / "stderr"), process, folder)
        url = next(word for word in _read_text(folder / "stderr").split() if "://" in word)
        ending = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(_view(url, ending)))
        thread.start()
        try:
            yield process, ending.set
        finally:
            ending.set()
            thread.join()


async def _view(url: str, ending: threading.Event) -> None:
    await asyncio.gather(*(_come_and_go(url, ending, number) for number in range(VIEWERS)))


async def _come_and_go(url: str, ending: threading.Event, number: int) -> None:
    """A viewer that stays for a while, leaves and comes back, until the end."""
    import aiohttp

    random = np.random.default_rng(number)
    headers = {"Origin": url.rstrip("/")}
    while not ending.is_set():
        until = time.monotonic() + random.uniform(*_STAY_SECONDS)
        async with aiohttp.ClientSession() as session:
            async with session.get(url) as page:
                await page.read()
            async with session.ws_connect(f"{url}live", headers=headers) as viewer:
                count = 0
                while time.monotonic() < until and not ending.is_set():
                    message = await viewer.receive()
                    if message.type is aiohttp.WSMsgType.BINARY:
                        count += 1
                        await viewer.send_json({"drawn": count})
                    elif message.type is not aiohttp.WSMsgType.TEXT:
                        break
                if random.random() < 0.3:  # a line that breaks: no closing handshake
                    transport = viewer.get_extra_info("socket")
                    if transport is not None:
                        transport.shutdown(2)
        await asyncio.sleep(random.uniform(0, 0.5))


@contextlib.contextmanager
def _open_terminal(folder: Path, lamp: str) -> Iterator[Opened]:
    tmux = ["tmux", "-S", str(folder / "tmux"), "-f", os.devnull]
    command = f"{shlex.join(_child(folder, lamp, 'terminal'))} 2> {shlex.quote(str(folder / 'stderr'))}"
    subprocess.run([*tmux, "new-session", "-d", "-x", "100", "-y", "40", command], check=True)
    try:
        _wait_for(lambda: _read_text(folder / "pid").endswith("\n"), None, folder)
        yield psutil.Process(int(_read_text(folder / "pid"))), lambda: None
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


@contextlib.contextmanager
def _open_window(folder: Path, lamp: str) -> Iterator[Opened]:
    read_end, write_end = os.pipe()
    display = ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "800x600x24"]
    xvfb = subprocess.Popen(display, pass_fds=[write_end], stderr=subprocess.DEVNULL)
    os.close(write_end)
    try:
        with os.fdopen(read_end) as numbers:
            environment = {**os.environ, "DISPLAY": f":{numbers.readline().strip()}"}
        environment.pop("SDL_VIDEODRIVER", None)
        with _open_child(_child(folder, lamp, "window"), folder, environment) as process:
            yield process, lambda: None
    finally:
        xvfb.terminate()
        xvfb.wait()


_OPENERS: dict[str, Callable[[Path, str], contextlib.AbstractContextManager[Opened]]] = {
    "pipe": _open_pipe,
    "web": _open_web,
    "terminal": _open_terminal,
    "window": _open_window,
}


@contextlib.contextmanager
def _open_child(
    command: list[str], folder: Path, environment: dict[str, str] | None = None
) -> Iterator[psutil.Process]:
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _child(folder: Path, lamp: str, screen: str, *options: str) -> list[str]:
    """The command that plays on a screen and keeps a log of its frames."""
    play = ["loop", "--weights", lamp, "--screen", screen, "--fps", f"{FPS:g}", *options]
    return [sys.executable, "-m", "benchmarks.soak", "--child", str(folder), *play]


def _play_with_log(folder: Path, arguments: list[str]) -> None:
    """Run ``mlxlava`` in this process. Each frame that a screen has shown becomes a row of the log."""
    from mlxlava.cli import main
    from mlxlava.playback.session import Session

    count = Session.count_shown_frame
    log = (folder / "frames").open("wb", buffering=64 * _ROW.size)

    def count_and_log(session: Session, at: float) -> None:
        count(session, at)
        log.write(_ROW.pack(time.monotonic(), at, *(session.status()["moments"] or [math.nan] * 4)))

    setattr(Session, "count_shown_frame", count_and_log)  # noqa: B010 (mypy refuses the plain form)
    (folder / "pid").write_text(f"{os.getpid()}\n", encoding="utf-8")
    sys.argv = ["mlxlava", *arguments]
    main()


def _wait_for(condition: Callable[[], bool], process: psutil.Process | None, folder: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while not condition():
        alive = process is None or (process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
        if not alive or time.monotonic() > end:
            raise RuntimeError(f"the command does not play: {_read_errors(folder)}")
        time.sleep(0.1)


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _read_errors(folder: Path) -> str:
    lines = _read_text(folder / "stderr").splitlines()
    expected = ("play: ", "mlxlava: compiling")
    return "\n".join(line for line in lines if not line.startswith(expected))[-2000:]


def _whole_rows(data: bytes) -> bytes:
    return data[: len(data) // _ROW.size * _ROW.size]


def main() -> None:
    """Soak each screen that was named, print a table, and all of it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("screens", nargs="*", choices=[*SCREENS, []], help="all of them if none is named")
    parser.add_argument("--minutes", type=float, default=2.5, help="for each screen")
    parser.add_argument("--warm-up", type=float, help="minutes that are not counted (half of all)")
    parser.add_argument("--lamp", default="lava", help="weights: a name, a folder or a run")
    parser.add_argument("--keep", type=Path, help=".npz file for all that was measured (one screen)")
    options = parser.parse_args()
    if options.warm_up is not None and not 0 <= options.warm_up < options.minutes:
        parser.error("--warm-up must be less than --minutes")
    if options.keep and len(options.screens) != 1:
        parser.error("--keep is for one screen")
    rows, results = [], []
    for screen in options.screens or SCREENS:
        if program := missing_program(screen):
            print(f"{screen}: left out, there is no {program}", file=sys.stderr)
            continue
        found = soak(screen, options.minutes, options.lamp, options.warm_up, options.keep)
        results.append(dataclasses.asdict(found))
        rows.append(_format(found))
        print(*rows[-1], file=sys.stderr, flush=True)
    columns = ("screen", "minutes", "frames", "MB", "MB an hour (95 %)", "descriptors", "threads")
    print_table("Soak", (*columns, "lateness, frames: 50 %, 99 %, most", "σ of the state"), rows)
    print(json.dumps({"benchmark": "soak", "machine": machine_facts(), "results": results}))
    if any(found["errors"] for found in results):
        sys.exit("soak: a command has printed errors")


def _format(found: Soak) -> tuple[str, ...]:
    slope, low, high = found.slope
    spread: Any = found.moments[1] if found.moments else None
    return (
        found.screen,
        f"{found.seconds / 60:.1f}",
        str(found.frames),
        f"{found.memory_mb:.1f}",
        f"{slope:+.2f} [{low:+.2f}, {high:+.2f}]",
        "–".join(map(str, found.descriptors)),
        "–".join(map(str, found.threads)),
        ", ".join(f"{late:.2f}" for late in found.lateness),
        f"{spread[0]:.2f}–{spread[1]:.2f}" if spread else "",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _play_with_log(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
