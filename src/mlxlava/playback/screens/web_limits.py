"""Limits on what one visitor may take from the web page's server, so that enough is left for the others.

Everything here runs in the server's thread. Addresses of this machine itself count as one visitor too, but
have as many viewers as there may be in all: behind a tunnel, all viewers have such an address.
"""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import logging
import resource
import time
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

MAX_VIEWERS = 100
MAX_VIEWERS_PER_ADDRESS = 20
MAX_CONNECTIONS = 200  # viewers, and connections that fetch the page
_CONNECTION_SHARE = 0.5  # of the files that this process may open

# Seconds for which a connection may be open without becoming a viewer: time for headers, answers, silence.
VISIT_SECONDS = 15.0

# A browser opens up to seven connections for a page. Behind a tunnel, all viewers come from this machine.
CONNECTIONS_PER_SECOND, CONNECTIONS_AT_ONCE = 20.0, 200
_LOCAL_CONNECTIONS_PER_SECOND, _LOCAL_CONNECTIONS_AT_ONCE = 200.0, 1000
# A page has six files. A viewer says after each picture that it has drawn it.
_REQUESTS_PER_SECOND, _REQUESTS_AT_ONCE = 50.0, 300
MESSAGES_PER_SECOND, MESSAGES_AT_ONCE = 200.0, 400
_LAMPS_PER_SECOND, _LAMPS_AT_ONCE = 1.0, 10
_SECONDS_BETWEEN_LOGGED_ERRORS = 60.0
_MAX_ADDRESSES = 1000  # of which is remembered how much they have asked for

# A request's headers take 0.4 MB at most. aiohttp would allow 1 MB.
_MAX_LINE_BYTES, _MAX_HEADER_BYTES, _MAX_HEADERS = 4096, 8190, 48


class Allowance:
    """How often something may be done: so many times at once, and then at a steady rate.

    Args:
        per_second: the steady rate.
        at_once: how many times it may be done after a long silence.
        now: returns the time in seconds.
    """

    def __init__(self, per_second: float, at_once: int, now: Callable[[], float] = time.monotonic) -> None:
        self._interval, self._lead, self._now = 1 / per_second, (at_once - 1) / per_second, now
        self._due = now()  # when the next would be due at the steady rate

    def take(self) -> float:
        """Count one more, whatever was counted before. Returns the seconds to wait before it is done."""
        now = self._now()
        start = max(self._due, now)
        self._due = start + self._interval
        return max(0.0, start - self._lead - now)

    def take_if_free(self) -> bool:
        """Whether one more may be done now. It is counted only if so."""
        if self._due - self._lead > self._now():
            return False
        self.take()
        return True


def most_connections() -> int:
    """How many connections may be open, so that this process can open other files beside them."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        MAX_CONNECTIONS
        if files == resource.RLIM_INFINITY
        else min(MAX_CONNECTIONS, int(files * _CONNECTION_SHARE))
    )


def message_allowance() -> Allowance:
    """For the messages of one viewer."""
    return Allowance(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE)


def lamp_allowance() -> Allowance:
    """For the lamps that one viewer chooses."""
    return Allowance(_LAMPS_PER_SECOND, _LAMPS_AT_ONCE)


def _connection_allowance(visitor: str) -> Allowance:
    """For the connections that one visitor opens."""
    if is_local(visitor):
        return Allowance(_LOCAL_CONNECTIONS_PER_SECOND, _LOCAL_CONNECTIONS_AT_ONCE)
    return Allowance(CONNECTIONS_PER_SECOND, CONNECTIONS_AT_ONCE)


def _request_allowance(visitor: str) -> Allowance:
    """For the requests of one visitor."""
    return Allowance(_REQUESTS_PER_SECOND, _REQUESTS_AT_ONCE)


class _Allowances:
    """The allowances of visitors. Of those who came long ago, what they have asked for is forgotten."""

    def __init__(self, make: Callable[[str], Allowance]) -> None:
        self._make = make
        self._known: collections.OrderedDict[str, Allowance] = collections.OrderedDict()

    def of(self, visitor: str) -> Allowance:
        """The allowance of a visitor."""
        allowance = self._known.pop(visitor, None) or self._make(visitor)
        self._known[visitor] = allowance
        if len(self._known) > _MAX_ADDRESSES:
            self._known.popitem(last=False)
        return allowance


def is_loopback(address: str) -> bool:
    """Whether an IP address stands for the machine itself."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def visitor_of(transport: asyncio.BaseTransport | None) -> str:
    """Who is at the other end: an IPv4 address, or the network of an IPv6 address, which one visitor owns."""
    peer = transport.get_extra_info("peername") if transport is not None else None
    if not peer:
        return ""
    address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if not address.is_loopback:
            return str(ipaddress.ip_network((address, 64), strict=False).network_address)
    return str(address)


def is_local(visitor: str) -> bool:
    """Whether a visitor (:func:`visitor_of`) is this machine, or nothing is known of who it is."""
    return not visitor or is_loopback(visitor)


