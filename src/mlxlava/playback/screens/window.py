"""A window as a screen, by SDL through pygame-ce (extra ``window``). Importing this module imports pygame.

The renderer (Metal, OpenGL) scales the frames. On the CPU, pygame's ``smoothscale`` of 60 frames per second
to 1920×1080 would keep four fifths of a core busy.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from mlxlava.errors import UserError
from mlxlava.playback.keys import WINDOW, actions_by_key, help_rows, perform_action
from mlxlava.playback.screens.foreign_window import ForeignWindow
from mlxlava.playback.screens.surround import Surround
from mlxlava.playback.session import Session
from mlxlava.playback.writers import Frame
from mlxlava.resize import enlarge, resize_smoothly

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("SDL_APP_NAME", "mlxlava")
import pygame
from pygame._sdl2.video import Renderer, Texture

_DEFAULT_FPS = 60.0  # where the display does not tell its rate
_INITIAL_SIDE_POINTS = 640  # geometric mean of the window's sides at first, in points, for small frames
_MAX_DESKTOP_FRACTION = 0.8  # largest fraction of the desktop's width and height at first
_NOTE_SECONDS = 2.0  # seconds for which a note is shown
_MIN_SAVED_SIDE_PIXELS = 512  # smallest shorter side of a saved picture, in pixels

# Frames with a shorter side below this are first enlarged by a whole factor. The renderer's own bilinear
# filter turns the highlights of a small frame into diamonds. 64×64 → 256×256 pixels costs 0.6 ms.
_MIN_TEXTURE_SIDE_PIXELS = 256

_SIDE_IS_COLUMN = (True, True, False, False)  # whether a side of the surround is a column

_ACTION_OF_KEY, _HELP_ROWS = actions_by_key(WINDOW), help_rows(WINDOW)
_NAMES_OF_TYPED_KEYS = {"\x1b": "esc", "\b": "backspace", "\x7f": "backspace"}  # by what a key types

_HANDLED_EVENTS = (
    pygame.QUIT,
    pygame.KEYDOWN,
    pygame.WINDOWEXPOSED,
    pygame.WINDOWSIZECHANGED,
    pygame.WINDOWMINIMIZED,
    pygame.WINDOWHIDDEN,
    pygame.WINDOWMAXIMIZED,
    pygame.WINDOWRESTORED,
    pygame.WINDOWSHOWN,
)
_HIDING_EVENTS = (pygame.WINDOWMINIMIZED, pygame.WINDOWHIDDEN)
_SHOWING_EVENTS = (pygame.WINDOWMAXIMIZED, pygame.WINDOWRESTORED, pygame.WINDOWSHOWN, pygame.WINDOWEXPOSED)


def _start_video() -> None:
    """Start SDL's video. Raises UserError if there is no display."""
    given = os.environ.get("SDL_VIDEODRIVER")
    if given is None and sys.platform != "darwin":
        # Without a driver's name, SDL falls back to one that shows nothing, and reports success.
        sides = {"DISPLAY": "x11", "WAYLAND_DISPLAY": "wayland"}
        found = [driver for name, driver in sides.items() if os.environ.get(name)]
        os.environ["SDL_VIDEODRIVER"] = ",".join(found) or "x11"
    try:
        pygame.display.init()
    except pygame.error as error:
        raise UserError(f"play: no display can be opened ({error}); try --screen terminal") from None
    finally:
        if given is None:
            os.environ.pop("SDL_VIDEODRIVER", None)


def can_open_window() -> bool:
    """Whether a display can be opened. The environment may name one that no longer exists."""
    try:
        _start_video()
    except UserError:
        return False
    pygame.display.quit()
    return True


