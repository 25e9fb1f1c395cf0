# pyright: strict
"""A program as a user writes it, for type checkers alone: every public function, with the types that it has.

`make check` runs mypy on it; `.github/machine types` runs mypy and pyright on it beside the installed wheel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import mlxlava
from mlxlava.training.callbacks import Callbacks, StepReport

Frame = npt.NDArray[np.uint8]


def play(picture: Frame) -> Iterator[Frame]:
    lamp: mlxlava.LavaLamp = mlxlava.load("lava")
    height, width = lamp.size
    state: npt.NDArray[np.float32] = lamp.from_picture(picture)
    clip: list[Frame] = list(lamp.frames(fps=25, seconds=10, seamless=True))
    print(height * width, lamp.step_fps * len(clip))
    yield from lamp.frames(fps=120, speed=0.1, start=state, seed=7)


class Printer(Callbacks):
    def on_step(self, report: StepReport) -> None:
        print(f"{report.step} of {report.total_steps}: {report.terms['loss_g']:.3f}")


def learn(videos: list[Path]) -> Path:
    try:
        run: mlxlava.TrainedRun = mlxlava.train(
            videos, settings={"data.size": (64, 64)}, callbacks=[Printer()]
        )
    except mlxlava.UserError as error:
        raise SystemExit(str(error)) from error
    run = mlxlava.resume(run.run, minutes=30)
    page: Path = mlxlava.report(run.run)
    figures: dict[str, Any] = mlxlava.score(run.run, videos[0])
    figures = mlxlava.drift(run.run, videos[0], frames=10_000)
    mlxlava.export(run.run, "mine", half=True, score=figures, web=Path("lamp.html"))
    return page


def describe() -> dict[str, str]:
    report: mlxlava.CheckReport = mlxlava.check(
        "memory", on_group=lambda group, results: print(group, len(results))
    )
    peaks: list[float] = [row.peak for row in mlxlava.plan("lava", memory=8.0)]
    names: list[str] = [name for name, _value, _help in mlxlava.settings("lava")]
    print(mlxlava.__version__, report.ok, max(peaks), names)
    return mlxlava.info()
