"""The window, on SDL's driver that shows nothing; and once on a real X server with real keys."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image, ImageGrab, features

from mlxlava.errors import UserError
from mlxlava.playback import options as playback_options
from mlxlava.playback.clock import WallClock
from mlxlava.playback.options import PlaybackOptions, can_show_window, has_display
from mlxlava.playback.player import play_lamp
from mlxlava.playback.screens.foreign_window import parse_window_id
from mlxlava.playback.session import SPEED_RANGE, FrameSource, Session
from mlxlava.playback.writers import Frame

pytest.importorskip("pygame", reason="needs the extra `window`")

from pygame._sdl2.video import Renderer

from mlxlava.playback.screens.window import Window, fit_picture, pygame

RED = (200, 40, 20)


class Plain:
    """Lamps of one colour, twice as wide as high."""

    names: Sequence[str] = ["a", "b"]

    def open(self, name: str, seed: int) -> FrameSource:
        def play(times: Iterable[float]) -> Iterator[tuple[float, Frame]]:
            for at in times:
                yield at, plain()

        return FrameSource(play, (16, 32))


def plain(colour: tuple[int, int, int] = RED) -> Frame:
    return np.full((16, 32, 3), colour, np.uint8)


@pytest.fixture(autouse=True)
def dummy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr("mlxlava.playback.screens.window.Renderer", Screen)


@pytest.fixture
def session() -> Session:
    return Session(Plain(), "a", 3, WallClock(30))


@pytest.fixture
def window(session: Session, tmp_path: Path) -> Iterator[Window]:
    with Window(session, tmp_path, size=(300, 200)) as window:
        window.show(plain())
        yield window


def press(*keys: str) -> None:
    for key in keys:
        code = pygame.key.key_code(
            {" ": "space", "\x1b": "escape", "\b": "backspace", "+": "=", "_": "-"}.get(key, key)
        )
        pygame.event.post(pygame.Event(pygame.KEYDOWN, key=code, unicode=key, mod=0))


class Screen(Renderer):
    """A renderer that keeps what it was last told to present, as a display does."""

    shown: ClassVar[Frame]

    def present(self) -> None:
        Screen.shown = np.array(pygame.surfarray.array3d(self.to_surface()).swapaxes(0, 1))
        super().present()


def picture() -> Frame:
    """What the window shows: (H, W, 3)."""
    return Screen.shown


@pytest.mark.parametrize(
    ("keys", "changed"),
    [
        ("+", {"speed": 1.25}),
        ("=+", {"speed": 1.25**2}),
        ("-", {"speed": 0.8}),
        ("+++0", {"speed": 1.0}),
        ("-\b", {"speed": 1.0}),
        ("_", {"speed": 0.8}),
        ("+" * 40, {"speed": SPEED_RANGE[1]}),
        (" ", {"paused": True}),
        ("  ", {}),
        ("n", {"seed": 4}),
        ("nn", {"seed": 5}),
        ("w", {"name": "b"}),
        ("ww", {}),
        ("hfx?f", {}),
    ],
)
def test_keys(window: Window, session: Session, keys: str, changed: dict[str, Any]) -> None:
    before = session.status()
    press(*keys)
    window.wait_and_react(0.01)
    assert session.status() == pytest.approx(before | changed)
    assert not session.ended


@pytest.mark.parametrize("key", ["q", "\x1b"])
def test_keys_that_end_it(window: Window, session: Session, key: str) -> None:
    press(key)
    window.show(plain())  # also where the machine is too slow to wait
    assert session.ended


def test_closing_it_ends_it(window: Window, session: Session) -> None:
    pygame.event.post(pygame.Event(pygame.QUIT))
    window.wait_and_react(0.01)
    assert session.ended


def test_shortcuts_of_the_system_are_none_of_ours(window: Window, session: Session) -> None:
    pygame.event.post(pygame.Event(pygame.KEYDOWN, key=pygame.K_q, unicode="q", mod=pygame.KMOD_LCTRL))
    window.wait_and_react(0.01)
    assert not session.ended


def test_the_aspect_is_kept_and_the_rest_has_the_edges_colour(window: Window) -> None:
    assert fit_picture((16, 32), 300, 200) == (0, 25, 300, 150)
    assert fit_picture((32, 16), 300, 200) == (100, 0, 100, 200)
    seen = picture()
    assert seen.shape == (200, 300, 3)
    np.testing.assert_array_equal(seen, np.broadcast_to(RED, (200, 300, 3)))


@pytest.mark.parametrize("shape", [(32, 16), (16, 64), (64, 63)])
def test_the_surround_continues_the_edge(window: Window, shape: tuple[int, int]) -> None:
    height, width = shape
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    frame = np.stack([30 + 40 * across, 20 + 40 * down, 90 - 20 * across * down], -1).astype(np.uint8)
    frame[1:-1, 1:-1] = 200
    window.show(frame)
    left, top, wide, high = fit_picture(shape, 300, 200)
    seen = picture().astype(int)
    rows, columns = np.arange(200).clip(top, top + high - 1), np.arange(300).clip(left, left + wide - 1)
    beside = np.ones((200, 300), bool)
    beside[top : top + high, left : left + wide] = False
    assert beside.any()
    assert np.abs(seen - seen[rows][:, columns])[beside].max() <= 6


@pytest.mark.parametrize(
    ("shape", "desktop", "size"),
    [
        ((64, 64), (1920, 1080), (640, 640)),
        ((256, 128), (1920, 1080), (432, 864)),  # four fifths of the desktop's height
        ((256, 128), (3840, 2160), (453, 905)),  # as many pixels as the square one
        ((128, 256), (1920, 1080), (905, 453)),
        ((256, 128), (800, 600), (240, 480)),
        ((1000, 2000), (3000, 3000), (2000, 1000)),  # not made smaller
        ((1000, 2000), (1000, 1000), (800, 400)),
    ],
)
def test_a_tall_lamp_opens_a_tall_window(
    shape: tuple[int, int],
    desktop: tuple[int, int],
    size: tuple[int, int],
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pygame.display, "get_desktop_sizes", lambda: [desktop])
    with Window(session) as window:
        window.show(np.full((*shape, 3), RED, np.uint8))
        assert picture().shape == (size[1], size[0], 3)


def test_an_enlarged_edge_has_no_rim(window: Window) -> None:
    edge = plain((50, 50, 50))
    edge[:, 16:] = 200
    window.show(edge)
    assert picture().min() == 50 and picture().max() == 200


def test_pictures_are_scaled_smoothly(window: Window) -> None:
    edge = plain()
    edge[:, 16:] = 0
    window.show(edge)
    row = picture()[100, :, 0].astype(int)
    assert np.abs(np.diff(row)).max() < 60  # in one step it would be 200
    assert row[140] > 190 and row[160] < 10


def test_a_lamp_of_another_size(window: Window) -> None:
    window.show(np.full((64, 32, 3), 90, np.uint8))
    assert (picture() == 90).all()


def test_texts_come_and_go(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    clear = picture()
    press("h")
    window.wait_and_react(0.01)
    assert (picture() == 255).all(-1).any()  # white letters
    press("h", "+")
    window.wait_and_react(0.01)
    assert (picture() != clear).any()
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    window.wait_and_react(0.01)
    np.testing.assert_array_equal(picture(), clear)


def test_hidden_nothing_is_drawn(window: Window) -> None:
    before = picture()
    pygame.event.post(pygame.Event(pygame.WINDOWMINIMIZED))
    window.wait_and_react(0.01)
    assert window.hidden
    window.show(plain((10, 200, 10)))
    np.testing.assert_array_equal(picture(), before)
    pygame.event.post(pygame.Event(pygame.WINDOWRESTORED))
    window.wait_and_react(0.01)
    assert not window.hidden
    assert (picture()[100, 150] == (10, 200, 10)).all()


def test_saved_pictures_never_overwrite(window: Window, session: Session, tmp_path: Path) -> None:
    session.count_shown_frame(0.5)
    press("s", "s")
    window.wait_and_react(0.01)
    saved = sorted(path.name for path in tmp_path.iterdir())
    assert saved == ["lava-3-1-2.png", "lava-3-1.png"]
    with Image.open(tmp_path / saved[0]) as image:
        assert image.size == (1024, 512)
        assert image.getpixel((500, 200)) == RED


def test_a_picture_that_cannot_be_saved_is_said(session: Session, tmp_path: Path) -> None:
    with Window(session, tmp_path / "gone", size=(300, 200)) as window:
        window.show(plain())
        before = picture()
        press("s")
        window.wait_and_react(0.01)
        assert (picture() != before).any()


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on a desktop."""
    monkeypatch.setattr(playback_options, "understands_escape_sequences", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(
    ("given", "screen"),
    [
        ({}, "window"),
        ({"seconds": 2.0}, "window"),
        ({"target": "a.gif"}, "none"),
        ({"target": "a.gif", "screen": "auto"}, "terminal"),
        ({"target": "a.gif", "screen": "window"}, "window"),
        ({"screen": "terminal"}, "terminal"),
    ],
)
def test_a_window_is_the_screen_where_there_is_a_display(given: dict[str, Any], screen: str) -> None:
    assert dataclasses.replace(PlaybackOptions(), **given).resolve().screen == screen


def test_no_window_opens_where_stdout_is_no_terminal() -> None:
    assert PlaybackOptions().resolve().screen == "none"


@pytest.mark.usefixtures("desk")
def test_a_display_that_is_gone(monkeypatch: pytest.MonkeyPatch, session: Session) -> None:
    monkeypatch.delenv("SDL_VIDEODRIVER")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":4711")
    monkeypatch.setattr(sys, "platform", "linux")
    assert has_display() and not can_show_window()
    assert PlaybackOptions().resolve().screen == "terminal"
    with pytest.raises(UserError, match="display"), Window(session):
        pass
    assert "SDL_VIDEODRIVER" not in os.environ


