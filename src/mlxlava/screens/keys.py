"""What keys do while a lamp plays in a terminal."""

from __future__ import annotations

from pathlib import Path

from mlxlava.live import Live

HELP = "space pause · +− speed · n next · w weights · q quit"

_FASTER = 1.25
_SEEDS = 2**31


def press(live: Live, key: str) -> None:
    """Do what a key stands for: a character, or ``esc``; others do nothing."""
    key = key.lower()
    if key == " ":
        live.toggle()
    elif key in ("+", "="):  # = is where + is, without shift
        live.faster(_FASTER)
    elif key in ("-", "_", "−"):
        live.faster(1 / _FASTER)
    elif key == "0":
        live.faster(1 / live.clock.speed)
    elif key == "n":
        live.choose(seed=(live.seed + 1) % _SEEDS)
    elif key == "w" and len(live.names) > 1:
        live.choose(live.names[(live.names.index(live.name) + 1) % len(live.names)])
    elif key in ("q", "esc"):
        live.end()


def describe(live: Live) -> str:
    """What plays, in a few words."""
    pace = "paused" if live.clock.paused else f"{live.clock.speed:.3g}×"
    return f"{Path(live.name).name}, seed {live.seed}, {pace}"
