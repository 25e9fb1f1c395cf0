"""The lamp as a Python object."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files

import numpy as np
import numpy.typing as npt
import pytest

import mlxlava
from mlxlava.rollout.roll import Rollout

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def lamp() -> mlxlava.LavaLamp:
    return mlxlava.load("lava")


def test_frames_are_those_that_are_played(lamp: mlxlava.LavaLamp) -> None:
    frames: Iterator[npt.NDArray[np.uint8]] = lamp.frames(fps=10, seed=3, speed=2.0)
    first = list(itertools.islice(frames, 3))
    played = [frame for _, frame in Rollout(lamp.weights, 3).play([0.0, 0.2, 0.4])]
    assert np.array_equal(first, played)
    assert first[0].shape == (*lamp.size, 3) and first[0].dtype == np.uint8
    assert lamp.step_fps == 5
    assert len(list(lamp.frames(fps=4, seconds=1.1))) == 5


def test_a_clip_can_be_seamless_and_start_anywhere(lamp: mlxlava.LavaLamp) -> None:
    start = Rollout(lamp.weights, 5).states[0]
    frames = list(lamp.frames(fps=2, seconds=4, start=start, seamless=True))
    assert len(frames) == 8
    assert np.array_equal(frames[0], next(lamp.frames(start=start)))


def test_mistakes_are_said_at_once(lamp: mlxlava.LavaLamp) -> None:
    for fps, speed, seconds in ((0, 1, 1), (30, -1, 1), (30, 1, 0)):
        with pytest.raises(mlxlava.UserError, match="must be positive"):
            lamp.frames(fps=fps, speed=speed, seconds=seconds)
    with pytest.raises(mlxlava.UserError, match="give seconds"):
        lamp.frames(seamless=True)
    with pytest.raises(mlxlava.UserError, match="nowhere"):
        mlxlava.load("nowhere")
    with pytest.raises(AttributeError, match="lode"):
        mlxlava.lode  # type: ignore[attr-defined]  # noqa: B018


def test_a_fresh_process_imports_it_without_mlx_and_plays_it() -> None:
    code = """if True:
        import sys
        import mlxlava
        assert not [name for name in sys.modules if name.partition(".")[0] == "mlx"]
        frames = mlxlava.load("lava").frames(fps=30, seed=7)
        print(next(frames).shape, next(frames).dtype)
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.split("\n")[0] == "(64, 64, 3) uint8", ended.stderr


@pytest.mark.slow
def test_it_is_typed() -> None:
    assert (files("mlxlava") / "py.typed").is_file()
    user = (
        "import mlxlava\n"
        "for frame in mlxlava.load('lava').frames(fps=24.0, seed=1, seconds=1.0):\n"
        "    reveal_type(frame)\n"
        "mlxlava.load('lava').frames(seed='one')\n"
    )
    mypy = pytest.importorskip("mypy.api")
    said, _, status = mypy.run(["--strict", "--config-file=", "-c", user])
    assert status == 1, said
    assert (
        'Revealed type is "numpy.ndarray[' in said
        and "unsignedinteger[numpy._typing._nbit_base._8Bit]" in said
    ), said
    assert said.count("error:") == 1 and 'incompatible type "str"; expected "int"' in said, said
