"""The clock runs on a fake wall clock; what viewers ask for is done between two frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest

from mlxlava.playback.session import FrameSource, Session, WallClock
from mlxlava.playback.writers import Frame


class Wall:
    """A wall clock that moves when it is slept on, or by hand."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.time += seconds


def drawn(clock: WallClock, wall: Wall, costs: Iterator[float]) -> Iterator[tuple[float, Frame]]:
    """A roll-out: asks for the next time, which costs, before it yields the frame that it has."""
    frame = np.zeros((16, 16, 3), np.uint8)
    queued: float | None = None
    for at in clock:
        wall.time += next(costs)
        if queued is not None:
            yield queued, frame
        queued = at
    if queued is not None:
        yield queued, frame


def played(cost: float, seconds: float, fps: float = 20) -> tuple[int, list[float]]:
    """How many frames were shown, and when."""
    wall = Wall()
    clock = WallClock(fps, seconds=seconds, now=wall.now, sleep=wall.sleep)
    times = []
    for at, _ in drawn(clock, wall, iter(lambda: cost, None)):
        clock.wait(at)
        times.append(wall.time - 1000)
    return len(times), times


def test_a_fast_lamp_keeps_every_tick() -> None:
    count, times = played(cost=0.004, seconds=2)
    assert count == 40
    assert times[1:] == pytest.approx([i / 20 for i in range(1, 40)], abs=1e-6)


def test_a_slow_lamp_drops_frames_and_keeps_its_speed() -> None:
    count, times = played(cost=0.12, seconds=6)
    assert 6 / 0.12 * 0.9 <= count <= 6 / 0.12 * 1.1 + 1  # as many as can be drawn
    assert 6 - 0.3 <= times[-1] <= 6 + 0.3
    assert max(np.diff(times)) < 0.2


@pytest.mark.parametrize(
    ("fps", "seconds", "count"), [(20, 1, 20), (29.97, 10, 300), (0.5, 4, 2), (3, 0.1, 1)]
)
def test_seconds_end_it(fps: float, seconds: float, count: int) -> None:
    assert played(cost=0.001, seconds=seconds, fps=fps)[0] == count


def test_ticks_that_are_past_are_skipped() -> None:
    wall = Wall()
    clock = WallClock(10, now=wall.now, sleep=wall.sleep)
    assert [next(clock), next(clock), next(clock)] == pytest.approx([0, 0.1, 0.2])
    wall.time += 0.55
    assert next(clock) == pytest.approx(0.6)
    wall.time += 0.05
    assert next(clock) == pytest.approx(0.7)  # 0.6 is due right now but taken
    clock.wait(0.7)
    assert wall.time == pytest.approx(1000.7)
    clock.wait(0.3)
    assert wall.time == pytest.approx(1000.7)


def test_it_goes_on_where_it_was_after_a_pause() -> None:
    wall = Wall()
    clock = WallClock(10, now=wall.now, sleep=wall.sleep)
    next(clock)
    clock.wait(2.0)  # a long sleep is no pause
    assert next(clock) == pytest.approx(2.0)
    wall.time += 3600
    assert next(clock) == pytest.approx(2.1)
    clock.wait(2.1)
    assert wall.time == pytest.approx(1000 + 3600 + 2.1)

    asleep = iter([3600.0])

    def sleep(seconds: float) -> None:  # the machine is put to sleep while we sleep
        wall.time += seconds + next(asleep, 0.0)

    start = wall.time
    clock = WallClock(10, now=wall.now, sleep=sleep)
    next(clock)
    clock.wait(0.3)
    assert next(clock) == pytest.approx(0.3)
    assert wall.time - start == pytest.approx(3600 + 0.6)


def test_speed_counts_from_the_moment_it_changes() -> None:
    wall = Wall()
    clock = WallClock(10, now=wall.now, sleep=wall.sleep)
    assert [next(clock) for _ in range(3)] == pytest.approx([0, 0.1, 0.2])
    clock.wait(0.2)
    clock.speed = 5
    assert [next(clock), next(clock)] == pytest.approx([0.7, 1.2])
    clock.wait(1.2)
    assert wall.time == pytest.approx(1000.4)
    clock.speed = 0.1
    assert [next(clock), next(clock)] == pytest.approx([1.21, 1.22])
    clock.wait(1.22)
    assert wall.time == pytest.approx(1000.6)


def test_the_time_of_the_lamp_never_falls() -> None:
    wall = Wall()
    clock = WallClock(10, speed=50, now=wall.now, sleep=wall.sleep)
    given = [next(clock) for _ in range(3)]
    clock.speed = 0.05
    given += [next(clock) for _ in range(3)]
    assert given == sorted(given)


def test_time_stands_still_while_it_is_paused() -> None:
    wall = Wall()
    clock = WallClock(10, now=wall.now, sleep=wall.sleep)
    clock.wait(0.5)
    clock.paused = True
    for _ in range(8):
        wall.sleep(0.4)
        assert next(clock) == pytest.approx(0.6, abs=0.11)
        clock._grid = (0.0, 5)
    clock.paused = False
    began = wall.time
    clock.wait(1.0)
    assert wall.time - began == pytest.approx(0.5)


def test_fewer_frames_are_as_fast() -> None:
    wall = Wall()
    clock = WallClock(20, now=wall.now, sleep=wall.sleep)
    for _ in range(21):
        clock.wait(next(clock))
    assert wall.time == pytest.approx(1001)
    clock.fps = 2
    assert [next(clock), next(clock)] == pytest.approx([1.5, 2.0])
    clock.wait(2.0)
    clock.fps = 20
    assert [next(clock), next(clock)] == pytest.approx([2.05, 2.1])


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
    for source in session.sources():
        for at, frame in source.play(session.clock):
            session.clock.wait(at)
            if session.changed:
                break
            session.frame_shown(at)
            seen.append((session.name, int(frame[0, 0, 0]), round(at, 3)))
            if len(seen) == 3:
                session.choose(seed=7)
            elif len(seen) == 5:
                session.choose("b")
            elif len(seen) == 7:
                session.end()
    assert [one[:2] for one in seen] == [("a", 1)] * 3 + [("a", 7)] * 2 + [("b", 7)] * 2
    assert [one[2] for one in seen] == pytest.approx([0, 0.1, 0.2, 0, 0.1, 0, 0.1])
    assert session.status()["frame"] == 2
    with pytest.raises(KeyError):
        session.choose("c")


def test_a_lamp_that_is_chosen_in_a_pause_shows_its_first_frame() -> None:
    wall = Wall()
    session = Session(Shades(), "a", 1, WallClock(10, now=wall.now, sleep=wall.sleep))
    wall.time += 0.05
    session.toggle_pause()
    session.choose(seed=7)
    sources = session.sources()
    next(sources)
    at, frame = next(iter(next(sources).play(session.clock)))
    before = wall.time
    session.clock.wait(at)
    assert (at, wall.time, int(frame[0, 0, 0])) == (0, before, 7)


def test_who_waits_for_a_frame_is_woken_by_another_lamp() -> None:
    wall = Wall()
    clock = WallClock(10, now=wall.now, sleep=wall.sleep)

    def sleep(seconds: float) -> None:
        wall.sleep(seconds)
        clock.interrupt()

    clock.sleep = sleep
    clock.wait(60)
    assert wall.time < 1002


def test_after_the_last_seed_and_name_come_the_first() -> None:
    session = Session(Shades(), "a", 2**31 - 1, WallClock(10))
    session.next_seed()
    assert session.seed == 0
    assert session.next_name() and session.name == "b"
    assert session.next_name() and session.name == "a"
    assert session.seed == 0
