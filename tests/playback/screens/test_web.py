"""The web page: what its server lets in, what viewers get, and what Chromium makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from mlxlava.errors import UserError
from mlxlava.playback import keys, player
from mlxlava.playback.clock import WallClock
from mlxlava.playback.options import PlaybackOptions
from mlxlava.playback.session import FrameSource, Session
from mlxlava.playback.writers import Frame

pytest.importorskip("aiohttp", reason="needs the extra `web`")

import aiohttp

from mlxlava.playback.screens import web, web_limits
from mlxlava.playback.screens.web import WebPage, encode_picture
from mlxlava.playback.screens.web_address import DEFAULT_HOST, DEFAULT_PORTS
from tests.playback.screens.chromium import CHROMIUM, Browser, Tab, assert_controls_fit, chromium

ROOT = Path(__file__).parents[3]


class Shades:
    """Lamps that are all of one colour, which tells their name, their seed and how far they are."""

    names: Sequence[str] = ["a", "b"]

    def open(self, name: str, seed: int) -> FrameSource:
        def play(times: Iterable[float]) -> Iterator[tuple[float, Frame]]:
            for number, at in enumerate(times):
                colour = (100 * self.names.index(name), seed % 256, number % 256)
                yield at, np.full((16, 16, 3), colour, np.uint8)

        return FrameSource(play, (16, 16), lambda: (0.0, 1.0, float("nan"), 3.0))


@contextlib.contextmanager
def playing(host: str = DEFAULT_HOST) -> Iterator[tuple[Session, WebPage]]:
    """A lamp that plays on a page of its own, at any free port."""
    session = Session(Shades(), "a", 1, WallClock(30))
    with WebPage(session, host, 0) as page:
        session.clock.sleep = lambda seconds: page.wait_and_react(min(seconds, 0.02))  # to end soon
        thread = threading.Thread(target=player.show_until_end, args=(session, page, 30))
        thread.start()
        try:
            yield session, page
        finally:
            session.end()
            thread.join()


@contextlib.asynccontextmanager
async def watching(page: WebPage, **options: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A viewer of the page; as a browser it says where it comes from."""
    headers = {"Origin": page.url.rstrip("/")}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{page.url}live", headers=headers, **options) as viewer,
    ):
        yield viewer


async def pictures(viewer: aiohttp.ClientWebSocketResponse, count: int, *, drawn: bool = True) -> list[bytes]:
    """The next pictures that a viewer gets."""
    found: list[bytes] = []
    while len(found) < count:
        message = await viewer.receive(10)
        if message.type is aiohttp.WSMsgType.BINARY:
            found.append(message.data)
            if drawn:
                await viewer.send_json({"drawn": 2**31})  # more than were sent is as many as were sent
    return found


async def status(viewer: aiohttp.ClientWebSocketResponse, **wanted: Any) -> dict[str, Any]:
    """The next status that has these values."""
    while True:
        message = await viewer.receive(10)
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
        if message.type is aiohttp.WSMsgType.TEXT:
            said: dict[str, Any] = json.loads(message.data)
            if all(said[key] == value for key, value in wanted.items()):
                return said
        else:
            await viewer.send_json({"drawn": 2**31})


def colour_of(picture: bytes) -> list[int]:
    return [int(value) for value in np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))[0, 0]]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- pictures ---


@pytest.mark.parametrize(("side", "kind"), [(64, "WEBP"), (256, "JPEG")])
def test_a_small_picture_is_lossless_and_a_large_one_close(side: int, kind: str) -> None:
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    frame = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(90)), axis=-1)
    picture = Image.open(io.BytesIO(encode_picture(frame)))
    assert picture.format == kind
    error = np.abs(np.asarray(picture.convert("RGB")).astype(int) - frame).max()
    assert error == 0 if kind == "WEBP" else error < 8


# --- what is let in ---


def answer(page: WebPage, path: str = "/", **headers: str) -> tuple[int, str]:
    """Status and head of what the server answers to such a request."""
    address = urlsplit(page.url)
    with contextlib.closing(http.client.HTTPConnection(address.netloc, timeout=10)) as line:
        line.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": address.netloc, **headers}.items():
            if value:
                line.putheader(name.replace("_", "-"), value)
        line.endheaders()
        said = line.getresponse()
        return said.status, str(said.headers)


