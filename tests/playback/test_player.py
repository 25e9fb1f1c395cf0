"""Playing: where frames go, for how long, and how it ends."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from mlxlava.errors import UserError
from mlxlava.playback import options as playback_options
from mlxlava.playback.options import PlaybackOptions
from mlxlava.playback.player import play_lamp
from mlxlava.playback.session import FrameSource, PlayFunction
from mlxlava.playback.writers import Frame

SIZE = (16, 32)


def source(times: Iterable[float]) -> Iterator[tuple[float, Frame]]:
    """Frames that grow brighter."""
    for at in times:
        yield at, np.full((*SIZE, 3), min(int(at * 100), 255), np.uint8)


class One:
    """A player's lamps: one."""

    names: Sequence[str] = ["one"]

    def __init__(self, play: PlayFunction) -> None:
        self._play = play

    def open(self, name: str, seed: int) -> FrameSource:
        return FrameSource(self._play, SIZE)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playback_options, "understands_escape_sequences", lambda: True)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playback_options, "understands_escape_sequences", lambda: False)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(
    ("given", "screen", "target", "length"),
    [
        ({}, "terminal", None, None),
        ({"seconds": 2.0}, "terminal", None, 60),
        ({"target": "a.gif"}, "none", "a.gif", 300),
        ({"target": "a.gif", "forever": True}, "none", "a.gif", None),
        ({"target": "a.gif", "screen": "auto"}, "terminal", "a.gif", None),
        ({"target": "-", "format": "raw", "screen": "auto"}, "none", "-", 300),
        ({"target": "a.gif", "frames": 7}, "none", "a.gif", 7),
    ],
)
def test_a_terminal_is_the_screen_unless_a_file_is_asked_for(
    given: dict[str, object], screen: str, target: str | None, length: int | None
) -> None:
    options = dataclasses.replace(PlaybackOptions(), **given).resolve()  # type: ignore[arg-type]
    assert (options.screen, options.target, options.frame_count) == (screen, target, length)


@pytest.mark.usefixtures("pipe")
def test_without_a_terminal_it_writes_a_file_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    options = PlaybackOptions().resolve()
    assert (options.screen, options.target, options.frame_count) == ("none", "lava.mp4", 300)
    assert "lava.mp4" in capsys.readouterr().err


@pytest.mark.usefixtures("pipe")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (PlaybackOptions(forever=True), "--forever, but there is no terminal"),
        (PlaybackOptions(seconds=1, frames=3), "one of --forever, --seconds and --frames"),
        (PlaybackOptions(seconds=1, forever=True), "one of --forever, --seconds and --frames"),
        (PlaybackOptions(screen="terminal"), "--screen terminal, but stdout is not a terminal"),
        (PlaybackOptions(screen="none"), "--screen none needs a file"),
        (PlaybackOptions(target="a.doc"), "no format has the file ending of a.doc"),
        (PlaybackOptions(target="-", format="mp4"), "mp4 cannot go to stdout"),
        (PlaybackOptions(target="a.apng", quality=50), "--quality: apng is lossless"),
    ],
)
def test_options_that_cannot_be_together_are_refused(options: PlaybackOptions, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        options.resolve()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fps", "seconds", "count"), [(30, 1.0, 30), (10, 0.25, 3), (30, 0.001, 1), (24, 0.5, 12)]
)
def test_seconds_are_whole_frames(
    fps: float, seconds: float, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "lamp.apng"
    play_lamp(One(source), PlaybackOptions(str(target), fps=fps, seconds=seconds).resolve(), "one")
    assert len(list(iio.imiter(target, plugin="pillow"))) == count
    assert f"wrote {target}" in capsys.readouterr().err


def test_ctrl_c_finishes_the_file(tmp_path: Path) -> None:
    def interrupted(times: Iterable[float]) -> Iterator[tuple[float, Frame]]:
        for number, played in enumerate(source(times)):
            if number == 5:
                raise KeyboardInterrupt
            yield played

    target = tmp_path / "lamp.mp4"
    play_lamp(One(interrupted), PlaybackOptions(str(target), forever=True).resolve(), "one")
    assert iio.imread(target).shape == (5, *SIZE, 3)


_FOREVER = [sys.executable, "-m", "mlxlava", "lamp", "--forever", "--size", "32"]


def test_sigterm_finishes_the_file_and_exits_zero(tmp_path: Path) -> None:
    target = tmp_path / "lamp.raw"
    process = subprocess.Popen([*_FOREVER, "-o", str(target)], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(
            part.stat().st_size > 2**16 for part in tmp_path.iterdir()
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0, said
    finally:
        process.kill()
    assert [path.name for path in tmp_path.iterdir()] == ["lamp.raw"]
    frames, rest = divmod(target.stat().st_size, 32 * 32 * 3)
    assert frames > 1 and rest == 0


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    command = [*_FOREVER, "-o", "-", "--format", "y4m"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.read(10) == b"YUV4MPEG2 "
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()


@pytest.mark.usefixtures("pipe")
def test_a_second_signal_does_not_break_what_the_first_one_ends(tmp_path: Path) -> None:
    """A terminal that is closed sends SIGHUP more than once. (Not here: the tests may run under nohup.)"""
    ended = []

    def play(times: Iterable[float]) -> Iterator[tuple[float, Frame]]:
        try:
            for at, frame in source(times):
                yield at, frame
                if at >= 0.2:
                    signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGQUIT)
            ended.append("well")

    before = signal.getsignal(signal.SIGTERM)
    options = PlaybackOptions(target=str(tmp_path / "a.raw"), seconds=5.0).resolve()
    play_lamp(One(play), options, "one")
    assert ended == ["well"]
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "a.raw").stat().st_size % (SIZE[0] * SIZE[1] * 3) == 0
