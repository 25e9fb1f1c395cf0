"""What benchmarks share: a process for each measurement, the header, and where results go."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[3]
# The top of the checkout that this file stands in; None in an installed wheel.
CHECKOUT = _ROOT if (_ROOT / "benchmarks/__init__.py").is_file() else None
# A wheel lies where nobody writes, so its results go to the current folder.
RESULTS = CHECKOUT / "benchmarks/results" if CHECKOUT else Path("bench-results")

Answer = dict[str, Any]


class Died(Exception):
    """A process that measured has ended, or could not go on; the text says why, in one line."""


class Worker:
    """A Python process that answers one line of JSON to each request; it idles in between.

    Args:
        command: what follows the interpreter on the command line.
        environment: variables to add.
        patience: seconds to wait for an answer.
        folder: where it runs; the current folder when None.
        python: the interpreter.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        patience: float = 600.0,
        folder: Path | None = None,
        python: str = sys.executable,
    ) -> None:
        self._patience = patience
        self._process = subprocess.Popen(
            [python, *command],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def __call__(self, request: str = "") -> Answer:
        """Ask, and wait for the answer.

        Raises:
            Died: there is none, and there will be none.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request + "\n")
            process.stdin.flush()
        impatience = threading.Timer(self._patience, process.terminate)
        impatience.start()
        try:
            line = process.stdout.readline()
            gave_up = not impatience.is_alive()
        finally:
            impatience.cancel()  # also after Ctrl-C: Python waits for its threads before it ends
        if not line and gave_up:
            raise Died(f"no answer within {self._patience:g} s")
        if not line:
            raise Died(ending(process.wait()))
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise Died(answer["error"])
        return answer

    def close(self) -> None:
        """End the process; a second time does nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # the end of its requests
        self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None and not issubclass(kind, Died):
            self._process.terminate()  # nobody waits for a step of a minute after Ctrl-C
        self.close()


def ending(status: int) -> str:
    """How a process without an answer ended; ``status`` is what ``wait`` gave."""
    if status == -9:
        return "killed by the system: out of memory"
    return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"


def serve(make: Callable[[], Callable[[str], Answer]]) -> None:
    """Be the other end of a :class:`Worker`: make what answers, then answer every line of stdin.

    What goes wrong is answered in one line, and ends the process.
    """
    # Where memory ends, the kernel shall end this process rather than the suite or another's.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    # Libraries print what they please; the answers keep stdout to themselves.
    answers, sys.stdout = sys.stdout, sys.stderr
    answer = None
    with contextlib.suppress(KeyboardInterrupt):  # the suite says what there is to say
        for line in sys.stdin:
            try:
                answer = answer or make()
                reply = answer(line.strip())
            except Exception as error:
                text = str(error).strip() or "no reason given"
                print(json.dumps({"error": f"{type(error).__name__}: {text.splitlines()[0]}"}), file=answers)
                return
            print(json.dumps(reply), file=answers, flush=True)


def machine() -> dict[str, str]:
    """What was measured on: processor, memory, threads, load, system, versions, time."""
    from mlxlava.backend import describe

    about = {**describe(), "python": platform.python_version(), "system": platform.platform()}
    memory = total_memory()
    if memory is not None:
        about["memory"] = f"{memory:.1f} GB"
    about["threads"] = str(threads())
    # Beside other work two BLAS threads wait for each other: timings at a load above 0.5 are no good.
    about["load average"] = f"{os.getloadavg()[0]:.2f}"
    about["time"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return about


def threads() -> int:
    """CPU cores that are used: MLXLAVA_CORES, or all."""
    return int(os.environ.get("MLXLAVA_CORES") or os.cpu_count() or 1)


def total_memory() -> float | None:
    """Memory of the machine, GB; None where the system does not say."""
    with contextlib.suppress(ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return None


def working_set() -> float | None:
    """The working set that the device recommends, GB; None where it recommends none."""
    from mlxlava.backend import mx, on_cpu

    size = 0 if on_cpu() else int(mx.device_info().get("max_recommended_working_set_size", 0))
    return size / 1e9 or None


def summarise(seconds: Sequence[float]) -> Answer:
    """Median and spread (smallest, largest) of repeated timings."""
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "repeats": len(seconds),
    }


def finish(name: str, result: Answer, save: bool) -> None:
    """Print the result as the closing JSON line; with ``save``, append it to the history as well."""
    line = json.dumps({"benchmark": name, **result})
    if save:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as history:
            history.write(line + "\n")
    print(line)
