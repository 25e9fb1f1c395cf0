"""Two processes on this machine train together (mlx.launch's ring over TCP)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from mlxlava.backend import mx
from mlxlava.paths import latest_checkpoint_folder
from tests.conftest import EAGER

_TRAIN = [
    *("-m", "mlxlava", "train", "--size", "16", "--batch-size", "4", "--seq-len", "6"),
    *(
        "--set",
        "data.lamp_minutes=0.1",
        "--set",
        "generator.state_size=8",
        "--set",
        "generator.widths=[8, 6]",
    ),
    *(
        "--set",
        "encoder.context_frames=3",
        "--set",
        "encoder.widths=[6, 8]",
        "--set",
        "discriminator.widths=[6, 8]",
    ),
    *(
        "--set",
        "loss.d_start=0.17",
        "--set",
        "training.optimizer=sgd",
        "--set",
        "training.update_clipping=0.0",
    ),
]


def launch(run: Path, *more: str) -> subprocess.Popen[str]:
    """Train with two processes."""
    launcher = Path(sys.executable).with_name("mlx.launch")
    command = [launcher, "-n", "2", "--backend", "ring", "--", sys.executable, *_TRAIN, "-o", run, *more]
    return subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, **EAGER},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = [sys.executable, *_TRAIN, "--steps", "3", "-o", str(one)]
    subprocess.run(alone, env={**os.environ, **EAGER}, check=True, capture_output=True)
    said = launch(two, "--steps", "3").communicate(timeout=240)[1]
    left, right = (mx.load(str(run / "checkpoints/00000003/state.safetensors")) for run in (one, two))
    assert isinstance(left, dict) and isinstance(right, dict), said
    assert left.keys() == right.keys()
    for name in left:
        assert np.allclose(np.array(left[name]), np.array(right[name]), rtol=1e-4, atol=1e-6), name
    assert said.count("play it:") == 1  # the first process speaks


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(run, "--steps", "100000", "--set", "training.checkpoint_every=2")
    deadline = time.monotonic() + 240
    while (latest := latest_checkpoint_folder(run)) is None or int(latest.name) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = next(
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.environ().get("MLX_RANK") == "1"
    )
    second.kill()
    said = process.communicate(timeout=240)[1]
    assert "another process of this run is gone" in said and "--resume" in said
    assert "Traceback" not in said
