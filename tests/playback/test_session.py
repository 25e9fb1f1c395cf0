"""What viewers ask for is done between two frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest

from mlxlava.playback.clock import WallClock
from mlxlava.playback.session import FrameSource, Session
from mlxlava.playback.writers import Frame
from tests.playback.wall import Wall


class Shades:
    """Lamps of one brightness each, which is their seed."""

    names: Sequence[str] = ["a", "b"]

    def open(self, name: str, seed: int) -> FrameSource:
        def play(times: Iterable[float]) -> Iterator[tuple[float, Frame]]:
            for at in times:
                yield at, np.full((16, 16, 3), seed, np.uint8)

        return FrameSource(play, (16, 16), lambda: (0.0, 1.0, 0.0, 3.0))


def test_another_lamp_begins_at_its_beginning() -> None:
    wall = Wall()
    session = Session(Shades(), "a", 1, WallClock(10, now=wall.now, sleep=wall.sleep))
    seen = []
    for source in session.frame_sources():
        for at, frame in source.play(session.clock):
            session.clock.wait_until(at)
            if session.should_leave_lamp:
                break
            session.count_shown_frame(at)
            seen.append((session.lamp_name, int(frame[0, 0, 0]), round(at, 3)))
            if len(seen) == 3:
                session.choose_lamp(seed=7)
            elif len(seen) == 5:
                session.choose_lamp("b")
            elif len(seen) == 7:
                session.end()
    assert [one[:2] for one in seen] == [("a", 1)] * 3 + [("a", 7)] * 2 + [("b", 7)] * 2
    assert [one[2] for one in seen] == pytest.approx([0, 0.1, 0.2, 0, 0.1, 0, 0.1])
    assert session.status()["frame"] == 2
    with pytest.raises(KeyError):
        session.choose_lamp("c")


def test_a_lamp_that_is_chosen_in_a_pause_shows_its_first_frame() -> None:
    wall = Wall()
    session = Session(Shades(), "a", 1, WallClock(10, now=wall.now, sleep=wall.sleep))
    wall.time += 0.05
    session.toggle_pause()
    session.choose_lamp(seed=7)
    sources = session.frame_sources()
    next(sources)
    at, frame = next(iter(next(sources).play(session.clock)))
    before = wall.time
    session.clock.wait_until(at)
    assert (at, wall.time, int(frame[0, 0, 0])) == (0, before, 7)


def test_after_the_last_seed_and_name_come_the_first() -> None:
    session = Session(Shades(), "a", 2**31 - 1, WallClock(10))
    session.switch_to_next_seed()
    assert session.seed == 0
    assert session.switch_to_next_lamp() and session.lamp_name == "b"
    assert session.switch_to_next_lamp() and session.lamp_name == "a"
    assert session.seed == 0