def test_it_answers_to_its_own_names_only() -> None:
    with playing() as (_, page):
        port = urlsplit(page.url).port
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"):
            assert answer(page, Host=host)[0] == 200, host
        foreign = [f"lamp.example:{port}", f"127.0.0.1.example:{port}", "127.0.0.1", "127.0.0.1:80"]
        foreign += [f"192.168.1.5:{port}", f"a@127.0.0.1:{port}", f"localhost.:{port}", f":{port}", ""]
        for host in foreign:
            for path in ("/", "/lamp.js", "/live", "/nothing"):
                assert answer(page, path, Host=host)[0] in (400, 403), (host, path)


def test_a_page_of_another_site_gets_nothing() -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    with playing() as (_, page):
        own = page.url.rstrip("/")
        port = urlsplit(page.url).port
        foreign = ["http://lamp.example", f"http://localhost:{port}", own.replace("http", "https"), "null"]
        foreign += [f"{own}.example", "http://127.0.0.1"]
        for origin in foreign:
            assert answer(page, "/live", Origin=origin, **upgrade)[0] == 403, origin
            assert answer(page, "/lamp.js", Origin=origin)[0] == 403, origin
        assert answer(page, "/live", **upgrade)[0] == 403  # every browser says where it comes from
        assert answer(page, "/lamp.js", Origin=own)[0] == 200
        assert answer(page, "/live", Origin=own)[0] == 400  # no WebSocket


def test_nothing_from_outside_and_nobody_else_may_show_it() -> None:
    with playing() as (_, page):
        there = ("/", "/lamp.css", "/lamp.js", "/stage.js", "/keys.js", "/lamp.svg")
        for path in (*there, "/nothing", "/../web.py", "/page/lamp.js"):
            code, head = answer(page, path)
            assert code == (200 if path in there else 404)
            assert "default-src 'self'" in head and "frame-ancestors 'none'" in head
            assert "X-Content-Type-Options: nosniff" in head
            assert "access-control" not in head.lower()
    for file in (ROOT / "src/mlxlava/playback/screens/page").iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", ""), f"{file} names an address"


