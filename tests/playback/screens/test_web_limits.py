"""What one visitor may take of the web page's server, and that the others keep their lamp."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="needs the extra `web`")

import aiohttp

from mlxlava.playback.clock import WallClock
from mlxlava.playback.screens import web, web_limits
from mlxlava.playback.screens.web import WebPage
from mlxlava.playback.screens.web_limits import Allowance, quiet_logger, visitor_of
from mlxlava.playback.session import FrameSource, Session
from tests.playback.screens.test_web import (
    Shades,
    answer,
    pictures,
    playing,
    status,
    stuck,
    until,
    viewed,
    watching,
)
from tests.playback.wall import Wall

SECURITY = ("content-security-policy: default-src", "x-content-type-options: nosniff", "server: mlxlava\n")


def line_to(page: WebPage) -> socket.socket:
    address = urlsplit(page.url)
    line = socket.create_connection((address.hostname or "", address.port or 0))
    line.settimeout(10)
    return line


def ended(line: socket.socket) -> bool:
    """Whether the server ends a connection within ten seconds."""
    try:
        while line.recv(4096):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


# --- allowances ---


def test_an_allowance_is_so_many_at_once_and_then_a_rate() -> None:
    wall = Wall()
    allowance = Allowance(2.0, 3, wall.now)
    assert [allowance.take() for _ in range(5)] == pytest.approx([0, 0, 0, 0.5, 1.0])
    assert not allowance.take_if_free()
    wall.sleep(1.5)
    assert [allowance.take_if_free() for _ in range(2)] == [True, False]
    wall.sleep(100)
    assert [allowance.take_if_free() for _ in range(4)] == [True, True, True, False]


class Line(asyncio.Transport):
    """A connection from an address, which can be ended."""

    def __init__(self, address: str) -> None:
        super().__init__({"peername": (address, 1)})
        self.open = True

    def is_closing(self) -> bool:
        return not self.open

    def abort(self) -> None:
        self.open = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Nothing is sent on it."""


@pytest.mark.parametrize(
    ("address", "visitor"),
    [
        ("192.168.1.5", "192.168.1.5"),
        ("::ffff:192.168.1.5", "192.168.1.5"),
        ("::1", "::1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
    ],
)
def test_an_ipv6_network_is_one_visitor(address: str, visitor: str) -> None:
    assert visitor_of(Line(address)) == visitor


def test_one_address_of_a_network_cannot_take_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_limits, "MAX_VIEWERS_PER_ADDRESS", 2)
    connections = web_limits.Connections(asyncio.Protocol)
    lines = [Line("192.168.1.5") for _ in range(3)]
    assert [connections.add_viewer(line) for line in lines] == [True, True, False]
    assert connections.add_viewer(Line("192.168.1.6"))
    assert all(connections.add_viewer(Line("127.0.0.1")) for _ in range(10))  # all viewers behind a tunnel


# --- connections ---


def test_who_opens_connections_without_end_is_turned_away_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web_limits, "CONNECTIONS_AT_ONCE", 2)
    monkeypatch.setattr(web_limits, "CONNECTIONS_PER_SECOND", 0.01)
    connections = web_limits.Connections(asyncio.Protocol)
    lines = [Line(f"192.168.1.{number}") for number in (5, 5, 5, 5, 6)]
    for line in (*lines, behind_a_tunnel := Line("127.0.0.1")):
        connections.accept().connection_made(line)
    assert [line.open for line in lines] == [True, True, False, False, True]
    assert behind_a_tunnel.open


