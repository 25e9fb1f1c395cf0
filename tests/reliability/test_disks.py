"""A disk that is full, read-only or gone, and a folder that is removed while a run is trained in it."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage
from mlxlava.training.callbacks import Callbacks, StepReport
from mlxlava.training.folder import make_run_folder
from mlxlava.training.loop import train
from tests.reliability.runs import BEGIN, LENGTH, RESUME, finish, require_one_line, require_sound

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("eager")]


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount something at a folder, where this user may."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", *options, folder], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)


class AtStep(Callbacks):
    """Calls ``what()`` once a step was made."""

    def __init__(self, step: int, what: object) -> None:
        self._step, self._what = step, what

    def on_step(self, report: StepReport) -> None:
        if report.step == self._step:
            assert callable(self._what)
            self._what()


@pytest.mark.parametrize(
    "how", ["removed", *(pytest.param(how, marks=pytest.mark.slow) for how in ("renamed", "replaced"))]
)
def test_a_run_whose_folder_is_gone_ends_with_an_error(
    how: str, tiny: Recipe, footage: Footage, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def lose() -> None:
        run.rename(tmp_path / "elsewhere")
        if how == "removed":
            shutil.rmtree(tmp_path / "elsewhere")
        if how == "replaced":
            make_run_folder(run, tiny, footage, [], "mlxlava train", None)

    make_run_folder(run, tiny, footage, [], "mlxlava train", None)
    with pytest.raises(UserError, match="removed or renamed while it was trained"):
        train(run, tiny, footage, callbacks=[AtStep(2, lose)])
    assert run.exists() == (how == "replaced")
    if how == "renamed":
        assert require_sound(tmp_path / "elsewhere") >= 0


@pytest.mark.parametrize("limit", [30_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_a_file_that_cannot_grow_ends_the_run_in_one_line_and_loses_nothing(
    limit: int, tiny: Recipe, footage: Footage, tmp_path: Path
) -> None:
    make_run_folder(tmp_path, tiny, footage, [], "mlxlava train", None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match="cannot write"):
            train(tmp_path, tiny, footage)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert require_sound(tmp_path) >= 0
    assert train(tmp_path, tiny, footage).step == 6


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_time_ends_the_run_in_one_line(tmp_path: Path) -> None:
    """A small tmpfs that is filled up, so that less and less is free for the run."""
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        run, endings = disk / "run", set()
        for free in range(0, 1_900_000, 1_900_000 // (12 * LENGTH)):
            (disk / "ballast").unlink(missing_ok=True)
            shutil.rmtree(run, ignore_errors=True)
            size = shutil.disk_usage(disk).free - free
            (disk / "ballast").write_bytes(bytes(max(0, size)))
            outcome = finish([*BEGIN, "-o", str(run), "--steps", "12"])
            endings.add(outcome[0])
            if outcome[0]:
                assert "cannot write" in require_one_line(outcome)
            (disk / "ballast").unlink()
            kept = require_sound(run)
            again = RESUME if kept >= 0 else BEGIN
            status, said = finish([*again, "-o", str(run), *([] if kept >= 0 else ["--steps", "12"])])
            assert status == 0 and require_sound(run) == 12, said
        assert endings == {0, 2}


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_ends_the_run_in_one_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=8m", "tmpfs"):
        run = disk / "run"
        assert finish([*BEGIN, "-o", str(run), "--steps", "4"])[0] == 0
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for command in (
            [*RESUME, "-o", str(run), "--steps", "8"],
            [*BEGIN, "-o", str(disk / "new"), "--steps", "4"],
        ):
            line = require_one_line(finish(command))
            assert "cannot write" in line and "Read-only" in line
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert require_sound(run) == 4
