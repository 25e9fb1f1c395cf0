"""What several tests share: a tiny recipe and footage for it."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlxlava.backend import mx
from mlxlava.cli import main
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.footage.dataset import Footage
from mlxlava.footage.prepare import prepare_lamp
from mlxlava.training.callbacks import Callbacks, StepReport

_TINY = {
    "data.size": [16, 16],
    "data.seq_len": 6,
    "data.batch_size": 4,
    "generator.state_size": 8,
    "generator.widths": [8, 6],
    "dynamics.hidden": [12],
    "discriminator.widths": [6, 8],
    "discriminator.hidden": [10],
    "training.steps": 6,
    "training.epochs": 0,
    "training.checkpoint_every": 2,
    "training.preview_every": 4,
}
_ENCODER = {
    "encoder.context_frames": 3,
    "encoder.widths": [6, 8],
    "encoder.hidden": [10],
    "loss.d_start": 0.17,
}


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """The recipe ``lava``, small: a step takes milliseconds."""
    return override(load_recipe("lava"), {**_TINY, **_ENCODER, "loss.penalty_every": 2})


@pytest.fixture(scope="session")
def tiny_duralava() -> Recipe:
    """The recipe ``duralava``, small."""
    small = {"discriminator.features": 6, "discriminator.state": 5}
    return override(load_recipe("duralava"), {**_TINY, **small, "data.every_nth": 1})


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    """Six seconds of the built-in lamp, 16×16."""
    return prepare_lamp(
        tmp_path_factory.mktemp("footage") / "lamp",
        size=(16, 16),
        minutes=0.1,
        fps=5,
        every_nth=1,
        seed=0,
        theme="classic",
    )


@pytest.fixture(params=["a chunk's name", "cut short", "too large"])
def damaged_picture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A PNG, alone in its folder, that cannot be read."""
    path = tmp_path / "damaged" / "picture.png"
    path.parent.mkdir()
    if request.param == "too large":
        Image.new("1", (16320, 12240), 1).save(path)  # 25 KB, 200 megapixels
        return path
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    if request.param == "cut short":
        path.write_bytes(data[: len(data) // 2])
    else:
        second = data.index(b"IDAT", data.index(b"IDAT") + 4)
        path.write_bytes(data[:second] + b"\0\0\0\0" + data[second + 4 :])
    return path


class StopAtNextStep(Callbacks):
    """Ends a training as Ctrl-C does, after the first step that it reports."""

    stopped = False

    def on_step(self, report: StepReport) -> None:
        if not self.stopped:  # a second Ctrl-C would not wait for the checkpoint
            self.stopped = True
            os.kill(os.getpid(), signal.SIGINT)


def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Run ``mlxlava …`` in this process; returns the exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["mlxlava", *arguments])
    capsys.readouterr()
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


# The same as the fixture `eager`, for processes that tests start.
EAGER = {"MLX_DISABLE_COMPILE": "1"}


@pytest.fixture(scope="module")
def eager() -> Iterator[None]:
    """Steps are not compiled: that costs seconds of g++ a run, and test_step compares compiled with eager."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def load_tool(name: str) -> Any:
    """A script of ``tools/`` as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / f"tools/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
