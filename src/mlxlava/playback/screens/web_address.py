"""Where the web page listens: hosts, ports and addresses."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket

from mlxlava.errors import UserError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORTS = range(8765, 8785)  # tried one after the other where no port is given


def open_listening_socket(host: str, port: int | None) -> socket.socket:
    """Open a socket that listens on ``port``; if that is None, on the first free one of ``DEFAULT_PORTS``."""
    wanted = DEFAULT_PORTS if port is None else (port,)
    for number in wanted:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            both = host == "::" and socket.has_dualstack_ipv6()
            return socket.create_server(address[:2], family=family, dualstack_ipv6=both)
        except (OSError, UnicodeError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            if taken and number != wanted[-1]:
                continue
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            advice = "give another --port" if taken or port is not None else "give another --host"
            raise UserError(
                f"play: cannot listen on {format_url_host(host)}:{number}: {why}; {advice}"
            ) from error
    raise AssertionError("there is no port to try")


def format_url_host(host: str) -> str:
    """A host as it is written in a URL: IPv6 addresses in brackets, names in lower case."""
    return f"[{host}]" if ":" in host else host.lower()


def is_ip_address(host: str) -> bool:
    """Whether the host of a URL is an IP address and not a name."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def own_network_address() -> str | None:
    """This machine's address in its network. Nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # an address reserved for documentation
        return str(probe.getsockname()[0])
    return None
