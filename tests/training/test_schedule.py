"""Progress follows decisions: it rises to 1, learning rates fall to 0, D stays, and minutes are kept."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mlxlava
from mlxlava.backend import arrays_by_name
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage
from mlxlava.paths import latest_checkpoint_folder
from mlxlava.training.checkpoint import load_checkpoint
from mlxlava.training.folder import make_run_folder, schedule_of_run, write_config
from mlxlava.training.loop import train
from mlxlava.training.pace import AwakeClock, Pace
from mlxlava.training.schedule import Decision, Schedule, learning_rates
from mlxlava.training.step import StepKind, Trainer
from tests.conftest import StopAtNextStep

pytestmark = pytest.mark.usefixtures("eager")


def rates_of(recipe: Recipe, schedule: Schedule) -> list[float]:
    return [learning_rates(recipe, schedule, step)[0] for step in range(schedule.total_steps + 1)]


def test_a_fixed_length_has_the_cosine_of_the_recipe() -> None:
    recipe = override(load_recipe("lava"), {"training.warm_up": 0})
    schedule = Schedule.of_steps(100)
    expected = [1e-3 * 0.5 * (1 + np.cos(np.pi * step / 100)) for step in range(101)]
    assert rates_of(recipe, schedule) == pytest.approx(expected)
    assert schedule.first_step_at(0.4) == 40 and schedule.first_step_at(1.0) == 100
    # D's falls as slowly, from the step on at which it joins in.
    of_d = [learning_rates(recipe, schedule, step)[1] for step in range(40, 101)]
    assert of_d == pytest.approx([0.6 * rate for rate in expected[:61]])


def test_progress_goes_on_smoothly_when_the_length_changes() -> None:
    schedule = Schedule.of_steps(100).with_decision(20, 60).with_decision(50, 200)
    progress = [schedule.progress(step) for step in range(schedule.total_steps + 1)]
    assert progress[0] == 0 and progress[-1] == 1 and schedule.total_steps == 200
    steps = np.diff(progress)
    assert (steps > 0).all() and steps.max() == pytest.approx(0.8 / 40)
    assert schedule.first_step_at(0.4) == 30


def test_lengthening_keeps_d_and_lets_learning_go_on() -> None:
    recipe = override(load_recipe("lava"), {"training.warm_up": 0})
    finished = Schedule.of_steps(100)
    longer = finished.lengthen(100, 300, 0.4)
    assert longer.first_step_at(0.4) == 40
    assert learning_rates(recipe, finished, 99)[0] < 1e-6
    # As in a run that had 300 steps from its beginning.
    assert rates_of(recipe, longer)[100:] == pytest.approx(rates_of(recipe, Schedule.of_steps(300))[100:])
    # Before D has joined in, nothing jumps.
    early = finished.lengthen(20, 300, 0.4)
    assert early.progress(20) == pytest.approx(0.2) and early.first_step_at(0.4) == 90
    shorter = finished.lengthen(60, 80, 0.4)
    assert shorter.progress(60) == pytest.approx(0.6) and shorter.progress(80) == 1


def test_a_schedule_is_kept_in_the_config_and_older_runs_have_one() -> None:
    schedule = Schedule((Decision(0, 9), Decision(4, 7, True)), 1.5)
    assert Schedule.from_config(json.loads(json.dumps(schedule.to_config()))) == schedule
    assert Schedule.from_config({"total_steps": 9}) == Schedule.of_steps(9)


def state_of(run: Path, recipe: Recipe) -> dict[str, np.ndarray]:
    latest = latest_checkpoint_folder(run)
    assert latest is not None
    state = load_checkpoint(latest, Trainer(recipe, 9).init())[0]
    return {name: np.array(array) for name, array in arrays_by_name(state).items()}


def test_with_the_same_decisions_a_resumed_run_gives_the_same_weights(
    tiny: Recipe, footage: Footage, tmp_path: Path
) -> None:
    schedule = Schedule.of_steps(9).with_decision(2, 5).with_decision(3, 8)
    for name in ("whole", "broken"):
        run = tmp_path / name
        make_run_folder(run, tiny, footage, ["lamp.mov"], "mlxlava train lamp.mov", None)
        config = json.loads((run / "config.json").read_text())
        write_config(run, {**config, **schedule.to_config()})
    assert train(tmp_path / "whole", tiny, footage).step == 8
    for step in itertools.count(1):
        done = train(tmp_path / "broken", tiny, footage, callbacks=[StopAtNextStep()])
        if done.signal is None:
            break
        assert step < 9
    whole, broken = (state_of(tmp_path / name, tiny) for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    for name, array in whole.items():
        assert np.array_equal(array, broken[name]), name


# --- minutes ---


def begin(run: Path, recipe: Recipe, footage: Footage, minutes: float) -> None:
    make_run_folder(run, recipe, footage, ["lamp.mov"], "mlxlava train", None, (), minutes)


@pytest.fixture
def _ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of a second passes whenever the time is asked for."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 0.01 * next(ticks))
    monkeypatch.setattr("mlxlava.training.pace.time", clock)


@pytest.mark.slow
@pytest.mark.usefixtures("_ticking")
def test_minutes_give_a_finished_run(
    tiny: Recipe, footage: Footage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = override(
        tiny, {"training.steps": 100_000, "training.checkpoint_every": 100_000, "loss.d_start": 0.4}
    )
    begin(tmp_path, long, footage, 0.05)
    done = train(tmp_path, long, footage)
    assert 5 < done.step == done.total_steps < 100_000
    assert done.seconds == pytest.approx(3.0, rel=0.1)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    joined = next(line["step"] for line in log if "loss_d" in line)
    schedule = schedule_of_run(tmp_path)
    assert joined - 1 == schedule.first_step_at(0.4) > 0
    assert learning_rates(long, schedule, done.step)[0] < 1e-9
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["total_steps"] == done.step
    (choice,) = config["choices"]
    assert (choice["setting"], choice["value"]) == ("training.steps", done.step)
    assert "train: training.steps = " in capsys.readouterr().err
    # More minutes lengthen it, and D stays.
    more = mlxlava_resume(tmp_path, footage, minutes=0.02)
    assert more.step == more.total_steps > done.step
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all("loss_d" in line for line in lines[joined:])
    assert mlxlava_resume(tmp_path, footage).step == more.step  # nothing is left to do


def mlxlava_resume(run: Path, footage: Footage, **options: Any) -> Any:
    """Resume a run whose sources never existed: its prepared footage is there."""
    assert footage.key
    return mlxlava.resume(run, **options)


def test_time_that_is_spent_before_counts(tiny: Recipe, footage: Footage, tmp_path: Path) -> None:
    long = override(tiny, {"training.steps": 100_000})
    begin(tmp_path, long, footage, 0.5)
    done = train(tmp_path, long, footage, spent=29.5)
    assert done.seconds >= 29.5 and done.step < 1000


def pace_of(recipe: Recipe, plain: float, judged: float, penalised: float) -> Pace:
    pace = Pace(Trainer(recipe, 100))
    pace.note(StepKind(False, False), plain)
    pace.note(StepKind(True, False), judged)
    pace.note(StepKind(True, True), penalised)
    return pace


def test_as_many_steps_as_fit_into_the_time() -> None:
    recipe = load_recipe("lava")  # D from 0.4 on, penalties in every eighth step
    pace = pace_of(recipe, 1.0, 2.0, 10.0)
    total = pace.total_steps_within(3600, Schedule.of_steps(10), 0)
    assert total == int(3600 / (0.4 * 1 + 0.6 * 3))
    schedule = Schedule.of_steps(total)
    assert pace.seconds_left(schedule, 0) == pytest.approx(3600, rel=0.01)
    # The machine gets twice as slow in the middle.
    half = total // 2
    slow = pace_of(recipe, 2.0, 4.0, 20.0)
    left = pace.seconds_left(schedule, half)
    schedule = schedule.with_decision(half, slow.total_steps_within(left, schedule, half))
    assert slow.seconds_left(schedule, half) == pytest.approx(left, rel=0.01)


def test_time_asleep_does_not_count() -> None:
    now = [0.0]
    clock = AwakeClock(lambda: now[0])
    now[0] = 10.0
    assert clock.leave_out_pause(10.0, usual=0.5) == 0  # something was slow
    now[0] += 3600
    assert clock.leave_out_pause(3600, usual=0.5) == 3599.5
    assert clock.seconds() == pytest.approx(10.5)
    assert clock.leave_out_pause(130.0, usual=60.0) == 0  # large steps on a slow machine


def test_fewer_steps_than_were_made_are_one_line(tiny: Recipe, footage: Footage, tmp_path: Path) -> None:
    make_run_folder(tmp_path, tiny, footage, ["lamp.mov"], "mlxlava train", None)
    train(tmp_path, tiny, footage)
    with pytest.raises(UserError, match=r"has made 6 steps, more than --steps 3; give more"):
        mlxlava_resume(tmp_path, footage, steps=3)
    with pytest.raises(UserError, match="steps or minutes, not both"):
        mlxlava_resume(tmp_path, footage, steps=9, minutes=1)