class Connections:
    """The open connections of a server, and the rules by which they come and go.

    Where there are too many, the oldest one that is no viewer's ends, of the visitor who has most. So
    connections that do nothing keep nobody out. Where a visitor opens them too fast, they end at once.

    Args:
        make_protocol: makes the protocol of a connection that was let in.
        most: how many may be open.
    """

    def __init__(self, make_protocol: Callable[[], asyncio.Protocol], most: int = MAX_CONNECTIONS) -> None:
        self._make_protocol, self._most = make_protocol, most
        self._deadlines: dict[asyncio.Transport, float] = {}  # in the order in which they came
        self._viewers: dict[asyncio.Transport, str] = {}  # and who they are
        self._arrivals, self._requests = _Allowances(_connection_allowance), _Allowances(_request_allowance)

    def accept(self) -> asyncio.Protocol:
        """The first protocol of a new connection, for ``create_server``."""
        return _Arrival(self._let_in)

    def _let_in(self, transport: asyncio.Transport) -> None:
        if not self._arrivals.of(visitor_of(transport)).take_if_free():
            transport.abort()
            return
        self._forget_closed()
        if len(self._deadlines) + len(self._viewers) >= self._most and not self._make_room():
            transport.abort()
            return
        self._deadlines[transport] = time.monotonic() + VISIT_SECONDS
        protocol = self._make_protocol()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)

    def _make_room(self) -> bool:
        """End a connection that is no viewer's; False if there is none."""
        visitors = collections.Counter(map(visitor_of, self._deadlines))
        if not visitors:
            return False
        ((most, _),) = visitors.most_common(1)
        oldest = next(each for each in self._deadlines if visitor_of(each) == most)
        del self._deadlines[oldest]
        oldest.abort()
        return True

    def _forget_closed(self) -> None:
        for transport in [each for each in self._deadlines if each.is_closing()]:
            del self._deadlines[transport]

    def add_viewer(self, transport: asyncio.Transport) -> bool:
        """Let a connection stay for as long as it likes; False if there are enough viewers already."""
        visitor = visitor_of(transport)
        most = MAX_VIEWERS if is_local(visitor) else MAX_VIEWERS_PER_ADDRESS
        if len(self._viewers) >= MAX_VIEWERS or list(self._viewers.values()).count(visitor) >= most:
            return False
        self._deadlines.pop(transport, None)
        self._viewers[transport] = visitor
        return True

    def remove_viewer(self, transport: asyncio.Transport) -> None:
        """From now on this connection counts like any other, until it is closed."""
        if self._viewers.pop(transport, None) is not None and not transport.is_closing():
            self._deadlines[transport] = time.monotonic() + VISIT_SECONDS

    def end_old(self) -> None:
        """End connections whose time is over. To be called now and then."""
        self._forget_closed()
        now = time.monotonic()
        for transport in [each for each, deadline in self._deadlines.items() if deadline < now]:
            del self._deadlines[transport]
            transport.abort()

    def end_all(self) -> None:
        """End every connection now, with what was not sent yet."""
        for transport in (*self._deadlines, *self._viewers):
            transport.abort()
        self._deadlines.clear()
        self._viewers.clear()

    async def wait_for_turn(self, transport: asyncio.BaseTransport | None) -> None:
        """Delay a request of a visitor who asks for more than a page needs."""
        if wait := self._requests.of(visitor_of(transport)).take():
            await asyncio.sleep(wait)


class _Arrival(asyncio.Protocol):
    """A connection that has just come."""

    def __init__(self, let_in: Callable[[asyncio.Transport], None]) -> None:
        self._let_in = let_in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._let_in(transport)


class HttpConnection(web.RequestHandler):
    """aiohttp's protocol of a connection. Answers to what is no HTTP at all get headers of ours too.

    Such answers reach no middleware and no signal of the application. Their Server header would tell the
    versions of Python and of aiohttp.

    Args:
        server: what answers requests.
        error_headers: headers of an answer to what is no request.
        logger: what went wrong on the way goes here.
    """

    __slots__ = ("_error_headers",)

    def __init__(self, server: web.Server, error_headers: dict[str, str], logger: logging.Logger) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            logger=logger,
            access_log=None,  # type: ignore[arg-type]  # None is aiohttp's own word for no log
            keepalive_timeout=VISIT_SECONDS,
            lingering_time=1.0,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
        )
        self._error_headers = error_headers

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to a request that failed."""
        answer = super().handle_error(request, status, exc, message)
        answer.headers.update(self._error_headers)
        return answer


def quiet_logger() -> logging.Logger:
    """A logger for a server's errors: one a minute, and none for what a visitor has done wrong."""
    logger = logging.Logger("mlxlava.web", logging.WARNING)
    logger.addHandler(logging.StreamHandler())
    allowance = Allowance(1 / _SECONDS_BETWEEN_LOGGED_ERRORS, 1)

    def is_worth_a_line(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError | ConnectionError) and allowance.take_if_free()

    logger.addFilter(is_worth_a_line)
    return logger