def test_the_page_is_told_its_keys() -> None:
    with playing() as (_, page), urllib.request.urlopen(f"{page.url}keys.js") as answered:
        assert answered.headers["Content-Type"].startswith("text/javascript")
        lines = answered.read().decode().splitlines()
    values = [json.loads(line.partition(" = ")[2].rstrip(";")) for line in lines]
    assert values == [keys.actions_by_key(keys.WEB), [list(row) for row in keys.help_rows(keys.WEB)]]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_opened_up_it_says_what_that_means(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    if host == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6")
    with playing(host) as (_, page):
        url, warning = capsys.readouterr().err.splitlines()
        assert page.url in url
        assert f"--host {host}" in warning and "control" in warning and "nothing is encrypted" in warning
        port = urlsplit(page.url).port
        page.url = f"http://127.0.0.1:{port}/"
        for name in ("127.0.0.1", "localhost", "192.168.1.5", "[fe80::1]", socket.gethostname()):
            assert answer(page, Host=f"{name}:{port}")[0] == 200, name
        assert answer(page, Host=f"lamp.example:{port}")[0] == 403


def test_on_this_machine_alone_it_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with playing() as (_, page):
        assert page.url.startswith("http://127.0.0.1:")
        assert capsys.readouterr().err == f"play: {page.url} (Ctrl-C ends it)\n"


# --- viewers ---


def viewed(
    test: Callable[[Session, WebPage], Awaitable[None]],
) -> Callable[[], None]:
    """A test that runs beside a lamp that plays."""

    def run() -> None:
        with playing() as (session, page):
            asyncio.run(asyncio.wait_for(test(session, page), 60))

    run.__name__ = test.__name__
    return run


@viewed
async def test_viewers_see_the_same_lamp_move(session: Session, page: WebPage) -> None:
    async with watching(page) as one, watching(page) as two:
        await status(two, viewers=2)
        first, second = await asyncio.gather(pictures(one, 12), pictures(two, 12))
        assert len(set(first)) == len(set(second)) == 12
        assert set(first) & set(second)
        assert {tuple(colour_of(picture)[:2]) for picture in first + second} == {(0, 1)}
        said = await status(one)
        assert (said["name"], said["seed"], said["names"]) == ("a", 1, ["a", "b"])
        assert said["frame"] > 5
        assert (await status(one, viewers=2))["moments"] == [0, 1, None, 3]


@viewed
async def test_the_page_is_told_the_colours_of_the_pictures_edge(session: Session, page: WebPage) -> None:
    async with watching(page) as viewer:
        await pictures(viewer, 1)
        for seed in (1, 9):
            session.choose_lamp(seed=seed)
            while (sides := (await status(viewer, seed=seed))["sides"])[0][0][1] != seed:
                pass
            left, right, top, bottom = sides
            assert left == right == top == bottom and left == 16 * [left[0]]


@viewed
async def test_a_slow_viewer_drops_pictures_and_slows_nobody(session: Session, page: WebPage) -> None:
    async with watching(page) as slow, watching(page) as quick:
        # As many as it gets without drawing any.
        before = await pictures(slow, web.MAX_PICTURES_IN_FLIGHT, drawn=False)
        seen = await pictures(quick, 40)
        assert len(set(seen)) == 40
        await slow.send_json({"drawn": len(before)})
        (latest,) = await pictures(slow, 1)
        behind = (colour_of(latest)[2] - colour_of(before[-1])[2]) % 256
        assert behind > 20  # those between were dropped


@contextlib.contextmanager
def stuck(page: WebPage) -> Iterator[tuple[Callable[[], None], Callable[[], int]]]:
    """A viewer that reads nothing but says that it does.

    Gives what says so once more, and what reads at last, and counts, all bytes until the line's end, which
    must come.
    """
    address = urlsplit(page.url)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect((address.hostname, address.port))
        head = f"GET /live HTTP/1.1\r\nHost: {address.netloc}\r\nOrigin: http://{address.netloc}\r\n"
        head += "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        line.sendall(f"{head}Sec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode())
        assert line.recv(12) == b"HTTP/1.1 101"
        text = b'{"drawn": 1000000}'

        def received() -> int:
            count = 0
            line.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                while read := line.recv(1 << 20):
                    count += len(read)
            return count

        yield lambda: line.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text), received


def test_a_viewer_that_is_stuck_slows_nobody_and_no_ending() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8)  # 50 kB each

    async def watch(page: WebPage, claim: Callable[[], None]) -> None:
        async with watching(page) as quick:
            for number in range(120):
                page.show(noise[number % len(noise)])
                claim()
                assert len(await pictures(quick, 1)) == 1

    with WebPage(Session(Shades(), "a", 1, WallClock(30)), port=0) as page, stuck(page) as (claim, received):
        page.show(noise[-1])
        asyncio.run(asyncio.wait_for(watch(page, claim), 60))
        page.__exit__(None, None, None)
        # Its line was full, so it has missed pictures.
        assert received() < 120 * len(encode_picture(noise[0]))


@viewed
async def test_nobody_who_looks_lets_the_lamp_idle(session: Session, page: WebPage) -> None:
    assert page.hidden
    async with watching(page) as one, watching(page) as two:
        await status(one, viewers=2)
        assert not page.hidden
        await one.send_json({"watching": False})
        await pictures(two, 2)
        assert not page.hidden
        await two.send_json({"watching": False})
        await asyncio.to_thread(until, lambda: page.hidden)
        await one.send_json({"watching": True})
        await pictures(one, 2)
        assert not page.hidden
    await asyncio.to_thread(until, lambda: page.hidden)


@viewed
async def test_viewers_control_it_together(session: Session, page: WebPage) -> None:
    async with watching(page) as one, watching(page) as two:
        await one.send_json({"paused": True})
        assert (await status(two, paused=True))["paused"]
        stands = await status(two, paused=True)
        assert (await status(two))["frame"] - stands["frame"] <= 1
        await two.send_json({"paused": False})
        await status(one, paused=False)
        await one.send_json({"speed": 4})
        await status(two, speed=4)
        assert session.clock.speed == 4
        await one.send_json({"seed": 77})
        await status(two, seed=77)
        while colour_of((await pictures(two, 1))[0])[:2] != [0, 77]:
            pass
        await two.send_json({"name": "b"})
        await status(one, name="b", seed=77)
        while colour_of((await pictures(one, 1))[0])[:2] != [100, 77]:
            pass


