"""A window of another X program, which the lamp's window is put into: that of xscreensaver, above all.

SDL can draw into a foreign window itself (SDL_WINDOWID), but then neither with OpenGL nor as the window
changes its size, and pygame-ce offers that for its older display module alone. A child window has both.
Xlib is loaded by its name, as SDL loads it: pygame gives no access to SDL's own connection, and a package for
six calls would be one more to install.
"""

from __future__ import annotations

import ctypes
import os

from mlxlava.errors import UserError

# xscreensaver gives its programs the number of the window in which they are to draw.
_VARIABLE = "XSCREENSAVER_WINDOW"

_UNMAP_NOTIFY = 18  # number of this kind of event (X.h)

_ErrorHandler = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def named_window() -> int | None:
    """Number of the X window that a screen saver names in the environment. None where it names none.

    Raises:
        UserError: what it names is no number.
    """
    text = os.environ.get(_VARIABLE, "")
    return parse_window_id(text, _VARIABLE) if text else None


def parse_window_id(text: str, source: str) -> int:
    """The number of an X window, written as 0x2a or 42.

    Args:
        text: the number.
        source: where it was given, for the message.

    Raises:
        UserError: it is no such number.
    """
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 < number < 2**32:
        raise UserError(f"play: {source} must be the number of an X window, as 0x2a00003, not {text!r}")
    return number


class _UnmapEvent(ctypes.Structure):
    """Xlib's XUnmapEvent, filled up to the size of an XEvent."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("serial", ctypes.c_ulong),
        ("send_event", ctypes.c_int),
        ("display", ctypes.c_void_p),
        ("event", ctypes.c_ulong),
        ("window", ctypes.c_ulong),
        ("rest", ctypes.c_long * 18),
    )


class ForeignWindow:
    """A window of another X program.

    Args:
        number: the window's number.

    Raises:
        UserError: there is no Xlib, no X server, or no such window.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        try:
            self._xlib = _load_xlib()
        except OSError as error:
            raise UserError(f"play: a window of another program needs libX11 ({error})") from error
        # Both programs may end at any time, and with a window all that is drawn into it. Without a handler of
        # our own, Xlib ends the process then.
        self._handler = _ErrorHandler(lambda display, error: 0)
        self._previous_handler = self._xlib.XSetErrorHandler(self._handler)
        self._display: int | None = self._xlib.XOpenDisplay(None)
        if self._display is None:
            self.close()
            raise UserError("play: a window of another program needs an X server; DISPLAY names none")
        if self.size() is None:
            self.close()
            raise UserError(
                f"play: there is no X window {number:#x}; is the program that has it still there?"
            )

    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels. None if the window is gone."""
        root, (x, y, width, height, border, depth) = ctypes.c_ulong(), (ctypes.c_uint() for _ in range(6))
        numbers = (ctypes.byref(each) for each in (root, x, y, width, height, border, depth))
        found = self._xlib.XGetGeometry(self._display, self._number, *numbers)
        return (width.value, height.value) if found else None

    def adopt(self, child: int) -> None:
        """Put a window of ours, by its number, into the upper left corner of the foreign one."""
        self._xlib.XReparentWindow(self._display, child, self._number, 0, 0)
        self._xlib.XSync(self._display, 0)

    def release(self, child: int, other: int) -> None:
        """Let SDL close an adopted window that may be gone with the foreign one.

        SDL hides a window before it closes it, and waits until the server says that the window is hidden. Of
        a window that is gone the server says nothing, so SDL would wait for ever. What it waits for is sent.

        Args:
            child: number of the adopted window.
            other: number of another window of SDL's that is still there, to which it can be sent.
        """
        event = _UnmapEvent(type=_UNMAP_NOTIFY, event=child, window=child)
        self._xlib.XSendEvent(self._display, other, 0, 0, ctypes.byref(event))
        self._xlib.XSync(self._display, 0)

    def close(self) -> None:
        """End the connection. To be called when our own windows are closed."""
        if self._display is not None:
            self._xlib.XCloseDisplay(self._display)
            self._display = None
        self._xlib.XSetErrorHandler(self._previous_handler)


def _load_xlib() -> ctypes.CDLL:
    """Xlib, with the types of what is called."""
    xlib = ctypes.CDLL("libX11.so.6")
    window, pointer = ctypes.c_ulong, ctypes.c_void_p
    xlib.XSetErrorHandler.argtypes, xlib.XSetErrorHandler.restype = [pointer], pointer
    xlib.XOpenDisplay.argtypes, xlib.XOpenDisplay.restype = [ctypes.c_char_p], pointer
    xlib.XGetGeometry.argtypes = [pointer, window, *[pointer] * 7]
    xlib.XReparentWindow.argtypes = [pointer, window, window, ctypes.c_int, ctypes.c_int]
    xlib.XSendEvent.argtypes = [pointer, window, ctypes.c_int, ctypes.c_long, pointer]
    xlib.XSync.argtypes = [pointer, ctypes.c_int]
    xlib.XCloseDisplay.argtypes = [pointer]
    return xlib
