"""What keys do while a lamp plays in a terminal."""

from __future__ import annotations

from pathlib import Path

from mlxlava.playback.session import FASTER, Live

HELP = "space pause · +− speed · n next · w weights · q quit"


def press(live: Live, key: str) -> None:
    """Do what a key stands for: a character, or ``esc``; others do nothing."""
    key = key.lower()
    if key == " ":
        live.toggle()
    elif key in ("+", "="):  # = is where + is, without shift
        live.faster(FASTER)
    elif key in ("-", "_", "−"):
        live.faster(1 / FASTER)
    elif key == "0":
        live.true_speed()
    elif key == "n":
        live.next_seed()
    elif key == "w":
        live.next_name()
    elif key in ("q", "esc"):
        live.end()


def describe(live: Live) -> str:
    """What plays, in a few words."""
    pace = "paused" if live.clock.paused else f"{live.clock.speed:.3g}×"
    return f"{Path(live.name).name}, seed {live.seed}, {pace}"