@viewed
async def test_another_lamp_shows_itself_even_in_a_pause(session: Session, page: WebPage) -> None:
    async with watching(page) as viewer:
        await viewer.send_json({"paused": True})
        await status(viewer, paused=True)
        await viewer.send_json({"seed": 5})
        while colour_of((await pictures(viewer, 1))[0])[1] != 5:
            pass
        assert session.clock.paused


@viewed
async def test_who_comes_to_a_paused_lamp_sees_it(session: Session, page: WebPage) -> None:
    async with watching(page) as one:
        await pictures(one, 3)
        await one.send_json({"paused": True})
        await status(one, paused=True)
        async with watching(page) as two:
            assert len(await pictures(two, 1)) == 1


@viewed
async def test_what_cannot_be_asked_for_is_ignored(session: Session, page: WebPage) -> None:
    before = (session.lamp_name, session.seed, session.clock.speed, session.clock.paused)
    async with watching(page) as viewer:
        for asked in (
            {"name": "../weights"},
            {"name": "c"},
            {"name": ["a"]},
            {"seed": -1},
            {"seed": 2**31},
            {"seed": 1.5},
            {"seed": "2"},
            {"speed": 0},
            {"speed": -1},
            {"speed": 1e9},
            {"speed": 10**500},
            {"speed": float("nan")},
            {"paused": 1},
            {"watching": None},
            {"drawn": -5},
            {"drawn": "x"},
            {"end": True},
            {},
        ):
            await viewer.send_str(json.dumps(asked))
        await viewer.send_json({"paused": False})
        await pictures(viewer, 3)
        assert (session.lamp_name, session.seed, session.clock.speed, session.clock.paused) == before


@pytest.mark.parametrize(
    ("message", "code"),
    [("no JSON", 1008), ("[1]", 1008), ("[" * 1000, 1008), (b"{}", 1008), ('{"a": "' + "a" * 2000, 1009)],
)
def test_what_is_no_request_closes_the_line(message: str | bytes, code: int) -> None:
    async def talk(page: WebPage) -> None:
        async with watching(page) as viewer:
            await (viewer.send_str(message) if isinstance(message, str) else viewer.send_bytes(message))
            while not viewer.closed:
                await viewer.receive(10)
            assert viewer.close_code == code
        async with watching(page) as viewer:
            assert len(await pictures(viewer, 2)) == 2

    with playing() as (_, page):
        asyncio.run(talk(page))


def test_there_is_a_limit_to_viewers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_limits, "MAX_VIEWERS", 2)

    async def crowd(page: WebPage) -> None:
        async with watching(page) as one, watching(page):
            async with watching(page) as third:
                assert (await third.receive(10)).type is aiohttp.WSMsgType.CLOSE
                assert third.close_code == aiohttp.WSCloseCode.TRY_AGAIN_LATER
            await pictures(one, 2)

    with playing() as (_, page):
        asyncio.run(crowd(page))


def test_the_end_is_told_to_viewers() -> None:
    async def stay(page: WebPage) -> None:
        async with watching(page) as viewer:
            assert len(await pictures(viewer, 1)) == 1
            closing = asyncio.create_task(asyncio.to_thread(page.__exit__, None, None, None))
            while not viewer.closed:
                await viewer.receive(10)
            assert viewer.close_code == aiohttp.WSCloseCode.GOING_AWAY
            await closing

    with WebPage(Session(Shades(), "a", 1, WallClock(30)), port=0) as page:
        page.show(np.zeros((16, 16, 3), np.uint8))
        asyncio.run(stay(page))


# --- the command ---


