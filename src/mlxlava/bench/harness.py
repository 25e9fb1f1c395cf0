"""Code that benchmarks share: a process for each measurement, facts about the machine, and saved results."""

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

from mlxlava.cores import core_limit

_PROJECT_FOLDER = Path(__file__).resolve().parents[3]
# The top of the checkout that this file stands in; None in an installed wheel.
CHECKOUT_FOLDER = _PROJECT_FOLDER if (_PROJECT_FOLDER / "benchmarks/__init__.py").is_file() else None
# The folder of an installed wheel should not be written to. So results go to the current folder then.
RESULTS_FOLDER = CHECKOUT_FOLDER / "benchmarks/results" if CHECKOUT_FOLDER else Path("bench-results")

Answer = dict[str, Any]


class WorkerDied(Exception):
    """A worker process has ended or failed. The text says why, in one line."""


class Worker:
    """A Python process that answers each request with one line of JSON. It idles between requests.

    Args:
        command: arguments of the interpreter.
        environment: environment variables to add.
        timeout: seconds to wait for an answer.
        folder: working folder of the process; the current folder when None.
        python: the Python interpreter.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        timeout: float = 600.0,
        folder: Path | None = None,
        python: str = sys.executable,
    ) -> None:
        self._timeout = timeout
        self._process = subprocess.Popen(
            [python, *command],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def __call__(self, request: str = "") -> Answer:
        """Send a request and wait for the answer.

        Raises:
            WorkerDied: the process ended, failed, or gave no answer in time.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request + "\n")
            process.stdin.flush()
        timer = threading.Timer(self._timeout, process.terminate)
        timer.start()
        try:
            line = process.stdout.readline()
            gave_up = not timer.is_alive()
        finally:
            timer.cancel()  # needed after Ctrl-C too, since Python waits for its threads before it ends
        if not line and gave_up:
            raise WorkerDied(f"no answer within {self._timeout:g} s")
        if not line:
            raise WorkerDied(describe_exit(process.wait()))
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise WorkerDied(answer["error"])
        return answer

    def close(self) -> None:
        """End the process. A second call does nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # tells the process that no more requests come
        self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None and not issubclass(kind, WorkerDied):
            self._process.terminate()  # nobody waits for a step of a minute after Ctrl-C
        self.close()


def describe_exit(status: int) -> str:
    """Say how a process ended. ``status`` is the result of ``wait``."""
    if status == -9:
        return "killed by the system: out of memory"
    return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"


def serve_requests(make_answer_function: Callable[[], Callable[[str], Answer]]) -> None:
    """Answer every line of stdin: the code that runs in the process of a :class:`Worker`.

    The function that answers is made at the first request. An exception is answered in one line, and ends the
    process.
    """
    # If memory runs out, the kernel should end this process and not the suite or another program.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    # Libraries may print to stdout. So their output goes to stderr, and only answers go to stdout.
    answers, sys.stdout = sys.stdout, sys.stderr
    answer = None
    with contextlib.suppress(KeyboardInterrupt):  # the suite prints a message
        for line in sys.stdin:
            try:
                answer = answer or make_answer_function()
                reply = answer(line.strip())
            except Exception as error:
                text = str(error).strip() or "no reason given"
                print(json.dumps({"error": f"{type(error).__name__}: {text.splitlines()[0]}"}), file=answers)
                return
            print(json.dumps(reply), file=answers, flush=True)


def machine_facts() -> dict[str, str]:
    """Facts about this machine: processor, memory, cores, load, system, versions, time."""
    from mlxlava.backend import device_facts

    about = {**device_facts(), "python": platform.python_version(), "system": platform.platform()}
    memory = total_memory_gb()
    if memory is not None:
        about["memory"] = f"{memory:.1f} GB"
    about["threads"] = str(cores_to_use())
    # Timings at a load above 0.5 are not reliable, since threads wait for other work.
    about["load average"] = f"{os.getloadavg()[0]:.2f}"
    about["time"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return about


def cores_to_use() -> int:
    """The number of CPU cores that are used: MLXLAVA_CORES, or all."""
    return core_limit() or os.cpu_count() or 1


def total_memory_gb() -> float | None:
    """Memory of the machine in GB; None if the system does not tell."""
    with contextlib.suppress(ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return None


def recommended_working_set_gb() -> float | None:
    """The working set that the device recommends, in GB; None if it recommends none."""
    from mlxlava.backend import mx, on_cpu

    size = 0 if on_cpu() else int(mx.device_info().get("max_recommended_working_set_size", 0))
    return size / 1e9 or None


def summarise_timings(seconds: Sequence[float]) -> Answer:
    """Median, smallest and largest of repeated timings."""
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "repeats": len(seconds),
    }


def print_result(name: str, result: Answer, save: bool) -> None:
    """Print a result as a last line of JSON. With ``save``, append it to a file of results as well."""
    line = json.dumps({"benchmark": name, **result})
    if save:
        RESULTS_FOLDER.mkdir(exist_ok=True)
        with (RESULTS_FOLDER / f"{name}.jsonl").open("a", encoding="utf-8") as history:
            history.write(line + "\n")
    print(line)
