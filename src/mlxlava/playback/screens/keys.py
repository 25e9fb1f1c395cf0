"""What keys do while a lamp plays in a terminal."""

from __future__ import annotations

from pathlib import Path

from mlxlava.playback.session import FASTER, Session

HELP = "space pause · +− speed · n next · w weights · q quit"


def press(session: Session, key: str) -> None:
    """Do what a key stands for: a character, or ``esc``; others do nothing."""
    key = key.lower()
    if key == " ":
        session.toggle_pause()
    elif key in ("+", "="):  # = is where + is, without shift
        session.faster(FASTER)
    elif key in ("-", "_", "−"):
        session.faster(1 / FASTER)
    elif key == "0":
        session.true_speed()
    elif key == "n":
        session.next_seed()
    elif key == "w":
        session.next_name()
    elif key in ("q", "esc"):
        session.end()


def describe(session: Session) -> str:
    """What plays, in a few words."""
    pace = "paused" if session.clock.paused else f"{session.clock.speed:.3g}×"
    return f"{Path(session.name).name}, seed {session.seed}, {pace}"