def test_a_port_in_use_is_one_line_or_the_next_one() -> None:
    session = Session(Shades(), "a", 1, WallClock(30))
    with WebPage(session, port=0) as page:
        port = urlsplit(page.url).port
        with pytest.raises(UserError, match=f"127.0.0.1:{port}.*--port"), WebPage(session, port=port):
            pass
        with WebPage(session) as one, WebPage(session) as two:
            ports = urlsplit(one.url).port, urlsplit(two.url).port
            assert ports[0] != ports[1]
            assert all(number in DEFAULT_PORTS for number in ports)
    with pytest.raises(UserError, match="--host"), WebPage(session, "no.such.host.invalid"):
        pass


def test_without_its_extra_one_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "mlxlava.playback.screens.web")
    with pytest.raises(UserError, match=r"aiohttp is missing.*mlxlava\[web\]"):
        player.open_screen(PlaybackOptions(screen="web"), Session(Shades(), "a", 1, WallClock(30)))


@pytest.mark.parametrize(
    "options", [PlaybackOptions(host="0.0.0.0"), PlaybackOptions(port=80, screen="terminal")]
)
def test_host_and_port_belong_to_the_page(options: PlaybackOptions) -> None:
    with pytest.raises(UserError, match="--screen web"):
        options.resolve()


def test_the_page_needs_no_terminal_and_plays_until_it_is_ended() -> None:
    options = PlaybackOptions(screen="web").resolve()
    assert (options.screen, options.target, options.is_endless) == ("web", None, True)


@contextlib.contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`mlxlava lamp --screen web` as a process, and the page's address."""
    call = [sys.executable, "-m", "mlxlava", "lamp", "--size", "32", "--screen", "web", *arguments]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield process, next((word for word in process.stderr.readline().split() if "://" in word), "")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well_while_somebody_looks(number: signal.Signals) -> None:
    async def look(process: subprocess.Popen[str], url: str) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{url}live", headers={"Origin": url.rstrip("/")}) as viewer,
        ):
            await pictures(viewer, 3)
            process.send_signal(number)
            while not viewer.closed:
                await viewer.receive(20)
            assert viewer.close_code == aiohttp.WSCloseCode.GOING_AWAY

    with command("--port", "0") as (process, url):
        asyncio.run(look(process, url))
        assert process.wait(20) == 0
        assert process.stderr is not None and process.stderr.read() == ""


