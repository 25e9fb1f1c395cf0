"""The keys of every screen: terminal, window and web page. They are defined here and nowhere else.

A screen translates what a viewer presses into a key's name, looks up the action in ``actions_by_key``, does
its own actions itself (full screen, help, …) and leaves the others to ``perform_action``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from mlxlava.playback.session import SPEED_FACTOR_PER_KEY_PRESS, Session

TERMINAL, WINDOW, WEB = "terminal", "window", "web"


@dataclasses.dataclass(frozen=True)
class KeyBinding:
    """Keys that belong together: one line of a help text.

    Attributes:
        label: the keys as a help text shows them.
        help: a text that says what the keys do.
        actions: the action of each key. A key is a lower-case character, ``esc`` or ``backspace``. The first
            key of an action is the one that a button shows.
        short_help: text for the single line of help in a terminal; empty to leave the keys out of it.
        screens: the screens that have these keys.
    """

    label: str
    help: str
    actions: Mapping[str, str]
    short_help: str = ""
    screens: tuple[str, ...] = (TERMINAL, WINDOW, WEB)


KEYS = (
    KeyBinding("space", "pause, go on", {" ": "pause"}, "space pause"),
    KeyBinding(
        "+ −",
        "faster, slower",
        # = is where + is, without shift; − is the minus sign, which some keyboard layouts type.
        {"+": "faster", "=": "faster", "-": "slower", "_": "slower", "−": "slower"},
        "+− speed",
    ),
    KeyBinding("0", "true speed", {"0": "true_speed", "backspace": "true_speed"}),
    KeyBinding("n", "the next seed", {"n": "next_seed"}, "n next"),
    KeyBinding("w", "another lamp", {"w": "next_name"}, "w weights"),
    KeyBinding("s", "save a picture", {"s": "save"}, screens=(WINDOW,)),
    KeyBinding("f", "full screen", {"f": "full_screen"}, screens=(WINDOW, WEB)),
    KeyBinding("z", "fill the screen, or show the whole picture", {"z": "fill"}, screens=(WEB,)),
    KeyBinding("h", "these keys", {"h": "help", "?": "help"}),
    # Viewers of a page share one lamp, so none of them can end it.
    KeyBinding("q", "quit", {"q": "end", "esc": "end"}, "q quit", screens=(TERMINAL, WINDOW)),
    KeyBinding("Esc", "leave the controls, so that they fade", {"esc": "leave"}, screens=(WEB,)),
)


def actions_by_key(screen: str) -> dict[str, str]:
    """The action of each key of a screen."""
    return {
        key: action
        for binding in KEYS
        if screen in binding.screens
        for key, action in binding.actions.items()
    }


def help_rows(screen: str) -> tuple[tuple[str, str], ...]:
    """Rows of a screen's help text: keys, and what they do."""
    return tuple((binding.label, binding.help) for binding in KEYS if screen in binding.screens)


def help_line(screen: str) -> str:
    """A single line of help with the most important keys of a screen."""
    return " · ".join(
        binding.short_help for binding in KEYS if binding.short_help and screen in binding.screens
    )


def _toggle_pause(session: Session) -> str:
    session.toggle_pause()
    return "paused" if session.clock.paused else "playing"


def _change_speed(session: Session, factor: float | None) -> str:
    """Multiply the speed; None for true speed."""
    if factor is None:
        session.reset_speed()
    else:
        session.multiply_speed(factor)
    return f"speed ×{session.clock.speed:.3g}"


def _switch_to_next_seed(session: Session) -> str:
    session.switch_to_next_seed()
    return session.lamp_title


def _switch_to_next_lamp(session: Session) -> str:
    return session.lamp_title if session.switch_to_next_lamp() else "there is no other lamp"


def _end_session(session: Session) -> str:
    session.end()
    return ""


_ACTION_FUNCTIONS: dict[str, Callable[[Session], str]] = {
    "pause": _toggle_pause,
    "faster": lambda session: _change_speed(session, SPEED_FACTOR_PER_KEY_PRESS),
    "slower": lambda session: _change_speed(session, 1 / SPEED_FACTOR_PER_KEY_PRESS),
    "true_speed": lambda session: _change_speed(session, None),
    "next_seed": _switch_to_next_seed,
    "next_name": _switch_to_next_lamp,
    "end": _end_session,
}


def perform_action(session: Session, action: str) -> str:
    """Do an action that changes the session.

    Args:
        session: the session that plays.
        action: one of the actions in ``KEYS`` that screens do not do themselves.

    Returns:
        A few words for the viewer about the result; empty if there is nothing to say.
    """
    return _ACTION_FUNCTIONS[action](session)
