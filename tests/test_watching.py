"""Watching a lamp while it is trained: a page beside the training, which goes on whatever happens to it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

from mlxlava.backend import mx
from mlxlava.config import Recipe
from mlxlava.footage.dataset import Footage
from mlxlava.rollout.live import FrugalPace, LiveLibrary
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import load_weights, save_weights
from mlxlava.training.folder import make_run_folder
from tests.conftest import EAGER

needs_web = pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra `web`")


@pytest.fixture
def run(tiny: Recipe, footage: Footage, tmp_path: Path) -> Path:
    make_run_folder(tmp_path / "run", tiny, footage, [], "", None)
    return tmp_path / "run"


def test_a_rollout_goes_on_from_its_state_with_other_weights(run: Path) -> None:
    weights = load_weights(run)
    rollout = Rollout(weights, 3)
    rollout.roll_states(5)
    before, frame = rollout.states, rollout.draw(rollout.states[:1])
    brighter = {**weights.arrays["generator"], "background": mx.full((16, 16, 3), 9.0)}
    rollout.exchange_weights(
        type(weights)(weights.recipe, 5.0, {**weights.arrays, "generator": brighter}, {})
    )
    assert (rollout.states == before).all()
    assert rollout.draw(rollout.states[:1]).mean() > frame.mean() + 50


def test_a_live_lamp_waits_for_weights_and_takes_new_ones(run: Path, tmp_path: Path) -> None:
    weights = load_weights(run)
    weights.about["steps"] = 1
    library = LiveLibrary(tmp_path / "live", "in training", 0.0)
    source = library.open("in training", 0)
    save_weights(weights, tmp_path / "live")
    playing = source.play(at / 5 for at in range(100))
    _, first = next(playing)
    assert first.shape == (16, 16, 3)
    assert source.caption is not None and source.caption() == "Training step 1"
    weights.arrays["generator"]["background"] = mx.full((16, 16, 3), 9.0)
    weights.about["steps"] = 2
    save_weights(weights, tmp_path / "live")
    later = [frame for _, frame in playing]
    assert len(later) == 99
    assert source.caption() == "Training step 2"
    assert later[-1].mean() > first.mean() + 50


def test_a_live_lamp_that_grows_goes_on_in_its_new_size(run: Path, tmp_path: Path) -> None:
    library = LiveLibrary(tmp_path / "live", "in training", 0.0)
    save_weights(load_weights(run), tmp_path / "live")
    playing = library.open("in training", 0).play(at / 5 for at in range(20))
    assert next(playing)[1].shape == (16, 16, 3)
    save_weights(load_weights("lava"), tmp_path / "live")
    sizes = [frame.shape for _, frame in playing]
    assert sizes[-1] == (256, 128, 3)
    assert len(sizes) >= 17


def test_a_live_lamp_without_weights_ends_when_it_is_told_to(tmp_path: Path) -> None:
    library = LiveLibrary(tmp_path, "in training")
    library.ended.set()
    assert list(library.open("in training", 0).play([0.0, 1.0])) == []


def test_the_pace_falls_while_frames_are_expensive_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, used = 0.0, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: wall)
    monkeypatch.setattr(time, "process_time", lambda: used)
    pace = FrugalPace(2)
    for _ in range(20):
        wall, used = wall + 2.5, used + 2.5 * 0.02 * pace()  # 20 ms a frame
        pace()
    assert pace() == pytest.approx(2.5, rel=0.1)  # 5 % of a core, of two
    for _ in range(20):
        wall, used = wall + 2.5, used + 2.5 * 0.001 * pace()
        pace()
    assert pace() == 12


def start_training(folder: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    settings = ("data.seq_len=6", "data.lamp_minutes=0.1", "generator.widths=[8,6]", "dynamics.hidden=[12]")
    small = (*settings, "discriminator.widths=[6,8]", "discriminator.hidden=[10]", "encoder.widths=[6,8]")
    command = [sys.executable, "-m", "mlxlava", "train", "-o", "run", "--size", "16", "--batch-size", "4"]
    for each in (*small, "encoder.hidden=[10]", "loss.d_start=1", "generator.state_size=8"):
        command += ["--set", each]
    return subprocess.Popen(
        [*command, *options],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **EAGER, **environment},
    )


def read_until(process: subprocess.Popen[str], wanted: str) -> re.Match[str]:
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if found := re.search(wanted, line):
            return found
    raise AssertionError(said)


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


async def first_picture(port: int) -> tuple[str, bytes]:
    """The caption and a picture, as a page gets them."""
    import aiohttp

    address = f"http://127.0.0.1:{port}"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{address}/live", origin=address) as page,
    ):
        await page.send_json({"watching": True})
        caption = ""
        while True:
            message = await page.receive(60)
            if message.type is aiohttp.WSMsgType.TEXT:
                caption = json.loads(message.data)["caption"]
            elif caption:
                return caption, message.data


@needs_web
def test_a_training_can_be_watched_on_a_page_and_ctrl_c_still_saves(tmp_path: Path) -> None:
    process = start_training(tmp_path, "--steps", "100000", "--watch", "web")
    try:
        port = int(read_until(process, r"watch it at http://127\.0\.0\.1:(\d+)/")[1])
        caption, picture = asyncio.run(first_picture(port))
        assert re.fullmatch(r"Training step \d+", caption)
        assert picture[:4] == b"RIFF"
        asyncio.run(first_picture(port))  # the page was closed, and is opened again
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        read_until(process, "mlxlava train --resume -o run")
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()

    def is_gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0

    wait_until(is_gone)


@needs_web
def test_a_viewer_that_fails_does_not_end_the_training(tmp_path: Path) -> None:
    from mlxlava.api.watching import Viewer

    with Viewer("web") as viewer:
        assert viewer._process is not None
        os.kill(viewer._process.pid, signal.SIGKILL)
        viewer._process.wait(10)
        viewer.on_state(tmp_path, 1, {})  # says that it failed, and reads nothing
        viewer.on_state(tmp_path, 2, {})


def test_without_a_display_one_line_says_so_before_anything_is_prepared(tmp_path: Path) -> None:
    none = dict.fromkeys(("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"), "")
    none["SSH_CONNECTION"] = "from here"  # which tells on macOS
    process = start_training(tmp_path, "--watch", "window", **none)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said == "mlxlava: train: --watch window, but there is no display; try --watch web\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    None in (which("Xvfb"), which("xdotool"), find_spec("pygame")), reason="needs Xvfb, xdotool and pygame"
)
def test_closing_the_window_does_not_end_the_training(tmp_path: Path) -> None:
    from tests.playback.screens.test_window import until, x_server

    with x_server() as display:

        def xdotool(*words: str) -> str:
            environment = {**os.environ, "DISPLAY": display}
            return subprocess.run(["xdotool", *words], capture_output=True, text=True, env=environment).stdout

        process = start_training(tmp_path, "--steps", "100000", "--watch", "window", DISPLAY=display)
        try:
            read_until(process, "watch it in the window")
            number = until(lambda: xdotool("search", "--onlyvisible", "--class", ".")).split()[-1]
            title = "mlxlava - in training 0 - Training step "
            until(lambda: xdotool("getwindowname", number).startswith(title))
            xdotool("windowfocus", "--sync", number)
            xdotool("key", "q")
            read_until(process, "window: it was closed; the training continues")
            process.send_signal(signal.SIGINT)
            read_until(process, "mlxlava train --resume -o run")
        finally:
            process.kill()
            process.communicate()


@pytest.mark.skipif(sys.platform != "linux" or find_spec("pygame") is None, reason="a display that is gone")
def test_a_display_that_cannot_be_opened_is_one_line_too(tmp_path: Path) -> None:
    process = start_training(tmp_path, "--watch", "window", DISPLAY=":77", SDL_VIDEODRIVER="")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.fullmatch(r"mlxlava: train: --watch window: no display can be opened .*\n", said), said


@needs_web
def test_ports_that_are_all_in_use_are_one_line(tmp_path: Path) -> None:
    held = []
    for port in range(8765, 8785):
        taken = socket.socket()
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.append(taken)
        try:
            taken.bind(("127.0.0.1", port))
            taken.listen()
        except OSError:
            continue  # somebody else's, which is as good
    try:
        process = start_training(tmp_path, "--watch", "web")
        _, said = process.communicate(timeout=60)
    finally:
        for each in held:
            each.close()
    assert process.returncode == 2
    begins = "mlxlava: train: --watch web: cannot listen on 127.0.0.1:8784: Address already in use"
    assert said.startswith(begins) and said.count("\n") == 1 and "--port" not in said
