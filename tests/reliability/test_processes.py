"""A process that is killed or interrupted at any time, and two processes that want the same run."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.training.lock import lock_new_run, lock_run
from tests.reliability.runs import (
    BEGIN,
    LENGTH,
    RESUME,
    digest_of_state,
    finish,
    require_one_line,
    require_sound,
    start,
    wait_until_it_has_worked,
    wait_until_python_has_started,
)

pytestmark = pytest.mark.device

_OTHER = "import sys, time; from pathlib import Path; from mlxlava.training.lock import lock_run\n"
_OTHER += "with lock_run(Path(sys.argv[1])): print('locked', file=sys.stderr, flush=True); time.sleep(60)"


def test_a_run_is_locked_before_anything_is_read_or_written(tmp_path: Path, tiny: Recipe) -> None:
    """The refused one leaves every byte as it was: so far as it knew, a run was just being begun there."""
    other = start([sys.executable, "-c", _OTHER, str(tmp_path)])
    assert other.stderr is not None and other.stderr.readline() == "locked\n"
    (tmp_path / "config.json").write_text("half a con")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for command in ([*RESUME, "--steps", "9"], [*BEGIN, "--steps", "9"]):
        line = require_one_line(finish([*command, "-o", str(tmp_path)]))
        assert "is being trained by another process" in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    other.kill()
    other.communicate()
    with lock_run(tmp_path), lock_run(tmp_path):  # free as soon as the process is gone; a thread may nest it
        pass


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").touch()
    for folder in (tmp_path / "runs/new", tmp_path / "photos"):
        with pytest.raises(UserError, match="wrong"), lock_new_run(folder):
            raise UserError("wrong")
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "holiday.jpg"]


@pytest.mark.slow
def test_of_two_starts_in_one_folder_one_is_refused(tmp_path: Path) -> None:
    for trial in range(3 * LENGTH):
        run = tmp_path / str(trial)
        both = [start([*BEGIN, "-o", str(run), "--steps", "4", "--seed", str(seed)]) for seed in (1, 2)]
        ended = [(process, process.communicate(timeout=600)[1]) for process in both]
        statuses = sorted(process.returncode for process, _ in ended)
        assert statuses == [0, 2], ended
        winner = 1 if ended[0][0].returncode == 0 else 2
        config = json.loads((run / "config.json").read_text())
        assert config["recipe"]["training"]["seed"] == winner
        alone = tmp_path / f"alone-{trial}"
        assert finish([*BEGIN, "-o", str(alone), "--steps", "4", "--seed", str(winner)])[0] == 0
        assert digest_of_state(run) == digest_of_state(alone)


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_times_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Kernels are compiled, and kept in a folder of the test.

    As many kills as it takes come while the first ones are compiled. They are not counted.
    """
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    start_compiled = functools.partial(start, compiled=True, env={"TMPDIR": str(kernels)})
    finish_compiled = functools.partial(finish, compiled=True, env={"TMPDIR": str(kernels)})
    rng, steps = random.Random(0), ["--steps", "600"]
    run, kills, most, has_learned = tmp_path / "run", 0, -1, False
    while kills < 50 * LENGTH:
        kept = require_sound(run)
        assert kept >= most
        most, has_learned = kept, has_learned or kept > 0
        if kept == 600:  # finished sooner than it was killed often enough
            run, most = tmp_path / f"run-{kills}", -1
            continue
        command = [*RESUME, "-o", str(run)] if kept >= 0 else [*BEGIN, "-o", str(run), *steps]
        process = start_compiled(command)
        wait_until_it_has_worked(process, rng.uniform(0.1, 8))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += has_learned
        said = process.communicate()[1]
        assert "Traceback" not in said and "damaged" not in said, said
    if require_sound(run) < 600:
        command = [*RESUME, "-o", str(run)] if require_sound(run) >= 0 else [*BEGIN, "-o", str(run), *steps]
        assert finish_compiled(command)[0] == 0
    assert finish_compiled([*BEGIN, "-o", str(tmp_path / "whole"), *steps])[0] == 0
    assert list(kernels.rglob("*.so"))
    assert digest_of_state(run) == digest_of_state(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("compiling", [True, False])
def test_ctrl_c_at_any_time_is_no_traceback_and_breaks_nothing(compiling: bool, tmp_path: Path) -> None:
    """The whole group of processes gets it, as from a terminal: so the compilers that MLX starts too."""
    rng, compiled = random.Random(1), False
    for trial in range(12 * LENGTH):
        run, kernels = tmp_path / f"run-{trial}", tmp_path / f"kernels-{trial}"
        kernels.mkdir()
        process = start(
            [*BEGIN, "-o", str(run), "--steps", "100000"],
            compiled=compiling,
            env={"TMPDIR": str(kernels)},
        )
        wait_until_python_has_started(process)
        wait_until_it_has_worked(process, rng.uniform(2, 15) if compiling else rng.uniform(0, 4))
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=300)[1]
        assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in said, said
        require_sound(run)
        compiled |= any(kernels.rglob("*.cpp"))
    assert compiled == compiling
