"""A lamp as one web page: what is in the file, and what Chromium makes of it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import itertools
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("aiohttp", reason="needs the extra `web`, for the browser")

import mlxlava
from mlxlava.backend import arrays_by_name
from mlxlava.config import Recipe, override
from mlxlava.errors import UserError
from mlxlava.exporting.portable import make_portable
from mlxlava.exporting.web_page import make_page, pack_numbers, write_page
from mlxlava.normality import pooled_moments
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import load_weights
from tests.exporting.lamps import fresh_weights, grown_weights
from tests.playback.screens.chromium import CHROMIUM, Browser, Tab, assert_controls_fit, chromium

pytestmark = pytest.mark.device

LEVELS = 2  # of 255, by which a frame in a browser may differ
MADE = 30.0  # seconds a page may take to begin on a busy machine


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of the shipped lamps."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("lava", "lava-64"):
        mlxlava.export(name, web=folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in ("lava", "lava-64")}


# --- the file ---


def test_the_page_is_one_file_that_may_fetch_nothing(pages: dict[str, Path]) -> None:
    text = pages["lava-64"].read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    allowed = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    assert allowed.pop("default-src") == "'none'" and allowed.pop("img-src") == "data:"
    assert allowed.pop("base-uri") == allowed.pop("form-action") == "'none'"
    scripts = [
        body
        for kind, body in re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
        if "text" not in kind
    ]
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digests = [
        [f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in texts]
        for texts in (scripts, styles)
    ]
    assert allowed.pop("script-src").split() == [*digests[0], "'wasm-unsafe-eval'"]
    assert allowed.pop("style-src").split() == digests[1]
    assert not allowed
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.findall(r'\b(?:src|href)="(?!data:)', text)
    assert len(text) < 5.5e6 and "SPDX-License-Identifier: MIT" in text[:200]


def test_numbers_of_the_state_step_lose_nothing(tiny: Recipe) -> None:
    weights = fresh_weights(tiny)
    about, data = pack_numbers(make_portable(weights))
    arrays = arrays_by_name(weights.arrays)
    for name, entry in about["arrays"].items():
        found = np.frombuffer(data, entry["type"], int(np.prod(entry["shape"])), entry["offset"])
        if match := re.fullmatch(r"(\d)\.(.*)", name):
            assert np.array_equal(found, np.array(arrays[f"dynamics.coupling{match[1]}.{match[2]}"]).ravel())
        elif not name.startswith("change"):
            expected = np.array(arrays[f"generator.{name}"]).ravel()
            assert entry["type"] == "float16" and np.allclose(found, expected, rtol=1e-3, atol=1e-6)
    # What is float16 already takes no more room than that.
    about, _ = pack_numbers(make_portable(load_weights("lava-64")))
    halves = {name for name, entry in about["arrays"].items() if entry["type"] == "float16"}
    assert about["arrays"].keys() - halves == {f"change{n}" for n in range(5)}


def test_what_is_there_is_replaced_only_if_it_is_a_page(tiny: Recipe, tmp_path: Path) -> None:
    lamp = make_portable(fresh_weights(tiny))
    (tmp_path / "folder.html").mkdir()
    for file in (tmp_path / "folder.html", tmp_path / "notes.html"):
        (tmp_path / "notes.html").write_text("<!doctype html>mine")
        with pytest.raises(UserError, match="not the page of a lamp"):
            write_page(lamp, file, "tiny")
    assert (tmp_path / "notes.html").read_text() == "<!doctype html>mine"
    for name in ("one", "two"):
        write_page(lamp, tmp_path / "lamp.html", name)
    assert "<title>Lava lamp two</title>" in (tmp_path / "lamp.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="cannot write"):
        write_page(lamp, tmp_path / "nowhere/lamp.html", "tiny")
    for name in ("lamp", "lamp.txt", ""):
        with pytest.raises(UserError, match=r"ends in \.html"):
            write_page(lamp, tmp_path / name, "tiny")
    assert not (tmp_path / "lamp").exists()


# --- in a browser ---

BrowserTest = Callable[..., Awaitable[None]]


def browsed(webgl: bool = False) -> Callable[[BrowserTest], Callable[[dict[str, Path], Path], None]]:
    """A test in a real Chromium; slow. It gets the browser, the pages and a folder of its own."""

    def decorate(test: BrowserTest) -> Callable[[dict[str, Path], Path], None]:
        async def browse(pages: dict[str, Path], folder: Path) -> None:
            async with chromium(webgl=webgl) as browser:
                await test(browser, pages, folder)

        def run(pages: dict[str, Path], tmp_path: Path) -> None:
            asyncio.run(asyncio.wait_for(browse(pages, tmp_path), 400))

        run.__name__ = test.__name__
        return pytest.mark.slow(pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")(run))

    return decorate


def text(name: str) -> str:
    """JavaScript for the text of an element."""
    return f"document.getElementById('{name}').textContent.trim()"


async def opened(browser: Browser, page: Path, settings: str = "", **options: Any) -> Tab:
    """A page that has begun to play."""
    tab = await browser.open(f"{page.as_uri()}#{settings}", **options)
    await tab.until(f"{text('count')} !== '' || {text('note')} !== ''", MADE)
    return tab


async def frames(tab: Tab, how: str, seed: int, times: list[float], *, half: bool = False) -> np.ndarray:
    """Frames that the page draws, (N, H, W, 3); ``half`` for pictures of half the size."""
    drawn = await tab.run(
        f"""(async () => {{
          const drawer = await mlxlava.openDrawer({json.dumps(how)}, {json.dumps(half)});
          const rollout = mlxlava.rollout({seed});
          return {json.dumps(times)}.map((at) => {{
            drawer.draw(rollout.stateAt(at));
            return Array.from(drawer.read());
          }});
        }})()"""
    )
    height, width = await tab.run("mlxlava.about.size")
    pixels = np.array(drawn).reshape(len(times), height // (1 + half), width // (1 + half), 4)
    assert (pixels[..., 3] == 255).all()
    return pixels[..., :3]


@browsed(webgl=True)
async def test_frames_are_those_that_mlxlava_draws(
    browser: Browser, pages: dict[str, Path], folder: Path
) -> None:
    for name, page in pages.items():
        lamp = mlxlava.load(name)
        tab = await opened(browser, page, "draw=wasm")
        # Frames between learned steps; and the last seed, for a minute.
        for fps, seed, count in ((7.0, 3, 6), (0.05, 2**31 - 1, 4)):
            expected = np.array(list(itertools.islice(lamp.frames(fps=fps, seed=seed), count))).astype(int)
            assert np.abs(np.diff(expected, axis=0)).max() > 10
            for how in ("wasm", "webgl"):
                found = await frames(tab, how, seed, [n / fps for n in range(count)])
                assert np.abs(found - expected).max() <= LEVELS, (name, how, seed)
        assert tab.complaints == []


@browsed(webgl=True)
async def test_lamps_of_every_shape_are_drawn(browser: Browser, pages: dict[str, Path], folder: Path) -> None:
    tiny = fresh_recipe()
    shapes: tuple[tuple[dict[str, object], list[int]], ...] = (
        ({"data.size": [32, 16], "generator.background": False}, []),
        ({"dynamics.rho": 1.0, "generator.widths": [12, 5, 9], "generator.state_size": 12}, []),
        ({"dynamics.learn_rho": True, "dynamics.rho": 0.98, "dynamics.hidden": [9, 7]}, []),
        # Lamps that have grown.
        ({"data.size": [48, 32], "generator.widths": [8]}, [6, 9]),
        ({"data.size": [32, 16], "generator.background": False}, [12]),
    )
    for number, (changes, upsampler) in enumerate(shapes):
        recipe = override(tiny, changes)
        weights = grown_weights(recipe, upsampler) if upsampler else fresh_weights(recipe)
        page = folder / f"{number}.html"
        page.write_text(make_page(make_portable(weights), "</script><b>&"), encoding="utf-8")
        tab = await opened(browser, page, "draw=wasm")
        assert await tab.run("document.title") == "Lava lamp </script><b>&"
        times = [0.0, 0.31, 2.0, 9.9]
        expected = np.array([frame for _, frame in Rollout(weights, 5).play(times)]).astype(int)
        for how in ("wasm", "webgl"):
            assert np.abs(await frames(tab, how, 5, times) - expected).max() <= LEVELS, (changes, how)
        assert tab.complaints == []


@browsed(webgl=True)
async def test_a_slow_machine_gets_a_smaller_picture_and_is_told(
    browser: Browser, pages: dict[str, Path], folder: Path
) -> None:
    tab = await opened(browser, pages["lava"], "draw=wasm")
    times = [0.0, 1.1, 7.0]
    whole = np.array([frame for _, frame in Rollout(load_weights("lava"), 5).play(times)]).astype(float)
    halved = whole.reshape(3, 128, 2, 64, 2, 3).mean((2, 4))
    for how in ("wasm", "webgl"):
        found = await frames(tab, how, 5, times, half=True)
        assert np.abs(found - halved).mean() < 1
    await tab.call("Emulation.setCPUThrottlingRate", rate=60)
    await tab.until(f"{text('count')}.endsWith('at half size')", 100)
    assert "half its size" in await tab.run(text("note"))
    await tab.call("Emulation.setCPUThrottlingRate", rate=1)
    await tab.until(f"{text('note')} === ''", 60)
    assert tab.complaints == []
    tab = await opened(browser, pages["lava"], "draw=wasm&half=1")
    assert (await tab.run(text("count"))).endswith("at half size")
    # A wallpaper has no texts.
    tab = await opened(browser, pages["lava"], "draw=wasm&controls=0")
    await tab.call("Emulation.setCPUThrottlingRate", rate=60)
    await tab.until(f"{text('count')}.endsWith('at half size')", 100)
    assert await tab.run(text("note")) == ""


def fresh_recipe() -> Recipe:
    """A small recipe."""
    changes = {
        "data.size": [16, 16],
        "generator.state_size": 8,
        "generator.widths": [8, 6],
        "dynamics.hidden": [12],
    }
    return override(load_weights("lava-64").recipe, changes)


@browsed()
async def test_ten_thousand_steps_keep_the_moments(
    browser: Browser, pages: dict[str, Path], folder: Path
) -> None:
    tab = await opened(browser, pages["lava-64"])
    # Eight lamps, since the length of one lamp's state hardly changes in that time.
    numbers: list[float] = []
    for seed in range(8):
        numbers += await tab.run(
            f"""(() => {{
              const rollout = mlxlava.rollout({seed});
              for (let step = 0; step < 10000; step += 1) rollout.takeStep();
              return Array.from(rollout.state);
            }})()"""
        )
    mean, deviation, skewness, kurtosis = pooled_moments(np.array(numbers))
    # Three deviations of 512 normal numbers.
    assert abs(mean) < 0.14 and abs(deviation - 1) < 0.1 and abs(skewness) < 0.33 and abs(kurtosis - 3) < 0.65
    # Without noise a step only rotates, so the length stays: the bases have lost nothing.
    lengths = await tab.run(
        """(() => {
          const { dynamics, state } = mlxlava.rollout(0);
          dynamics.noiseAngle = null;
          let now = state;
          for (let step = 0; step < 10000; step += 1) now = dynamics.advance(now, null, 1);
          return [Math.hypot(...state), Math.hypot(...now)];
        })()"""
    )
    assert lengths[1] == pytest.approx(lengths[0], rel=2e-3)


@browsed()
async def test_it_plays_at_its_pace_and_does_what_it_is_asked(
    browser: Browser, pages: dict[str, Path], folder: Path
) -> None:
    tab = await opened(browser, pages["lava-64"], "seed=7&speed=2")
    label = "document.getElementById('lamp').getAttribute('aria-label')"
    await tab.until(f"{label} === 'Lava lamp lava-64, seed 7, playing'")
    assert await tab.run(text("speed-word")) == "2×"
    assert "drawn by WebAssembly" in await tab.run(text("count"))

    await tab.press(" ")
    await tab.until(f"{text('play-word')} === 'Play'")
    before = await tab.run(text("count"))
    await asyncio.sleep(1)
    assert await tab.run(text("count")) == before
    await tab.press("n")  # also in a pause
    await tab.until(f"{label} === 'Lava lamp lava-64, seed 8, paused'")
    await tab.until(f"{text('count')}.startsWith('Frame 1 at 0:00')")
    await tab.click("#play")
    await tab.press("0")
    await tab.until(f"{text('speed-word')} === '1×'")
    await tab.press("+")
    await tab.until(f"{text('speed-word')} === '1.3×'")
    await tab.run("document.getElementById('seed').select()")
    await tab.press("9")
    await tab.press("Enter", windowsVirtualKeyCode=13, text="\r")
    await tab.until(f"{label} === 'Lava lamp lava-64, seed 9, playing'")
    await tab.run("document.activeElement.blur()")
    await tab.press("h")
    await tab.until("document.getElementById('help').open")
    assert "another lamp" not in await tab.run("document.getElementById('help').innerText")
    await tab.press("h")
    await tab.click("#full")
    await tab.until("document.fullscreenElement !== null")
    await tab.press("f")
    await tab.until("document.fullscreenElement === null")

    await tab.run("location.hash = '#seed=12&speed=nonsense&controls=0'")
    await tab.until(f"{label} === 'Lava lamp lava-64, seed 12, playing'")
    assert await tab.run("getComputedStyle(document.getElementById('controls')).display") == "none"
    await tab.run("location.hash = '#seed=-1'")
    await tab.until("getComputedStyle(document.getElementById('controls')).display !== 'none'")
    assert await tab.run(label) == "Lava lamp lava-64, seed 12, playing"
    opacity = "getComputedStyle(document.getElementById('controls')).opacity"
    await tab.until(f"{opacity} === '0'")
    assert tab.complaints == []


@browsed()
async def test_nothing_outside_can_be_reached(browser: Browser, pages: dict[str, Path], folder: Path) -> None:
    (folder / "secret.txt").write_text("x")
    tab = await opened(browser, pages["lava-64"])
    assert tab.complaints == []
    for script in ("fetch('data:,x')", f"fetch({json.dumps((folder / 'secret.txt').as_uri())})"):
        assert await tab.run(f"{script}.then(() => 'reached', () => 'refused')") == "refused"
    # The DevTools protocol itself may evaluate text, the page may not.
    assert await tab.run(
        """(() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = 1";
          document.body.append(script);
          return window.ran === undefined;
        })()"""
    )


@browsed()
async def test_who_wants_no_motion_gets_none_until_they_press_play(
    browser: Browser, pages: dict[str, Path], folder: Path
) -> None:
    tab = await opened(browser, pages["lava-64"], still=True)
    assert await tab.run(text("play-word")) == "Play"
    count = await tab.run(text("count"))
    await asyncio.sleep(1)
    assert await tab.run(text("count")) == count
    await tab.until(f"{text('count')} !== '{count}'")  # another still, five seconds later
    assert "Frame 2 at 0:05" in await tab.run(text("count"))
    await tab.press(" ")
    await tab.until(f"{text('play-word')} === 'Pause'")
    await tab.until(f"Number({text('count')}.split(' ')[1]) > 5")


@browsed()
async def test_it_rests_while_nobody_sees_it_and_keeps_the_screen_on_otherwise(
    browser: Browser, pages: dict[str, Path], folder: Path
) -> None:
    counting = """
      window.locks = 0;
      navigator.wakeLock.request = async () => {
        const lock = new EventTarget();
        locks += 1;
        lock.release = async () => { locks -= 1; lock.dispatchEvent(new Event("release")); };
        return lock;
      };"""
    tab = await opened(browser, pages["lava-64"], before=counting)
    await tab.until("locks === 1")
    await tab.press(" ")
    await tab.until("locks === 0")
    await tab.press(" ")
    await tab.until("locks === 1")
    window = (await tab.call("Browser.getWindowForTarget"))["windowId"]
    await tab.call("Browser.setWindowBounds", windowId=window, bounds={"windowState": "minimized"})
    await tab.until("document.hidden")
    before = await tab.run(text("count"))
    await asyncio.sleep(2.5)
    assert await tab.run(text("count")) == before
    await tab.call("Browser.setWindowBounds", windowId=window, bounds={"windowState": "normal"})
    await tab.until(f"{text('count')} !== {json.dumps(before)}")
    # The time that it was hidden does not count.
    played = int(re.findall(r"at 0:(\d\d)", await tab.run(text("count")))[0])
    assert played - int(re.findall(r"at 0:(\d\d)", before)[0]) <= 2


@browsed()
async def test_a_browser_that_cannot_draw_says_so(
    browser: Browser, pages: dict[str, Path], folder: Path
) -> None:
    no_webgl = """
      const getContext = HTMLCanvasElement.prototype.getContext;
      HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
        return kind === "webgl2" ? null : getContext.call(this, kind, ...more);
      };"""
    no_simd = "WebAssembly.instantiate = async () => { throw new WebAssembly.CompileError('no SIMD'); };"
    tab = await opened(browser, pages["lava-64"], before=no_webgl)
    assert "drawn by WebAssembly" in await tab.run(text("count"))
    tab = await opened(browser, pages["lava-64"], before=no_webgl + no_simd)
    said = await tab.run(text("note"))
    assert "neither WebGL 2 nor WebAssembly with SIMD" in said and said.count(".") == 1
    tab = await opened(browser, pages["lava-64"], before="delete globalThis.BigInt;")
    assert "BigInt" in await tab.run(text("note"))


@browsed()
async def test_a_page_that_was_cut_off_says_so(
    browser: Browser, pages: dict[str, Path], folder: Path
) -> None:
    whole = pages["lava-64"].read_bytes()
    script = whole.index(b'<script type="module">')
    for length in (40_000, len(whole) // 2, script + 30, script + 30_000, whole.index(b'<i id="end"')):
        page = folder / f"{length}.html"
        page.write_bytes(whole[:length])
        tab = await opened(browser, page)
        said = await tab.run(text("note"))
        assert "cut off" in said and said.count(".") == 1, (length, said)
    page = folder / "damaged.html"
    page.write_bytes(whole[: script - 1000] + whole[script - 600 :])
    tab = await opened(browser, page)
    assert "damaged" in await tab.run(text("note"))


@browsed()
async def test_it_fits_a_phone_and_the_surround_continues_the_edge(
    browser: Browser, pages: dict[str, Path], folder: Path
) -> None:
    tab = await opened(browser, pages["lava"], "half=0")  # on a slow machine a note would lie on the picture
    for width, height in ((360, 640), (740, 360), (320, 480)):
        await tab.run("location.hash = '#half=0'")
        await tab.resize(width, height, phone=True)
        await tab.until(f"innerWidth === {width}")
        await assert_controls_fit(tab, width, height, 6)
    await tab.run("location.hash = '#half=0&controls=0'")
    await tab.resize(900, 400)
    await tab.until("innerWidth === 900")
    await asyncio.sleep(1)
    seen = await pixels(tab)
    # The lamp is 200 wide, and stands in the middle.
    for beside, edge in ((50, 351), (345, 351), (555, 548), (850, 548)):
        assert np.abs(seen[:, beside] - seen[:, edge]).max() <= 6
    assert seen[:, 350:550].max() > 150


async def pixels(tab: Tab) -> np.ndarray:
    """The page as it is seen, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(await tab.picture())).convert("RGB")).astype(int)
