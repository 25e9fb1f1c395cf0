"""Keys are defined once: every screen, its help and the documentation agree with the table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from mlxlava.playback.clock import WallClock
from mlxlava.playback.keys import (
    KEYS,
    TERMINAL,
    WEB,
    WINDOW,
    actions_by_key,
    help_line,
    help_rows,
    perform_action,
)
from mlxlava.playback.session import FrameSource, Session
from mlxlava.playback.writers import Frame

SCREENS = (TERMINAL, WINDOW, WEB)
PAGE = Path(__file__).parents[2] / "src/mlxlava/playback/screens/page"
DOCS = Path(__file__).parents[2] / "docs/playing.md"

# What a screen does itself; `perform_action` does the rest.
OWN = {
    TERMINAL: {"help"},
    WINDOW: {"help", "save", "full_screen"},
    WEB: {"help", "full_screen", "fill", "leave"},
}


class Two:
    names: Sequence[str] = ["a", "folder/b"]

    def open(self, name: str, seed: int) -> FrameSource:
        def play(times: Iterable[float]) -> Iterator[tuple[float, Frame]]:
            yield from ()

        return FrameSource(play, (16, 16))


@pytest.fixture
def session() -> Session:
    return Session(Two(), "a", 3, WallClock(30))


@pytest.mark.parametrize("screen", SCREENS)
def test_no_key_means_two_things(screen: str) -> None:
    keys = [key for binding in KEYS if screen in binding.screens for key in binding.actions]
    assert len(keys) == len(set(keys))


def test_a_key_that_two_screens_have_does_the_same_on_both() -> None:
    for key in set().union(*map(actions_by_key, SCREENS)) - {"esc"}:  # on a page Esc cannot end a shared lamp
        assert len({actions[key] for actions in map(actions_by_key, SCREENS) if key in actions}) == 1


@pytest.mark.parametrize("screen", [TERMINAL, WINDOW])
def test_every_action_is_done(screen: str, session: Session) -> None:
    for action in set(actions_by_key(screen).values()) - OWN[screen]:
        session.clock.speed = 2.0  # the key for normal speed changes nothing else
        before = (session.status(), session.ended)
        perform_action(session, action)
        assert (session.status(), session.ended) != before


@pytest.mark.parametrize(
    ("keys", "changed", "said"),
    [
        (" ", {"paused": True}, "paused"),
        ("  ", {}, "playing"),
        ("+", {"speed": 1.25}, "speed ×1.25"),
        ("=", {"speed": 1.25}, "speed ×1.25"),
        ("-_−", {"speed": 0.8**3}, "speed ×0.512"),
        ("+0", {}, "speed ×1"),
        ("n", {"seed": 4}, "a, seed 4"),
        ("w", {"name": "folder/b"}, "b, seed 3"),
    ],
)
def test_what_keys_do_and_say(keys: str, changed: dict[str, object], said: str, session: Session) -> None:
    before = session.status()
    for key in keys:
        answer = perform_action(session, actions_by_key(TERMINAL)[key])
    assert session.status() == pytest.approx(before | changed)
    assert answer == said


@pytest.mark.parametrize("key", ["q", "esc"])
def test_keys_that_end_the_play(key: str, session: Session) -> None:
    perform_action(session, actions_by_key(TERMINAL)[key])
    assert session.ended


def test_help_names_keys_that_are_there() -> None:
    names = {"space": " ", "Esc": "esc"}
    for screen in SCREENS:
        for shown, _ in help_rows(screen):
            for key in shown.split():
                assert names.get(key, key) in actions_by_key(screen)
    assert help_line(TERMINAL) == "space pause · +− speed · n next · w weights · q quit"


def test_the_page_does_what_its_keys_ask_for() -> None:
    script = (PAGE / "lamp.js").read_text(encoding="utf-8")
    body = re.search(r"\nconst actions = \{\n(.*?)\n\};\n", script, re.DOTALL)
    assert body is not None
    assert set(re.findall(r"^  (\w+)[:,]", body[1], re.MULTILINE)) == set(actions_by_key(WEB).values())
    controls = re.findall(r'data-actions="([^"]*)"', (PAGE / "index.html").read_text(encoding="utf-8"))
    assert set(" ".join(controls).split()) == set(actions_by_key(WEB).values()) - {"help", "leave"}


def test_the_documentation_has_the_same_keys() -> None:
    text = DOCS.read_text(encoding="utf-8").partition("\n## ")[0]
    rows = re.findall(r"^\| (.+) \| .+ \| (.+) \|$", text, re.MULTILINE)
    documented = {(keys.split(", ")[0], screens): keys.split(", ") for keys, screens in rows[1:]}
    for binding in KEYS:
        screens = "everywhere" if binding.screens == SCREENS else ", ".join(binding.screens)
        keys = documented.pop((binding.label, screens))
        assert ("backspace" in keys, "Esc" in keys) == (
            "backspace" in binding.actions,
            "esc" in binding.actions,
        )
    assert not documented
