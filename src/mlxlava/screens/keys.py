"""What keys do while a lamp plays, the same on every screen that has keys."""

from __future__ import annotations

from mlxlava.live import Live

HELP = "space pause · +− speed · n next · w weights · q quit"

_FASTER = 1.25


def press(live: Live, key: str) -> bool:
    """Do what a key stands for: a character, or ``esc``. Returns whether it stands for something."""
    if key == " ":
        live.toggle()
    elif key in ("+", "="):  # = is where + is, without shift
        live.faster(_FASTER)
    elif key in ("-", "_", "−"):
        live.faster(1 / _FASTER)
    elif key == "n":
        live.choose(seed=live.seed + 1)
    elif key == "w":
        names = live.names
        live.choose(names[(names.index(live.name) + 1) % len(names)])
    elif key in ("q", "esc"):
        live.end()
    else:
        return False
    return True


def describe(live: Live) -> str:
    """What plays, in a few words."""
    pace = "paused" if live.clock.paused else f"{live.clock.speed:.3g}×"
    return f"{live.name}, seed {live.seed}, {pace}"