def test_a_port_in_use_ends_the_command_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        call = [sys.executable, "-m", "mlxlava", "lamp", "--size", "32", "--screen", "web", "--port"]
        ended = subprocess.run(
            [*call, str(taken.getsockname()[1])], stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1 and "--port" in ended.stderr


# --- in a browser ---


def browsed(test: Callable[[Browser], Awaitable[None]]) -> Callable[[], None]:
    """A test in a real Chromium; slow."""

    async def browse() -> None:
        async with chromium() as browser:
            await test(browser)

    def run() -> None:
        asyncio.run(asyncio.wait_for(browse(), 180))

    run.__name__ = test.__name__
    return pytest.mark.slow(pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")(run))


# A number that tells pictures apart.
PIXELS = """(() => {
  const lamp = document.getElementById("lamp");
  const data = lamp.getContext("2d").getImageData(0, 0, lamp.width, lamp.height).data;
  let sum = 0;
  for (let index = 0; index < data.length; index += 1) sum = (31 * sum + data[index]) % 1000003;
  return sum;
})()"""


def text(name: str) -> str:
    """JavaScript for the text of an element."""
    return f"document.getElementById('{name}').textContent.trim()"


async def moves(tab: Tab) -> None:
    before = await tab.run(PIXELS)
    await tab.until(f"{PIXELS} !== {before}")


async def stands(tab: Tab) -> None:
    await asyncio.sleep(0.3)  # what was under way has come
    before = await tab.run(PIXELS)
    await asyncio.sleep(1)
    assert await tab.run(PIXELS) == before


async def frame(tab: Tab) -> int:
    """The number of the frame, as the page says it."""
    return int((await tab.until(text("count"))).split()[1].replace(",", ""))


@browsed
async def test_the_page_plays_and_its_controls_work(browser: Browser) -> None:
    with command("--port", "0") as (_, url):
        tab = await browser.open(url)
        await tab.until(text("count"))
        await moves(tab)

        await tab.click("#play")
        await tab.until(f"{text('play-word')} === 'Play'")
        await stands(tab)
        await tab.press(" ")
        await tab.until(f"{text('play-word')} === 'Pause'")
        await moves(tab)

        await tab.press("+")
        await tab.until(f"{text('speed-word')} === '1.3×'")
        await tab.press("-")
        await tab.until(f"{text('speed-word')} === '1×'")
        await tab.run("document.getElementById('speed').focus()")
        for _ in range(3):
            await tab.press("ArrowRight", windowsVirtualKeyCode=39)
        await tab.until(f"{text('speed-word')} === '2×'")
        await tab.run("document.activeElement.blur()")
        await tab.press("0")
        await tab.until(f"{text('speed-word')} === '1×'")
        await tab.press("_")
        await tab.until(f"{text('speed-word')} === '0.79×'")
        await tab.press("Backspace", windowsVirtualKeyCode=8)
        await tab.until(f"{text('speed-word')} === '1×'")

        await tab.press("n")
        await tab.until("document.getElementById('seed').value === '1'")
        await tab.run("document.getElementById('seed').select()")
        await tab.press("7")
        await tab.press("Enter", windowsVirtualKeyCode=13, text="\r")
        label = "document.getElementById('lamp').getAttribute('aria-label')"
        await tab.until(f"{label} === 'Lava lamp classic, seed 7, playing'")
        assert await frame(tab) < 60  # from its beginning

        choices = await tab.run("[...document.getElementById('name').options].map((one) => one.value)")
        assert choices[0] == "classic" and len(choices) > 1
        await tab.run("document.getElementById('name').focus()")
        await tab.press("ArrowDown", windowsVirtualKeyCode=40)
        await tab.press("Enter", windowsVirtualKeyCode=13, text="\r")
        await tab.until(f"{label} === 'Lava lamp {choices[1]}, seed 7, playing'")
        await tab.run("document.activeElement.blur()")
        await tab.press("w")
        await tab.until(f"{label} === 'Lava lamp {choices[2 % len(choices)]}, seed 7, playing'")
        await moves(tab)

        shortcuts = "document.getElementById('{}').getAttribute('aria-keyshortcuts')"
        assert await tab.run(shortcuts.format("play")) == "Space"
        assert await tab.run(shortcuts.format("speed")) == "+ - 0"
        assert await tab.run("document.querySelector('#play kbd').textContent") == "space"
        opened = "document.getElementById('help').open"
        await tab.press("?")
        await tab.until(opened)
        assert "pause, go on" in await tab.run("document.getElementById('help').innerText")
        await tab.press(" ")
        await tab.until(f"{text('play-word')} === 'Play'")
        await tab.press(" ")
        await tab.press("h")
        await tab.until(f"!{opened}")
        await tab.press("h")
        await tab.press("Escape", windowsVirtualKeyCode=27)
        await tab.until(f"!{opened}")

        await tab.click("#full")
        await tab.until("document.fullscreenElement !== null")
        await tab.press("f")
        await tab.until("document.fullscreenElement === null")
        assert tab.complaints == []


@browsed
async def test_a_second_tab_shows_the_same_lamp(browser: Browser) -> None:
    with command("--port", "0") as (_, url):
        one, two = await browser.open(url), await browser.open(url)
        for tab in (one, two):
            await tab.until(f"{text('count')}.endsWith('2 viewers')")
        for tab in (one, two):
            await moves(tab)
        assert abs(await frame(one) - await frame(two)) < 40
        await two.click("#play")
        for tab in (one, two):
            await tab.until(f"{text('play-word')} === 'Play'")
        await stands(one)
        await asyncio.sleep(1)
        assert await frame(one) == await frame(two)
        assert await one.run(PIXELS) == await two.run(PIXELS)


@browsed
async def test_the_page_comes_back_with_its_server(browser: Browser) -> None:
    with command("--port", "0") as (process, url):
        tab = await browser.open(url)
        await moves(tab)
        process.terminate()
        await tab.until(f"{text('note')} !== ''")
    with command("--port", str(urlsplit(url).port)):
        await tab.until(f"{text('note')} === ''")
        await moves(tab)
        assert await frame(tab) < 300


@browsed
async def test_it_fits_a_phone(browser: Browser) -> None:
    with command("--port", "0") as (_, url):
        tab = await browser.open(url)
        for width, height in ((360, 640), (740, 360), (320, 480)):
            await tab.resize(width, height, phone=True)
            await tab.until(f"innerWidth === {width} && {text('count')} !== ''")
            await assert_controls_fit(tab, width, height, 7)
            assert await tab.run("document.documentElement.scrollWidth") == width
            await moves(tab)
        assert tab.complaints == []


@browsed
async def test_the_controls_fade_and_stay_in_reach(browser: Browser) -> None:
    with command("--port", "0") as (_, url):
        tab = await browser.open(url)
        opacity = "getComputedStyle(document.getElementById('controls')).opacity"
        await tab.until(f"{opacity} === '0'")
        for name in ("play", "speed", "name", "seed", "next", "fill", "full"):
            await tab.press("Tab", windowsVirtualKeyCode=9)
            assert await tab.run("document.activeElement.id") == name
        await tab.until(f"{opacity} === '1'")
        await asyncio.sleep(5)
        assert await tab.run(opacity) == "1"  # while one of them has the focus
        await tab.press("Escape", windowsVirtualKeyCode=27)
        await tab.until(f"{opacity} === '0'")

        # What a screen reader finds.
        nodes = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
        named = {
            (node["role"]["value"], node["name"]["value"])
            for node in nodes
            if not node["ignored"] and "name" in node
        }
        expected = {
            ("image", "Lava lamp classic, seed 0, playing"),
            ("button", "Pause"),
            ("slider", "Speed"),
            ("combobox", "Weights"),
            ("spinbutton", "Seed"),
            ("button", "Next seed"),
            ("button", "Fill"),
            ("button", "Full screen"),
            ("heading", "Lava lamp"),
        }
        found = {(role, name) for role, name in named if role != "StaticText"}
        assert expected <= {(role.replace("img", "image"), name) for role, name in found}, found


async def bare(tab: Tab) -> Frame:
    """What the page looks like once its controls have faded."""
    await tab.until("document.getElementById('lamp').width > 100")
    await tab.until("getComputedStyle(document.getElementById('controls')).opacity === '0'")
    return np.asarray(Image.open(io.BytesIO(await tab.picture())).convert("RGB"))


@browsed
async def test_the_surround_continues_the_edge(browser: Browser) -> None:
    with command("--size", "64x32", "--port", "0") as (_, url):
        tab = await browser.open(url)
        for width, height, first, last in ((900, 400, 350, 549), (200, 900, 250, 649)):
            await tab.resize(width, height)
            seen = (await bare(tab)).astype(int)
            lines = seen.swapaxes(0, 1) if width > height else seen
            assert lines[first:last].max() > 150  # the picture lies here
            for beside, edge in ((50, first), (first - 5, first), (last + 5, last), (len(lines) - 50, last)):
                assert lines[beside].any() and np.abs(lines[beside] - lines[edge]).max() <= 4
        theme = await tab.run("document.querySelector('meta[name=theme-color]').content")
        assert theme == await tab.run("getComputedStyle(document.body).backgroundColor")
        red, green, blue = map(int, theme[4:-1].split(","))
        assert blue > red > green > 0  # a dark violet room
        assert tab.complaints == []


@browsed
async def test_an_enlarged_edge_has_no_rim(browser: Browser) -> None:
    edge = np.full((32, 32, 3), 50, np.uint8)
    edge[:, 16:] = 200
    with WebPage(Session(Shades(), "a", 1, WallClock(30)), port=0) as page:
        page.show(edge)
        tab = await browser.open(page.url)
        seen = await bare(tab)
        assert seen.min() == 50 and seen.max() == 200


@browsed
async def test_who_wants_no_motion_gets_none_until_they_press_play(browser: Browser) -> None:
    with command("--port", "0") as (_, url):
        still, other = await browser.open(url, still=True), await browser.open(url)
        await still.until(f"{text('play-word')} === 'Play'")
        await still.until("document.getElementById('lamp').width > 100")
        await stands(still)
        await moves(other)  # it is their wish alone
        await still.click("#play")
        await still.until(f"{text('play-word')} === 'Pause'")
        await moves(still)