@pytest.mark.parametrize(
    ("platform", "environment", "there"),
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("darwin", {}, True),
        ("darwin", {"SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, False),
        ("darwin", {"SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22", "DISPLAY": ":10"}, True),
    ],
)
def test_where_a_display_is(
    platform: str, environment: dict[str, str], there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert has_display() == there
    if not there:
        with pytest.raises(UserError, match="no display"):
            PlaybackOptions(screen="window").resolve()


def test_without_the_extra_one_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxlava.playback.screens.window", None)
    assert not can_show_window()
    with pytest.raises(UserError, match=r'install "mlxlava\[window\]"'):
        play_lamp(Plain(), PlaybackOptions(screen="window").resolve(), "a")


def test_a_file_beside_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "lamp.apng"
    play_lamp(Plain(), PlaybackOptions(str(target), screen="window", fps=20, seconds=0.5).resolve(), "a")
    assert len(list(iio.imiter(target, plugin="pillow"))) == 10


@contextlib.contextmanager
def x_server() -> Iterator[str]:
    """An X server of our own, by its name."""
    ours, theirs = os.pipe()
    # Without -noreset it refuses clients for a moment whenever its last one has left.
    command = [
        "Xvfb",
        "-noreset",
        "-nolisten",
        "tcp",
        "-displayfd",
        str(theirs),
        "-screen",
        "0",
        "800x600x24",
    ]
    server = subprocess.Popen(command, pass_fds=[theirs], stderr=subprocess.DEVNULL)
    os.close(theirs)
    try:
        with open(ours) as number:  # noqa: PTH123
            yield f":{number.readline().strip()}"
    finally:
        server.terminate()
        server.wait()


def until(condition: Callable[[], Any]) -> Any:
    """What ``condition`` gives as soon as that is true."""
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


on_a_real_display = pytest.mark.skipif(
    not (shutil.which("Xvfb") and shutil.which("xdotool") and features.check("xcb")),
    reason="needs Xvfb, xdotool and a Pillow with XCB",
)

# Another program with a window of its own, 300×200 in the upper left corner. It says its number, and makes
# the window larger when it is told to.
_HOST = """
import pygame, sys
pygame.display.init()
window = pygame.Window("host", (300, 200), (0, 0), borderless=True)
window.get_surface().fill((0, 0, 255))
window.flip()
print(window.handle, flush=True)
sys.stdin.readline()
window.size = (400, 300)
pygame.event.get()
sys.stdin.readline()
"""


@on_a_real_display
@pytest.mark.parametrize("ended_by", ["host", "signal"])
def test_a_lamp_fills_the_window_that_a_screen_saver_names(
    ended_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SDL_VIDEODRIVER")
    with x_server() as display:
        monkeypatch.setenv("DISPLAY", display)
        command = [sys.executable, "-c", _HOST]
        host = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert host.stdin is not None and host.stdout is not None
        number = next(line for line in host.stdout if line.strip().isdigit())
        monkeypatch.setenv("XSCREENSAVER_WINDOW", hex(int(number)))

        def is_filled(width: int, height: int) -> bool:
            """Whether the lamp is all over the upper left corner, and nowhere else."""
            seen = np.array(ImageGrab.grab(xdisplay=display).convert("RGB")).astype(int)
            inside, beside = seen[:height, :width], seen.copy()
            beside[:height, :width] = 0
            lit = inside.any(-1).all() and (inside[..., 2] < 255).all()  # neither black nor the host's blue
            return bool(lit and np.ptp(inside) > 100 and not beside.any())

        # Its stdout is no terminal, as under a screen saver.
        command = [sys.executable, "-m", "mlxlava", "lamp", "--size", "32"]
        saver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            until(lambda: is_filled(300, 200) or saver.poll() is not None)
            host.stdin.write("larger\n")
            host.stdin.flush()
            until(lambda: is_filled(400, 300) or saver.poll() is not None)
            subprocess.run(["xdotool", "key", "q"], check=True)  # keys are the screen saver's
            time.sleep(0.3)
            assert saver.poll() is None, saver.communicate()
            if ended_by == "host":
                host.kill()
            else:
                saver.terminate()
            assert saver.communicate(timeout=60)[0] == ""
            assert saver.returncode == 0
        finally:
            saver.kill()
            host.kill()
            host.communicate()


@on_a_real_display
def test_a_window_that_is_not_there(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SDL_VIDEODRIVER")
    with x_server() as display:
        monkeypatch.setenv("DISPLAY", display)
        with pytest.raises(UserError, match="no X window 0x4711;"), Window(session, window_id=0x4711):
            pass
        # What is there can be played in afterwards.
        with Window(session, size=(300, 200)) as window:
            window.show(plain())
    assert capfd.readouterr().err == ""


def test_a_foreign_window_needs_x11(session: Session) -> None:
    with pytest.raises(UserError, match="needs X11, but SDL uses dummy"), Window(session, window_id=1):
        pass


@pytest.mark.parametrize("text", ["", "0", "-1", "0x1ffffffff", "root"])
def test_a_window_that_is_no_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--window-id must be the number of an X window.*, not "):
        parse_window_id(text, "--window-id")
    monkeypatch.setenv("XSCREENSAVER_WINDOW", text)
    if text:
        with pytest.raises(UserError, match="XSCREENSAVER_WINDOW must be"):
            PlaybackOptions().resolve()
    else:
        assert PlaybackOptions(target="a.gif").resolve().window_id is None


def test_a_named_window_is_the_screen_unless_another_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PlaybackOptions(window_id=7).resolve().screen == "window"
    monkeypatch.setenv("XSCREENSAVER_WINDOW", "0x2a")
    found = PlaybackOptions().resolve()
    assert (found.screen, found.window_id) == ("window", 42)
    assert PlaybackOptions(window_id=7).resolve().window_id == 7
    for options in (PlaybackOptions(target="a.gif"), PlaybackOptions(screen="web")):
        assert options.resolve().window_id is None
    with pytest.raises(UserError, match="--window-id is for --screen window"):
        PlaybackOptions(screen="web", window_id=7).resolve()


@on_a_real_display
def test_real_keys_on_a_real_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDL_VIDEODRIVER")
    with x_server() as display:
        monkeypatch.setenv("DISPLAY", display)

        def xdotool(*words: str) -> str:
            return subprocess.run(["xdotool", *words], capture_output=True, text=True).stdout.strip()

        def shown() -> Frame:
            return np.array(ImageGrab.grab(xdisplay=display).convert("RGB"))

        def find() -> str:
            assert process.poll() is None, process.communicate()
            return xdotool("search", "--onlyvisible", "--pid", str(process.pid))

        def lies_in_the_middle(seen: Frame) -> bool:
            lit = np.asarray(seen.any(-1))  # the lamp has no black pixel, and neither has its surround
            inside, edges = seen[:250, 125:375].astype(int), seen[:250, [60, 440]].astype(int)
            near = np.abs(edges - inside[:, [0, -1]]).max() <= 6
            return bool(lit[:250, :500].all() and not lit[250:].any() and near and np.ptp(inside) > 100)

        def saved(pattern: str) -> list[Path]:
            return list(tmp_path.glob(pattern))

        command = [sys.executable, "-m", "mlxlava", "lamp", "--screen", "window", "--size", "32"]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        try:
            number = until(find).split()[-1]
            until(lambda: shown().any())
            xdotool("windowfocus", "--sync", number)
            assert xdotool("getwindowname", number) == "mlxlava - classic 0"
            xdotool("windowsize", number, "500", "250")
            xdotool("windowmove", number, "0", "0")
            until(lambda: lies_in_the_middle(shown()))

            xdotool("key", "space")
            xdotool("key", "n")
            until(lambda: xdotool("getwindowname", number) == "mlxlava - classic 1")
            xdotool("key", "w")
            until(lambda: xdotool("getwindowname", number) == "mlxlava - blue 1")
            xdotool("key", "s")
            (path,) = until(lambda: saved("lava-1-*.png"))
            xdotool("key", "s")
            until(lambda: len(saved("lava-1-*.png")) == 2)
            red, _, blue = np.asarray(Image.open(path)).reshape(-1, 3).mean(0)
            assert blue > red  # the lamp that was chosen while time stood still

            before = shown()
            xdotool("key", "h")
            until(lambda: (shown() != before).any())
            xdotool("key", "Escape")
            assert process.wait(timeout=60) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            process.kill()