def test_connections_that_do_nothing_keep_nobody_out(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(web_limits, "MAX_CONNECTIONS", 5)

    async def look(page: WebPage) -> None:
        async with watching(page) as viewer:
            lines = [line_to(page) for _ in range(20)]
            assert answer(page)[0] == 200
            assert all(map(ended, lines[:15]))
            await pictures(viewer, 5)  # who looks is never pushed out
            for line in lines:
                line.close()

    with playing() as (_, page):
        asyncio.run(asyncio.wait_for(look(page), 60))
        out = capfd.readouterr()
    assert len(out.err.splitlines()) == 1, out.err  # the page's address


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: b", b"whole"])
def test_a_request_has_so_much_time(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_limits, "VISIT_SECONDS", 0.2)

    async def look(page: WebPage) -> None:
        async with watching(page) as viewer:
            with line_to(page) as line:
                head = f"GET / HTTP/1.1\r\nHost: {urlsplit(page.url).netloc}\r\n\r\n".encode()
                line.sendall(head if sent == b"whole" else sent)
                assert await asyncio.to_thread(ended, line)
            await pictures(viewer, 15)

    with playing() as (_, page):
        asyncio.run(asyncio.wait_for(look(page), 60))


@pytest.mark.parametrize(
    "sent",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"b" * 10_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100 + b"\r\n",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nExpect: b\r\n\r\n",
    ],
    ids=["nonsense", "header name", "header", "headers", "path", "TLS", "no host", "POST", "Expect"],
)
def test_what_is_no_request_gets_our_headers_and_no_log(
    sent: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with playing() as (_, page), line_to(page) as line:
        line.sendall(sent)
        said = line.recv(4096).decode().lower().replace("\r", "")
        assert said.split()[1].startswith("4")
        assert all(header in said for header in SECURITY), said
        assert "aiohttp" not in said and "python" not in said
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_an_error_of_the_server_is_logged_once_a_minute(capfd: pytest.CaptureFixture[str]) -> None:
    logger = quiet_logger()
    for number in range(100):
        try:
            raise ValueError(number)
        except ValueError:
            logger.exception("wrong")
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "wrong" and lines[-1] == "ValueError: 0"
    assert logging.getLogger("mlxlava.web") is not logger  # nobody else's settings change it


# --- viewers ---


class Slow(Shades):
    """Lamps that take 0.2 s to open, and are counted."""

    opened = 0

    def open(self, name: str, seed: int) -> FrameSource:
        time.sleep(0.2)
        self.opened += 1
        return super().open(name, seed)


@pytest.fixture
def slow_lamps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    lamps = Slow()
    monkeypatch.setattr("tests.playback.screens.test_web.Shades", lambda: lamps)
    yield lamps


@pytest.mark.slow
def test_who_changes_the_seed_without_end_leaves_others_their_pictures(slow_lamps: Slow) -> None:
    async def flood(session: Session, page: WebPage) -> None:
        async with watching(page) as one, watching(page) as other:
            for seed in range(100):
                await one.send_json({"seed": 100 + seed})
            await pictures(other, 30)
            assert slow_lamps.opened <= 4  # and not one for each request
            await other.send_json({"seed": 7})
            await status(one, seed=7)  # at once, though the lamp may have to wait
            while (await asyncio.wait_for(pictures(other, 1), 10), session.seed)[1] != 7:
                pass

    with playing() as (session, page):
        asyncio.run(asyncio.wait_for(flood(session, page), 60))


@pytest.mark.slow
def test_who_asks_without_end_is_read_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_limits, "MESSAGES_AT_ONCE", 4)
    monkeypatch.setattr(web_limits, "MESSAGES_PER_SECOND", 0.1)

    async def flood(session: Session, page: WebPage) -> None:
        leaves_at_once = aiohttp.ClientWSTimeout(ws_close=0.1)
        async with watching(page) as other, watching(page, timeout=leaves_at_once) as one:
            for number in range(2000):
                await one.send_str(json.dumps({"speed": 1 + number / 100}))
            await pictures(other, 4, drawn=False)
            assert session.clock.speed < 1.5

    with playing() as (session, page):
        asyncio.run(asyncio.wait_for(flood(session, page), 60))


@viewed
async def test_a_ping_is_answered(session: Session, page: WebPage) -> None:
    async with watching(page, autoping=False) as viewer:
        await viewer.ping(b"here")
        while (message := await viewer.receive(10)).type is not aiohttp.WSMsgType.PONG:
            pass
        assert message.data == b"here"


def test_many_changes_are_one_status() -> None:
    async def change(page: WebPage) -> None:
        async with watching(page) as one, watching(page) as two:
            for number in range(300):
                await one.send_json({"speed": 2 if number % 2 else 4})
            await one.send_json({"speed": 3})
            count = 0
            while True:
                message = await two.receive(10)
                if message.type is aiohttp.WSMsgType.TEXT:
                    count += 1
                    if json.loads(message.data)["speed"] == 3:
                        break
            assert count < 100

    with playing() as (_, page):
        asyncio.run(asyncio.wait_for(change(page), 60))


def test_a_viewer_that_takes_nothing_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "SEND_TIMEOUT_SECONDS", 0.2)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    with WebPage(Session(Shades(), "a", 1, WallClock(30)), port=0) as page, stuck(page) as (claim, received):
        page.show(noise)
        until(lambda: not page.hidden)

        end = time.monotonic() + 20
        while not page.hidden and time.monotonic() < end:
            page.show(noise.copy())
            with contextlib.suppress(ConnectionError):  # it has lost its place
                claim()
            time.sleep(0.01)
        until(lambda: page.hidden)
        received()  # the line has ended while the server goes on
        assert answer(page)[0] == 200
