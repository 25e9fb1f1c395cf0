"""The keys of every screen: terminal, window and web page. They are defined here and nowhere else.

A screen translates what a viewer presses into a key's name, looks up the action in ``actions_of``, does its
own actions itself (full screen, help, …) and leaves the others to ``perform``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from mlxlava.playback.session import FASTER, Session

TERMINAL, WINDOW, WEB = "terminal", "window", "web"


@dataclasses.dataclass(frozen=True)
class Binding:
    """Keys that belong together: one line of a help text.

    Attributes:
        shown: the keys, as a help text shows them.
        help: what they do.
        actions: key to action. A key is a lower-case character, ``esc`` or ``backspace``. The first key of an
            action is the one that a button shows.
        short: keys and help for the terminal's single line of help; empty to leave them out.
        screens: the screens that have these keys.
    """

    shown: str
    help: str
    actions: Mapping[str, str]
    short: str = ""
    screens: tuple[str, ...] = (TERMINAL, WINDOW, WEB)


KEYS = (
    Binding("space", "pause, go on", {" ": "pause"}, "space pause"),
    Binding(
        "+ −",
        "faster, slower",
        # = is where + is, without shift; − is the minus sign, which some keyboard layouts type.
        {"+": "faster", "=": "faster", "-": "slower", "_": "slower", "−": "slower"},
        "+− speed",
    ),
    Binding("0", "true speed", {"0": "true_speed", "backspace": "true_speed"}),
    Binding("n", "the next seed", {"n": "next_seed"}, "n next"),
    Binding("w", "another lamp", {"w": "next_name"}, "w weights"),
    Binding("s", "save a picture", {"s": "save"}, screens=(WINDOW,)),
    Binding("f", "full screen", {"f": "full_screen"}, screens=(WINDOW, WEB)),
    Binding("z", "fill the screen, or show the whole picture", {"z": "fill"}, screens=(WEB,)),
    Binding("h", "these keys", {"h": "help", "?": "help"}),
    # Viewers of a page share one lamp, so none of them can end it.
    Binding("q", "quit", {"q": "end", "esc": "end"}, "q quit", screens=(TERMINAL, WINDOW)),
    Binding("Esc", "leave the controls, so that they fade", {"esc": "leave"}, screens=(WEB,)),
)


def actions_of(screen: str) -> dict[str, str]:
    """Key to action, on a screen."""
    return {
        key: action
        for binding in KEYS
        if screen in binding.screens
        for key, action in binding.actions.items()
    }


def help_rows(screen: str) -> tuple[tuple[str, str], ...]:
    """Keys and what they do, on a screen."""
    return tuple((binding.shown, binding.help) for binding in KEYS if screen in binding.screens)


def help_line(screen: str) -> str:
    """The most important keys of a screen, in a single line."""
    return " · ".join(binding.short for binding in KEYS if binding.short and screen in binding.screens)


def _pause(session: Session) -> str:
    session.toggle_pause()
    return "paused" if session.clock.paused else "playing"


def _speed(session: Session, factor: float | None) -> str:
    """Multiply the speed; None for true speed."""
    if factor is None:
        session.true_speed()
    else:
        session.faster(factor)
    return f"speed ×{session.clock.speed:.3g}"


def _next_seed(session: Session) -> str:
    session.next_seed()
    return session.title


def _next_name(session: Session) -> str:
    return session.title if session.next_name() else "there is no other lamp"


def _end(session: Session) -> str:
    session.end()
    return ""


_ACTIONS: dict[str, Callable[[Session], str]] = {
    "pause": _pause,
    "faster": lambda session: _speed(session, FASTER),
    "slower": lambda session: _speed(session, 1 / FASTER),
    "true_speed": lambda session: _speed(session, None),
    "next_seed": _next_seed,
    "next_name": _next_name,
    "end": _end,
}


def perform(session: Session, action: str) -> str:
    """Do an action that changes what plays.

    Args:
        session: what plays.
        action: one of the actions in ``KEYS`` that no screen does itself.

    Returns:
        A few words on the outcome, for the viewer; empty if there is nothing to say.
    """
    return _ACTIONS[action](session)
