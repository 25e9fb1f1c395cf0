"""The clock of playback, on a wall clock that only moves when the test says so."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mlxlava.playback.clock import WallClock
from mlxlava.playback.writers import Frame
from tests.playback.wall import Wall


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
        clock.wait_until(at)
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
    clock.wait_until(0.7)
    assert wall.time == pytest.approx(1000.7)
    clock.wait_until(0.3)
    assert wall.time == pytest.approx(1000.7)


def test_it_goes_on_where_it_was_after_a_pause() -> None:
    wall = Wall()
    clock = WallClock(10, now=wall.now, sleep=wall.sleep)
    next(clock)
    clock.wait_until(2.0)  # a long sleep is no pause
    assert next(clock) == pytest.approx(2.0)
    wall.time += 3600
    assert next(clock) == pytest.approx(2.1)
    clock.wait_until(2.1)
    assert wall.time == pytest.approx(1000 + 3600 + 2.1)

    asleep = iter([3600.0])

    def sleep(seconds: float) -> None:  # the machine is put to sleep while we sleep
        wall.time += seconds + next(asleep, 0.0)

    start = wall.time
    clock = WallClock(10, now=wall.now, sleep=sleep)
    next(clock)
    clock.wait_until(0.3)
    assert next(clock) == pytest.approx(0.3)
    assert wall.time - start == pytest.approx(3600 + 0.6)


def test_speed_counts_from_the_moment_it_changes() -> None:
    wall = Wall()
    clock = WallClock(10, now=wall.now, sleep=wall.sleep)
    assert [next(clock) for _ in range(3)] == pytest.approx([0, 0.1, 0.2])
    clock.wait_until(0.2)
    clock.speed = 5
    assert [next(clock), next(clock)] == pytest.approx([0.7, 1.2])
    clock.wait_until(1.2)
    assert wall.time == pytest.approx(1000.4)
    clock.speed = 0.1
    assert [next(clock), next(clock)] == pytest.approx([1.21, 1.22])
    clock.wait_until(1.22)
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
    clock.wait_until(0.5)
    clock.paused = True
    resumes = wall.time + 3

    def sleep(seconds: float) -> None:
        wall.sleep(seconds)
        if clock.paused and wall.time >= resumes:
            clock.paused = False

    clock.sleep = sleep
    assert next(clock) == pytest.approx(0.5)
    clock.wait_until(1.0)
    assert wall.time == pytest.approx(1000 + 0.5 + 3 + 0.5)
    assert next(clock) == pytest.approx(1.0)


def test_fewer_frames_are_as_fast() -> None:
    wall = Wall()
    clock = WallClock(20, now=wall.now, sleep=wall.sleep)
    for _ in range(21):
        clock.wait_until(next(clock))
    assert wall.time == pytest.approx(1001)
    clock.target_fps = 2
    assert [next(clock), next(clock)] == pytest.approx([1.5, 2.0])
    clock.wait_until(2.0)
    clock.target_fps = 20
    assert [next(clock), next(clock)] == pytest.approx([2.05, 2.1])


def test_who_waits_for_a_frame_is_woken_by_another_lamp() -> None:
    wall = Wall()
    clock = WallClock(10, now=wall.now, sleep=wall.sleep)

    def sleep(seconds: float) -> None:
        wall.sleep(seconds)
        clock.interrupt_waiting()

    clock.sleep = sleep
    clock.wait_until(60)
    assert wall.time < 1002
