"""Tiny runs that are trained by a process of their own, and what must be true of a run at any moment."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from mlxlava.backend import arrays_by_name
from mlxlava.integrity import read_last_intact_checkpoint
from mlxlava.paths import checkpoint_folders, is_run
from mlxlava.training.checkpoint import load_checkpoint
from mlxlava.training.folder import recipe_of_run, require_free_folder, schedule_of_run
from mlxlava.training.log import open_log
from mlxlava.training.trainer import make_trainer
from tests.conftest import EAGER

LENGTH = int(os.environ.get("MLXLAVA_RELIABILITY", "1"))  # so many times as many trials

_SETTINGS = (
    "data.size=[16,16]",
    "data.seq_len=6",
    "data.batch_size=4",
    "data.lamp_minutes=0.1",
    "generator.state_size=8",
    "generator.widths=[8,6]",
    "dynamics.hidden=[12]",
    "discriminator.widths=[6,8]",
    "discriminator.hidden=[10]",
    "training.epochs=0",
    "training.checkpoint_every=2",
    "training.preview_every=4",
    "encoder.context_frames=3",
    "encoder.widths=[6,8]",
    "encoder.hidden=[10]",
    "loss.d_start=0.17",
    "loss.penalty_every=2",
)
RESUME = [sys.executable, "-m", "mlxlava", "train", "--resume"]
BEGIN = [sys.executable, "-m", "mlxlava", "train", *(word for each in _SETTINGS for word in ("--set", each))]


def start(command: list[str], *, compiled: bool = False, **options: object) -> subprocess.Popen[str]:
    """Start a command in a session of its own, with its messages kept.

    Args:
        command: The words of the command.
        compiled: Whether MLX may compile kernels.
        options: Those of Popen; ``env`` has what is added to the environment.
    """
    environment = {**os.environ, **EAGER, **options.pop("env", {})}  # type: ignore[dict-item]
    if compiled:
        for name in EAGER:  # MLX asks whether the variable is there; its value does not count
            del environment[name]
    process: subprocess.Popen[str] = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,  # type: ignore[call-overload]
    )
    return process


def finish(command: list[str], *, compiled: bool = False, **options: object) -> tuple[int, str]:
    """Run a command to its end; returns the exit status and what it has said."""
    process = start(command, compiled=compiled, **options)
    said = process.communicate(timeout=1800)[1]  # on a busy machine
    return process.returncode, said


def wait_until_python_has_started(process: subprocess.Popen[str]) -> None:
    """Wait until a command has taken Ctrl-C from Python.

    Python takes a tenth of a second to start, or seconds on a busy machine, and has a traceback of its own
    for a Ctrl-C in that time. The first thing that the command does is to give the signal its default back.
    """
    status, caught = Path(f"/proc/{process.pid}/status"), False
    if not status.exists():  # not Linux
        time.sleep(1)
        return
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        signals = re.search(r"^SigCgt:\s+(\w+)", status.read_text(), re.MULTILINE)
        catches = signals is not None and bool(int(signals[1], 16) >> (signal.SIGINT - 1) & 1)
        if caught and not catches:
            return
        caught = catches
        time.sleep(0.005)


def wait_until_it_has_worked(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait until a process and its compilers have used so much processor time, or have ended.

    So the moment does not depend on how busy the machine is.
    """
    used = 0.0
    while used < seconds and process.poll() is None:
        time.sleep(0.05)
        with contextlib.suppress(psutil.NoSuchProcess):  # a compiler that ends meanwhile
            root = psutil.Process(process.pid)
            used = sum(sum(each.cpu_times()[:4]) for each in (root, *root.children(recursive=True)))


def require_one_line(outcome: tuple[int, str], status: int = 2) -> str:
    """The last line of a command that has failed as it should: without a traceback."""
    assert outcome[0] == status and "Traceback" not in outcome[1], outcome
    line = outcome[1].strip().splitlines()[-1]
    assert line.startswith("mlxlava: "), outcome
    return line


def require_sound(run: Path) -> int:
    """Check that a run can go on, or begin; returns the steps that are kept, -1 if none are.

    The latest checkpoint is intact: nothing that happens to a process damages one.
    """
    if not checkpoint_folders(run):
        if not is_run(run) or run.is_dir():
            require_free_folder(run)
        return -1
    example = make_trainer(recipe_of_run(run), schedule_of_run(run)).init()
    folder, (_, progress) = read_last_intact_checkpoint(run, lambda path: load_checkpoint(path, example))
    assert folder == checkpoint_folders(run)[-1]
    with open_log(run, progress["step"]):
        pass
    return int(progress["step"])


def digest_of_state(run: Path) -> str:
    """A digest of all arrays of the latest checkpoint."""
    example = make_trainer(recipe_of_run(run), schedule_of_run(run)).init()
    state, _ = load_checkpoint(checkpoint_folders(run)[-1], example)
    total = hashlib.sha256()
    for name, array in sorted(arrays_by_name(state).items()):
        total.update(name.encode())
        total.update(bytes(memoryview(array)))  # type: ignore[arg-type]
    return total.hexdigest()
