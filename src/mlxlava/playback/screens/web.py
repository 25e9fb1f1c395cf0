"""A web page as a screen. Any number of viewers share one lamp, each over a WebSocket of its own.

The server has its own thread and event loop. The player's thread only hands over the latest frame. A viewer
is sent the latest picture whenever it is ready for one, so a slow viewer misses pictures and delays nobody.

Pictures are binary messages. Text messages are JSON. To the page goes ``Session.status``, twice a second,
with the colours around the picture. From the page comes one request per message
(``WebPage._handle_message``). What one visitor may take of all this is limited (web_limits.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import math
import re
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.resources import files
from types import TracebackType

from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.typedefs import Handler
from PIL import Image

from mlxlava.console import say
from mlxlava.playback.keys import WEB, keys_module
from mlxlava.playback.screens.surround import Surround
from mlxlava.playback.screens.web_address import (
    DEFAULT_HOST,
    format_url_host,
    is_ip_address,
    open_listening_socket,
    own_network_address,
)
from mlxlava.playback.screens.web_limits import (
    Allowance,
    Connections,
    HttpConnection,
    is_loopback,
    lamp_allowance,
    message_allowance,
    most_connections,
    quiet_logger,
)
from mlxlava.playback.session import SEED_COUNT, SPEED_RANGE, Session
from mlxlava.playback.writers import Frame

# Pictures that may be on their way to a viewer. At 30 per second, a round trip of up to 0.25 s costs no rate.
MAX_PICTURES_IN_FLIGHT = 8

_STATUS_INTERVAL_SECONDS = 0.5
_STATUS_DELAY_SECONDS = 0.03  # in which several changes become one status
_LEAST_LAMP_SECONDS = 0.5  # for which a chosen lamp is shown before the next choice counts
_MAX_MESSAGE_BYTES = 1024  # of a viewer
_HEARTBEAT_SECONDS = 20.0  # after which a viewer that does not answer is dropped
SEND_TIMEOUT_SECONDS = 20.0  # after which a viewer that takes nothing is dropped
_CLOSE_TIMEOUT_SECONDS = 1.0  # that viewers have to close their connection
_MAX_LOSSLESS_PIXELS = 128 * 128  # of a frame that is encoded lossless

_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_ALL_NETWORKS_HOSTS = ("0.0.0.0", "::")

_PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/lamp.css": ("lamp.css", "text/css"),
    "/lamp.js": ("lamp.js", "text/javascript"),
    "/stage.js": ("stage.js", "text/javascript"),
    "/lamp.svg": ("lamp.svg", "image/svg+xml"),
}
_KEYS_MODULE_PATH = "/keys.js"  # made from playback/keys.py
_SECURITY_HEADERS = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "mlxlava",
    "X-Content-Type-Options": "nosniff",
}
# The WebSocket is named because Safari before 15.4 takes 'self' for http only.
_CONTENT_SECURITY_POLICY = (
    "default-src 'self'; connect-src 'self' ws://{host}; base-uri 'none'; frame-ancestors 'none'"
)
_STRICTEST_POLICY = "default-src 'none'; frame-ancestors 'none'"


def encode_picture(frame: Frame) -> bytes:
    """Encode a frame: a small one as lossless WebP, else as JPEG without chroma subsampling.

    64×64 takes 0.2 ms and 5 kB. 256×256 takes 0.3 ms and 14 kB; as lossless WebP it would take 3 ms and
    43 kB. Small frames are not JPEG, because its blocks are visible when they fill a screen.
    """
    file = io.BytesIO()
    image = Image.fromarray(frame)
    if frame.shape[0] * frame.shape[1] <= _MAX_LOSSLESS_PIXELS:
        image.save(file, "WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


@dataclasses.dataclass(eq=False)
class _Viewer:
    """One page that is open somewhere.

    Attributes:
        transport: its connection.
        send_event: set when there may be something to send.
        watching: whether it wants pictures; False for a page in the background.
        sent: how many pictures were sent to it.
        drawn: how many of these it has drawn or dropped.
        picture_number: number of the last picture that it was sent.
        status_number: number of the last status that it was sent.
        sending_since: when the message was begun that it has not taken yet; None if there is none.
        messages: how many more messages it may send.
        lamps: how many more lamps it may choose.
    """

    transport: asyncio.Transport
    send_event: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    watching: bool = True
    sent: int = 0
    drawn: int = 0
    picture_number: int = 0
    status_number: int = 0
    sending_since: float | None = None
    messages: Allowance = dataclasses.field(default_factory=message_allowance)
    lamps: Allowance = dataclasses.field(default_factory=lamp_allowance)

    def wants_picture(self, picture: int) -> bool:
        """Whether to send it the picture with this number."""
        return (
            self.watching
            and picture != self.picture_number
            and self.sent - self.drawn < MAX_PICTURES_IN_FLIGHT
        )


class WebPage:
    """Shows frames on a web page. A context manager: the server listens within the block.

    Args:
        session: what plays; viewers control it.
        host: address or name to listen on; 0.0.0.0 and :: stand for all networks of this machine.
        port: port to listen on; 0 for any free one, None for the first free one of ``DEFAULT_PORTS``.

    Attributes:
        hidden: whether nobody looks.
        url: the page's address, once the server listens.

    Raises:
        UserError: on entering, if it cannot listen there.
    """

    def __init__(self, session: Session, host: str = DEFAULT_HOST, port: int | None = None) -> None:
        self.hidden = True
        self.fps: float | None = None
        self.url = ""
        self._session, self._host, self._port = session, host, port
        self._hosts: frozenset[str] = frozenset()
        self._viewers: set[_Viewer] = set()
        self._frame: tuple[int, Frame | None] = (0, None)  # its number, from 1 on
        self._surround = Surround()
        self._picture = (0, b"")  # the frame of this number, encoded
        self._status = (0, "")  # number and text of the latest status
        self._status_timer: asyncio.TimerHandle | None = None
        self._chosen: tuple[str, int] | None = None  # name and seed of a lamp that viewers wait for
        self._lamp_shown_since = math.inf  # when the present lamp was first shown
        self._request_came = threading.Event()  # a viewer has asked for something
        self._ending = asyncio.Event()
        self._files = {
            path: ((files("mlxlava.playback.screens") / "page" / name).read_bytes(), kind)
            for path, (name, kind) in _PAGE_FILES.items()
        } | {_KEYS_MODULE_PATH: (keys_module(WEB).encode(), "text/javascript")}

    def __enter__(self) -> WebPage:
        listening = open_listening_socket(self._host, self._port)
        address, self._port = listening.getsockname()[:2]
        self._hosts = _LOOPBACK_HOSTS | {format_url_host(self._host), format_url_host(address)}
        shown = self._host
        if self._host in _ALL_NETWORKS_HOSTS:
            name = socket.gethostname().lower()
            self._hosts |= {name, name.partition(".")[0] + ".local"}
            shown = own_network_address() or name
        self.url = f"http://{format_url_host(shown)}:{self._port}/"
        self._loop = asyncio.new_event_loop()
        executor = ThreadPoolExecutor(1, "web page")
        self._served: Future[None] = executor.submit(self._loop.run_until_complete, self._serve(listening))
        executor.shutdown(wait=False)
        try:
            self._announce_url(is_loopback(address))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _announce_url(self, loopback: bool) -> None:
        say(f"play: {self.url} (Ctrl-C ends it)")
        if not loopback:
            say(
                f"play: --host {self._host}: whoever reaches this machine over the network can watch and "
                "control the lamp; there is no password and nothing is encrypted"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call_in_server_thread(self._ending.set)
        try:
            self._served.result()
        finally:
            self._loop.close()

    def show(self, frame: Frame) -> None:
        """Hand over a frame, uint8 (H, W, 3), for the viewers. The caller must not change it afterwards."""
        if self._served.done():
            self._served.result()  # raises what ended the server
        self._frame = (self._frame[0] + 1, frame)
        if math.isinf(self._lamp_shown_since):
            self._lamp_shown_since = self._loop.time()
            self._call_in_server_thread(self._change_lamp_when_due)
        if self._surround.update_from_frame(frame):
            self._call_in_server_thread(self._publish_status)
        if not self.hidden:
            self._call_in_server_thread(self._wake_senders)

    def wait_and_react(self, seconds: float) -> None:
        """Wait for this many seconds, or until a viewer asks for something."""
        if self._request_came.wait(seconds):
            self._request_came.clear()

    def _call_in_server_thread(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended already, by an error
            self._loop.call_soon_threadsafe(function)

    # The methods below run in the server's thread.

    async def _serve(self, listening: socket.socket) -> None:
        app = web.Application(middlewares=[self._refuse_foreign_requests])
        app.on_response_prepare.append(self._add_security_headers)
        app.on_shutdown.append(self._close_viewers)
        app.router.add_get("/live", self._serve_viewer)
        for path in self._files:
            app.router.add_get(path, self._serve_file)
        runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=_CLOSE_TIMEOUT_SECONDS)
        await runner.setup()
        logger = quiet_logger()
        self._loop.set_exception_handler(
            lambda loop, context: logger.error(context["message"], exc_info=context.get("exception"))
        )
        headers = {**_SECURITY_HEADERS, "Content-Security-Policy": _STRICTEST_POLICY}
        handler = runner.server
        assert handler is not None  # after setup there is one
        self._connections = Connections(lambda: HttpConnection(handler, headers, logger), most_connections())
        server = await self._loop.create_server(self._connections.accept, sock=listening)
        try:
            while not self._ending.is_set():
                self._publish_status()
                self._connections.end_old()
                self._drop_stuck_viewers()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), _STATUS_INTERVAL_SECONDS)
        finally:
            server.close()
            await runner.cleanup()
            await _cancel_other_tasks()

    def _is_own_host(self, host: str) -> bool:
        """Whether a Host header is a name of this server, and not one that a stranger's DNS points to it."""
        found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::(\d{1,5}))?", host)
        if found is None or int(found[2] or 80) != self._port:
            return False
        # Any address is accepted: DNS cannot redirect addresses, and this machine's may change meanwhile.
        return found[1] in self._hosts or (self._host in _ALL_NETWORKS_HOSTS and is_ip_address(found[1]))

    @web.middleware
    async def _refuse_foreign_requests(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests that another site's page makes in a viewer's browser."""
        await self._connections.wait_for_turn(request.transport)
        hosts = [host.lower() for host in request.headers.getall("Host", [])]
        if len(hosts) != 1 or not self._is_own_host(hosts[0]):
            raise web.HTTPForbidden(text="This server does not have that name.\n")
        origins = [origin.lower() for origin in request.headers.getall("Origin", [])]
        if origins != [f"http://{hosts[0]}"] and (origins or request.path == "/live"):
            raise web.HTTPForbidden(text="Only this server's own page may ask for that.\n")
        return await handler(request)

    async def _add_security_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(_SECURITY_HEADERS)
        host = request.headers.get("Host", "").lower()
        policy = _CONTENT_SECURITY_POLICY.format(host=host) if self._is_own_host(host) else _STRICTEST_POLICY
        response.headers["Content-Security-Policy"] = policy

    async def _serve_file(self, request: web.Request) -> web.Response:
        body, kind = self._files[request.path]
        return web.Response(body=body, content_type=kind, charset="utf-8")

    async def _serve_viewer(self, request: web.Request) -> web.WebSocketResponse:
        # No compression, because pictures are compressed already. `timeout` is how long close() waits. Pings
        # are answered here, so that they count as messages.
        socket = web.WebSocketResponse(
            heartbeat=_HEARTBEAT_SECONDS,
            max_msg_size=_MAX_MESSAGE_BYTES,
            compress=False,
            timeout=_CLOSE_TIMEOUT_SECONDS,
            autoping=False,
        )
        await socket.prepare(request)
        transport = request.transport
        if not isinstance(transport, asyncio.Transport):  # it has left
            return socket
        if not self._connections.add_viewer(transport):
            await socket.close(code=WSCloseCode.TRY_AGAIN_LATER)
            return socket
        viewer = _Viewer(transport)
        self._viewers.add(viewer)
        self._on_viewers_changed()
        sender = asyncio.create_task(self._send_to_viewer(viewer, socket))
        try:
            await self._listen_to_viewer(viewer, socket)
        finally:
            sender.cancel()
            self._viewers.discard(viewer)
            self._connections.remove_viewer(transport)
            self._on_viewers_changed()
        return socket

    async def _listen_to_viewer(self, viewer: _Viewer, socket: web.WebSocketResponse) -> None:
        """Do what a viewer asks for, until it leaves. One that asks too often is read more slowly."""
        async for message in socket:
            if message.type is WSMsgType.PING:
                with contextlib.suppress(ConnectionError):
                    await socket.pong(message.data)
            elif message.type is not WSMsgType.PONG and (
                message.type is not WSMsgType.TEXT or not self._handle_message(viewer, message.data)
            ):
                await socket.close(code=WSCloseCode.POLICY_VIOLATION)
            if wait := viewer.messages.take():
                await asyncio.sleep(wait)

    async def _send_to_viewer(self, viewer: _Viewer, socket: web.WebSocketResponse) -> None:
        """Send a viewer each new status, and the latest picture when it is ready for one."""
        with contextlib.suppress(ConnectionError):  # _serve_viewer notices it too, and cleans up
            while not self._ending.is_set():
                viewer.sending_since = self._loop.time()
                if viewer.status_number != self._status[0]:
                    viewer.status_number, text = self._status
                    await socket.send_str(text)
                if viewer.wants_picture(self._frame[0]):
                    viewer.picture_number, data = self._latest_picture()
                    viewer.sent += 1
                    await socket.send_bytes(data)
                else:
                    viewer.sending_since = None
                    await viewer.send_event.wait()
                    viewer.send_event.clear()
            await socket.close(code=WSCloseCode.GOING_AWAY)

    def _drop_stuck_viewers(self) -> None:
        """End the connections of viewers that take nothing. They would keep a viewer's place for ever."""
        overdue = self._loop.time() - SEND_TIMEOUT_SECONDS
        for viewer in self._viewers:
            if viewer.sending_since is not None and viewer.sending_since < overdue:
                viewer.transport.abort()

    async def _close_viewers(self, app: web.Application) -> None:
        """Tell every viewer that it ends, and then end every connection: one that is stuck never closes."""
        self._wake_senders()
        await self._wait_until_viewers_left()
        self._connections.end_all()
        await self._wait_until_viewers_left()

    async def _wait_until_viewers_left(self) -> None:
        deadline = self._loop.time() + _CLOSE_TIMEOUT_SECONDS
        while self._viewers and self._loop.time() < deadline:
            await asyncio.sleep(0.01)

    def _latest_picture(self) -> tuple[int, bytes]:
        """The number of the latest picture, and the picture, which is encoded once for all viewers."""
        number, frame = self._frame
        if frame is not None and number != self._picture[0]:
            self._picture = (number, encode_picture(frame))
        return self._picture

    def _wake_senders(self) -> None:
        for viewer in self._viewers:
            viewer.send_event.set()

    def _on_viewers_changed(self) -> None:
        """A viewer came, left, or began or stopped to look."""
        self.hidden = not any(viewer.watching for viewer in self._viewers)
        self._publish_status()

    def _publish_status(self) -> None:
        """Send the status to all viewers, in a moment: many changes at once are one message."""
        if self._status_timer is None:
            self._status_timer = self._loop.call_later(_STATUS_DELAY_SECONDS, self._publish_status_now)

    def _publish_status_now(self) -> None:
        self._status_timer = None
        status = self._session.status()
        if status["moments"] is not None:  # JSON has no NaN, which a diverged lamp may have
            status["moments"] = [value if math.isfinite(value) else None for value in status["moments"]]
        status |= {
            "names": list(self._session.lamp_names),
            "speeds": SPEED_RANGE,
            "viewers": len(self._viewers),
        }
        if self._chosen is not None:
            status["name"], status["seed"] = self._chosen
        # The page could take them from its pictures, but JPEG makes the edge flicker where wax is near.
        status["sides"] = [side.tolist() for side in self._surround.sides]
        self._status = (self._status[0] + 1, json.dumps(status))
        self._wake_senders()

    def _handle_message(self, viewer: _Viewer, text: str) -> bool:
        """Do what a viewer asks for. Unknown requests are ignored.

        Returns:
            Whether the message is a request at all: a JSON object.
        """
        try:
            asked = json.loads(text)
        except (ValueError, RecursionError):
            return False
        if not isinstance(asked, dict):
            return False
        match asked:
            case {"drawn": int(count)}:
                viewer.drawn = max(viewer.drawn, min(count, viewer.sent))
                viewer.send_event.set()
                return True
            case {"watching": bool(watching)}:
                viewer.watching = watching
                self._on_viewers_changed()
                return True
            case {"paused": bool(paused)}:
                self._session.clock.paused = paused
            case {"speed": int(speed) | float(speed)} if SPEED_RANGE[0] <= speed <= SPEED_RANGE[1]:
                self._session.multiply_speed(speed / self._session.clock.speed)
            case {"seed": int(seed)} if 0 <= seed < SEED_COUNT:
                self._choose_lamp(viewer, seed=seed)
            case {"name": str(name)} if name in self._session.lamp_names:
                self._choose_lamp(viewer, name)
        self._request_came.set()
        self._publish_status()
        return True

    def _choose_lamp(self, viewer: _Viewer, name: str | None = None, seed: int | None = None) -> None:
        """Play another lamp, as soon as the present one has been seen. The latest choice counts."""
        if viewer.lamps.take_if_free():
            chosen = self._chosen or (self._session.lamp_name, self._session.seed)
            self._chosen = (chosen[0] if name is None else name, chosen[1] if seed is None else seed)
            self._change_lamp_when_due()

    def _change_lamp_when_due(self) -> None:
        """Change to the chosen lamp, or try again later. To open a lamp takes time, in which none plays."""
        wait = self._lamp_shown_since + _LEAST_LAMP_SECONDS - self._loop.time()
        if self._chosen is None or math.isinf(wait):  # show() calls this again
            return
        if wait > 0:
            self._loop.call_later(wait, self._change_lamp_when_due)
            return
        chosen, self._chosen, self._lamp_shown_since = self._chosen, None, math.inf
        self._session.choose_lamp(*chosen)
        self._request_came.set()


async def _cancel_other_tasks() -> None:
    """End what still waits for a visitor who has left, before the event loop closes."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