def fit_picture(size: tuple[int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of the largest centred picture with the aspect of ``size`` = (H, W)."""
    factor = min(width / size[1], height / size[0])
    wide, high = max(1, round(size[1] * factor)), max(1, round(size[0] * factor))
    return (width - wide) // 2, (height - high) // 2, wide, high


class Window:
    """A resizable window. The frame is as large as its aspect ratio allows, and its edge goes on around it.

    The window opens with its first frame. Everything happens in the thread that shows frames, as macOS
    demands.

    Args:
        session: what plays; keys change it.
        folder: folder for saved pictures; the current folder if None.
        size: width and height at first, in points; if None, they are chosen for the frame.
        window_id: number of another program's X window. The lamp fills it, and no key changes the lamp.

    Attributes:
        hidden: whether the window is minimised. SDL 2 does not tell whether other windows cover it.
        fps: the display's rate, in frames per second.
    """

    def __init__(
        self,
        session: Session,
        folder: Path | None = None,
        size: tuple[int, int] | None = None,
        window_id: int | None = None,
    ) -> None:
        self.hidden = False
        self.fps: float | None = _DEFAULT_FPS
        self._session, self._folder, self._size = session, Path() if folder is None else folder, size
        self._window_id = window_id
        self._foreign: ForeignWindow | None = None
        self._window: pygame.Window | None = None
        self._renderer: Renderer  # exists while there is a window
        self._texture: Texture | None = None
        self._surround = Surround()
        self._beside: list[Texture] = []  # the surround's sides, in its order
        self._frame: Frame | None = None
        self._full = self._help = False
        self._note: tuple[str, float] | None = None  # a text, and the time at which it disappears
        self._window_actions: dict[str, Callable[[], None]] = {
            "save": self._save_picture,
            "full_screen": self._toggle_full_screen,
            "help": self._toggle_help,
        }

    def __enter__(self) -> Window:
        _start_video()
        pygame.font.init()
        pygame.event.set_blocked(None)
        pygame.event.set_allowed(_HANDLED_EVENTS)
        self.fps = float(max([*pygame.display.get_desktop_refresh_rates(), 0])) or _DEFAULT_FPS
        if self._window_id is not None:
            self._open_foreign_window(self._window_id)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._window is not None:
            # This order matters: SDL frees a window's renderer and textures with the window, and pygame would
            # free them again.
            self._texture = None
            self._beside = []
            del self._renderer
            if self._foreign is None:
                self._window.destroy()
            else:
                self._close_adopted_window(self._window, self._foreign)
            self._window = None
        pygame.quit()
        if self._foreign is not None:
            self._foreign.close()

    def show(self, frame: Frame) -> None:
        """Show a frame, uint8 (H, W, 3)."""
        self._frame = frame
        if self._window is None:
            self._open_window(frame)
        elif self._foreign is not None:
            self._follow_foreign_window(self._foreign)
        # Events are handled here too, because a slow machine never idles.
        self._handle_events(pygame.event.get())
        self._draw()

    def wait_and_react(self, seconds: float) -> None:
        """Wait for at most this many seconds, or until a key is pressed."""
        left = seconds
        if self._note is not None:
            left = min(seconds, max(self._note[1] - time.monotonic(), 0.0))
        if self._window is None or left < 1e-3:  # SDL waits for whole milliseconds
            time.sleep(left)
            events = pygame.event.get()
        else:
            events = [pygame.event.wait(int(left * 1000)), *pygame.event.get()]
        over = self._note is not None and self._note[1] <= time.monotonic()
        if self._handle_events(events) or over:
            self._draw()

    # The window.

    def _open_window(self, frame: Frame) -> None:
        height, width = frame.shape[:2]
        size = self._size if self._foreign is None else self._foreign.size()
        if size is None:
            desktop = pygame.display.get_desktop_sizes()[0]
            factor = max(_INITIAL_SIDE_POINTS / (height * width) ** 0.5, 1.0)
            factor = min(
                factor,
                _MAX_DESKTOP_FRACTION * desktop[0] / width,
                _MAX_DESKTOP_FRACTION * desktop[1] / height,
            )
            size = (round(width * factor), round(height * factor))
        try:
            # Hidden until it has its renderer: for one that needs OpenGL, SDL makes the window again.
            window = pygame.Window(self._title, size, resizable=True, allow_high_dpi=True, hidden=True)
            # With vsync a frame waits for the display, for one refresh at most. The clock does not stop.
            self._renderer = Renderer(window, vsync=True)
        except RuntimeError as error:  # pygame.error, and the renderer's own kind
            raise UserError(f"play: no window can be opened ({error}); try --screen terminal") from None
        if self._foreign is None:
            window.minimum_size = (128, 128)
            window.set_icon(pygame.image.frombuffer(frame.tobytes(), (width, height), "RGB"))
        else:
            self._foreign.adopt(window.handle)
            pygame.mouse.set_visible(False)
        window.show()
        self._window = window
        pygame.display.set_allow_screensaver(True)

    def _open_foreign_window(self, number: int) -> None:
        if pygame.display.get_driver() != "x11":
            raise UserError(
                f"play: a window of another program needs X11, but SDL uses {pygame.display.get_driver()}"
            )
        self._foreign = ForeignWindow(number)
        # Keys and the mouse are the other program's.
        pygame.event.set_blocked((pygame.KEYDOWN, pygame.QUIT))

    def _follow_foreign_window(self, foreign: ForeignWindow) -> None:
        """Fill the foreign window, whose size may have changed: SDL does not know of it, so it is asked."""
        assert self._window is not None
        size = foreign.size()
        if size is None:
            self._session.end()
        elif size != self._window.size:
            self._window.size = size

    @staticmethod
    def _close_adopted_window(window: pygame.Window, foreign: ForeignWindow) -> None:
        """Close a window that may be gone already, with the foreign one."""
        other = pygame.Window(size=(1, 1), hidden=True)
        foreign.release(window.handle, other.handle)
        window.destroy()
        # SDL waits for the server here, and so for its complaints: pygame.quit() takes their handler away.
        other.size = (2, 2)

    @property
    def _title(self) -> str:
        caption = self._session.caption
        return f"mlxlava - {Path(self._session.lamp_name).name} {self._session.seed}" + (
            caption and f" - {caption}"
        )

    def _handle_events(self, events: Iterable[pygame.Event]) -> bool:
        """Handle events. Returns whether to draw again."""
        draw = False
        for event in events:
            draw |= event.type != pygame.NOEVENT
            if event.type == pygame.QUIT:
                self._session.end()
            elif event.type in _HIDING_EVENTS:
                self.hidden = True
            elif event.type in _SHOWING_EVENTS:
                self.hidden = False
            elif event.type == pygame.KEYDOWN and not event.mod & (pygame.KMOD_CTRL | pygame.KMOD_META):
                # First what the key types, then its name: with Shift it may type something else.
                name = chr(event.key) if event.key < 128 else ""
                action = _action_of_typed_key(event.unicode) or _action_of_typed_key(name)
                if action in self._window_actions:
                    self._window_actions[action]()
                elif action is not None:
                    self._show_note(perform_action(self._session, action))
        return draw

    # What keys do.

    def _show_note(self, text: str) -> None:
        """Show a note for a while."""
        self._note = (text, time.monotonic() + _NOTE_SECONDS) if text else None

    def _save_picture(self) -> None:
        if self._frame is None:
            return
        picture = enlarge(self._frame, max(1, -(-_MIN_SAVED_SIDE_PIXELS // min(self._frame.shape[:2]))))
        stem = f"lava-{self._session.seed}-{self._session.status()['frame']}"
        try:
            for number in itertools.count(1):
                path = self._folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
                if not path.exists():
                    break
            with path.open("xb") as file:
                Image.fromarray(picture).save(file, "PNG")
        except OSError as error:
            self._show_note(f"cannot save {path.name}: {error.strerror or error}")
        else:
            self._show_note(f"saved {path.name}")

    def _toggle_full_screen(self) -> None:
        if self._window is None:
            return
        self._full = not self._full
        if self._full:
            self._window.set_fullscreen(desktop=True)
        else:
            self._window.set_windowed()
        pygame.mouse.set_visible(not self._full)
        pygame.display.set_allow_screensaver(not self._full)

    def _toggle_help(self) -> None:
        self._help = not self._help

    # The picture.

    def _draw(self) -> None:
        """Draw the last frame, and texts on it."""
        if self._window is None or self._frame is None or self.hidden:
            return
        if self._window.title != self._title:
            self._window.title = self._title
        _, _, width, height = self._renderer.get_viewport()  # in pixels; a point may have several
        self._renderer.draw_color = "black"
        self._renderer.clear()
        place = fit_picture(self._frame.shape[:2], width, height)
        self._draw_surround(self._frame, place, width, height)
        self._frame_texture(self._frame).draw(dstrect=place)
        if self._help:
            self._draw_text(_HELP_ROWS, width, height, top=True)
        if self._note is not None and self._note[1] <= time.monotonic():
            self._note = None
        if self._note is not None:
            self._draw_text(((self._note[0],),), width, height, top=False)
        self._renderer.present()

    def _draw_surround(self, frame: Frame, place: tuple[int, int, int, int], width: int, height: int) -> None:
        """Fill the window on both sides of ``place``, where the frame will be drawn."""
        if self._surround.update_from_frame(frame) or not self._beside:
            self._beside = [
                self._surround_side_texture(side, upright)
                for side, upright in zip(self._surround.sides, _SIDE_IS_COLUMN, strict=True)
            ]
        left, top, wide, high = place
        if wide < width:
            self._beside[0].draw(dstrect=(0, 0, left, height))
            self._beside[1].draw(dstrect=(left + wide, 0, width - left - wide, height))
        elif high < height:
            self._beside[2].draw(dstrect=(0, 0, width, top))
            self._beside[3].draw(dstrect=(0, top + high, width, height - top - high))

    def _surround_side_texture(self, colours: Frame, upright: bool) -> Texture:
        """A line of colours, two pixels thick, as a texture that the renderer stretches smoothly."""
        pixels = np.stack([colours, colours], axis=1 if upright else 0)
        size = (pixels.shape[1], pixels.shape[0])
        texture = Texture(self._renderer, size, scale_quality=1)
        texture.update(pygame.image.frombuffer(pixels.tobytes(), size, "RGB"))
        return texture

    def _frame_texture(self, frame: Frame) -> Texture:
        """Copy the frame into a texture that the renderer scales smoothly."""
        height, width = frame.shape[:2]
        factor = -(-_MIN_TEXTURE_SIDE_PIXELS // min(height, width))
        size = (factor * width, factor * height)
        if factor > 1:
            frame = np.asarray(resize_smoothly(frame, size[::-1]))
        if self._texture is None or (self._texture.width, self._texture.height) != size:
            self._texture = Texture(self._renderer, size, streaming=True, scale_quality=1)
        self._texture.update(pygame.image.frombuffer(np.ascontiguousarray(frame).data, size, "RGB"))
        return self._texture

    def _draw_text(self, rows: tuple[tuple[str, ...], ...], width: int, height: int, top: bool) -> None:
        """Draw rows of texts on a dark panel, at the top left or the bottom left."""
        assert self._window is not None
        least = 18 * width / max(self._window.size[0], 1)
        size = round(max(least, min(width, height) / 26))
        panel = _render_text_panel(rows, size)
        factor = min(0.96 * width / panel.width, 0.96 * height / panel.height)
        if factor < 1:
            panel = _render_text_panel(rows, int(size * factor))
        margin = round(0.02 * min(width, height))
        place = (margin, margin if top else height - margin - panel.height, *panel.size)
        Texture.from_surface(self._renderer, panel).draw(dstrect=place)


def _action_of_typed_key(typed: str) -> str | None:
    """The action of what a key types."""
    return _ACTION_OF_KEY.get(_NAMES_OF_TYPED_KEYS.get(typed, typed.lower()))


@functools.lru_cache(maxsize=4)  # drawing the help anew would cost as much as two frames
def _render_text_panel(rows: tuple[tuple[str, ...], ...], size: int) -> pygame.Surface:
    """Rows of texts in columns: white letters of ``size`` pixels on a translucent dark ground."""
    font = pygame.font.Font(None, max(size, 6))  # pygame's own font
    cells = [[font.render(cell, True, "white") for cell in row] for row in rows]
    widths = [max(cell.width for cell in column) for column in zip(*cells, strict=True)]
    pad, line = size // 2, font.get_linesize()
    extent = (sum(widths) + (len(widths) + 1) * pad, len(rows) * line + 2 * pad)
    panel = pygame.Surface(extent, pygame.SRCALPHA)
    pygame.draw.rect(panel, (0, 0, 0, 160), panel.get_rect(), border_radius=pad)
    for row, texts in enumerate(cells):
        left = pad
        for text, wide in zip(texts, widths, strict=True):
            panel.blit(text, (left, pad + row * line))
            left += wide + pad
    return panel
