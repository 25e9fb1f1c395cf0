"""The report of a run: a page of its own that asks for nothing and shows what the run's folder has."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlxlava.config import Recipe
from mlxlava.console import say
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage
from mlxlava.training.callbacks import Callbacks, StepReport
from mlxlava.training.curves import Curves, read_curves
from mlxlava.training.folder import make_run_folder
from mlxlava.training.loop import train
from mlxlava.training.report import write_report
from tests.conftest import StopAtNextStep
from tests.playback.screens.chromium import CHROMIUM, Tab, chromium

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>%%DATA%%&\"'"


pytestmark = pytest.mark.usefixtures("eager")


def write_run(run: Path, *, steps: int = 300, previews: int = 5, **config: Any) -> None:
    """The folder of a run as an older version left it, without checkpoints."""
    (run / "previews").mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "seconds": step * 1.5, "reconstruction": 900 / step, "kl": 100.0}
        line |= {"motion_real": 0.02, "motion_drawn": 0.018, "state_mean": 0.0, "state_std": 1.0}
        line |= {"state_spread": 0.9, "clips_per_second": 12.0}
        if step > 120:
            line |= {"loss_d": 0.5, "loss_g": 0.9} | ({"r1": 3.0, "r2": 2.0} if step % 8 == 0 else {})
        lines.append(json.dumps(line))
    (run / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 301, "los')
    rng = np.random.default_rng(0)
    for number in range(previews):
        pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(run / "previews" / f"{50 * (number + 1):06d}.png")
    about = {
        "format": 1,
        "step_fps": 5.0,
        "recipe": {"name": "lava", "data": {"size": [64, 64]}, "loss": {"d_start": 0.4}},
        "total_steps": 300,
        "footage": {"sources": [], "frames": 100, "key": "k"},
        "command": "mlxlava train",
        "machine": {"device": "CPU"},
    }
    (run / "config.json").write_text(json.dumps(about | config))


def test_curves_are_few_and_leave_no_step_out() -> None:
    curves = Curves()
    for step in range(1, 5001):
        curves.add(step, {"a": float(step), "every_eighth": 1.0} if step % 8 == 0 else {"a": float(step)})
    assert 150 < len(curves.steps) <= 400
    assert curves.steps[-1] == curves.last_step == 5000
    means = curves.terms()["a"]
    assert means == sorted(means)  # type: ignore[type-var]
    assert means[0] == np.mean(range(1, curves.steps[0] + 1))
    assert set(curves.terms()["every_eighth"]) <= {1.0, None}


def test_a_log_that_is_damaged_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "a": 1}\n[]\n{"step": "x"}\nnull\n{"step": 2, "a": NaN}\n{"st'
    )
    curves = read_curves(tmp_path)
    assert curves.steps == [1, 2]
    assert curves.terms() == {"a": [1.0, None]}
    assert read_curves(tmp_path / "nowhere").steps == []


def test_a_training_leaves_a_report_with_its_messages(tiny: Recipe, footage: Footage, tmp_path: Path) -> None:
    make_run_folder(tmp_path, tiny, footage, ["lamp.mov"], "mlxlava train lamp.mov", None)
    say("footage: lamp.mov: 3 frames are missing")
    train(tmp_path, tiny, footage, callbacks=[StopAtNextStep()])
    stopped = (tmp_path / "report.html").read_text()
    assert "3 frames are missing" in stopped and ": stopped" in stopped
    train(tmp_path, tiny, footage)
    page = (tmp_path / "report.html").read_text()
    assert "step 6 of 6: finished" in page
    assert "3 frames are missing" in page  # also after a resume
    shown = data_of(page)
    assert shown["steps"] == [1, 2, 3, 4, 5, 6]
    assert {"reconstruction", "loss_d", "state_spread", "clips_per_second"} <= shown["terms"].keys()
    assert list(shown["previews"]) == ["4", "6"]


class Failing(Callbacks):
    """Fails at the third step, as a full disk would."""

    def on_step(self, report: StepReport) -> None:
        if report.step == 3:
            raise UserError("train: cannot write log.jsonl: No space left on device")


def test_a_report_of_a_training_that_failed_says_why(tiny: Recipe, footage: Footage, tmp_path: Path) -> None:
    make_run_folder(tmp_path, tiny, footage, [], "", None)
    with pytest.raises(UserError):
        train(tmp_path, tiny, footage, callbacks=[Failing()])
    page = (tmp_path / "report.html").read_text()
    assert "ended by an error" in page and "No space left on device" in page


def test_a_report_holds_a_bounded_number_of_previews(tmp_path: Path) -> None:
    write_run(tmp_path / "run", previews=130)
    shown = data_of(write_report(tmp_path / "run").read_text())
    steps = list(map(int, shown["previews"]))
    assert 10 < len(steps) <= 24
    assert steps[0] == 50 and steps[-1] == 130 * 50


def test_a_damaged_preview_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run/previews/000100.png").write_bytes(b"\x89PNG\r\n\x1a\n no")
    shown = data_of(write_report(tmp_path / "run").read_text())
    assert list(shown["previews"]) == ["50", "150", "200", "250"]


def test_choices_scores_and_warnings_are_shown(tmp_path: Path) -> None:
    choice = {"setting": "data.every_nth", "value": 3, "reason": "wax moves 0.6 pixels in a frame"}
    write_run(tmp_path / "run", choices=[choice, "odd"])
    score = {"step": 300, "image": 1.234, "motion": 1.1, "against": "b.mp4", "ratios": {"image.fid": 2.0}}
    (tmp_path / "run/scores.jsonl").write_text(json.dumps(score) + "\nbroken\n")
    with (tmp_path / "run/log.jsonl").open("w") as file:
        for step in range(1, 301):
            file.write(json.dumps({"step": step, "loss_d": 0.001, "state_spread": 0.9}) + "\n")
    page = write_report(tmp_path / "run").read_text()
    assert "wax moves 0.6 pixels in a frame" in page
    assert "<td>1.23</td>" in page and "b.mp4" in page
    assert "The discriminator is always right" in page and "All lamps show the same (" not in page


@pytest.mark.parametrize(
    ("judged", "error_at_the_end", "warns"),
    [(False, 1.5, False), (False, 3, True), (True, 3, False), (True, 40, True)],
)
def test_an_error_that_rises_as_the_discriminator_joins_in_is_no_warning(
    tmp_path: Path, judged: bool, error_at_the_end: float, warns: bool
) -> None:
    write_run(tmp_path / "run")
    with (tmp_path / "run/log.jsonl").open("w") as file:
        for step in range(1, 301):
            line = {"step": step, "reconstruction": max(1, 50 / step) if step <= 200 else error_at_the_end}
            line |= {"loss_d": 0.5} if judged and step > 200 else {}
            file.write(json.dumps(line) + "\n")
    page = write_report(tmp_path / "run").read_text()
    assert ("The reconstruction error has risen" in page) == warns


def test_what_is_no_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        write_report(tmp_path)


def test_a_config_of_odd_values_still_gives_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "run", recipe=3, choices={}, machine=[], footage=None, total_steps="many", command=7)
    assert "<h1>run</h1>" in write_report(tmp_path / "run").read_text()


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


async def requests_of(tab: Tab) -> list[str]:
    """What the page has loaded besides itself."""
    names = await tab.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
    return [name for name in names if not name.startswith("data:")]


@needs_chromium
@pytest.mark.parametrize(("width", "height", "phone"), [(390, 844, True), (1280, 800, False)])
def test_the_page_opens_in_a_browser(tmp_path: Path, width: int, height: int, phone: bool) -> None:
    write_run(tmp_path / "run")
    page = write_report(tmp_path / "run")

    async def look() -> None:
        async with chromium() as browser:
            tab = await browser.open(page.as_uri())
            await tab.resize(width, height, phone=phone)
            assert await tab.run("document.documentElement.scrollWidth") <= width
            assert await tab.run("document.querySelectorAll('.chart').length") >= 6
            picture = "document.querySelector('#previews img')"
            await tab.until(f"{picture}.naturalWidth === 60")
            assert await tab.run(f"{picture}.alt") == "Preview at step 250"
            await tab.run("document.querySelector('#previews input').focus()")
            for key in ("Home", "ArrowRight"):
                await tab.press(key, code=key, windowsVirtualKeyCode={"Home": 36, "ArrowRight": 39}[key])
            assert await tab.run(f"{picture}.alt") == "Preview at step 100"
            legend = await tab.run("document.querySelector('.legend').textContent")
            assert legend == "reconstruction 9"  # of step 100
            assert await requests_of(tab) == []
            assert tab.complaints == []

    asyncio.run(look())


@needs_chromium
def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    run = tmp_path / "<b>run&amp;"
    choice = dict.fromkeys(("setting", "value", "reason"), HOSTILE)
    write_run(
        run,
        command=HOSTILE,
        choices=[choice],
        footage={"sources": [HOSTILE]},
        machine={HOSTILE: HOSTILE},
        recipe={"name": HOSTILE, "data": {HOSTILE: HOSTILE}},
    )
    (run / "messages.jsonl").write_text(json.dumps({"time": HOSTILE, "text": HOSTILE}))
    (run / "scores.jsonl").write_text(json.dumps({"step": HOSTILE, "image": HOSTILE, "ratios": {HOSTILE: 1}}))
    with (run / "log.jsonl").open("w") as file:
        file.writelines(json.dumps({"step": step, HOSTILE: 1.0}) + "\n" for step in range(1, 9))
    page = write_report(run)

    async def look() -> None:
        async with chromium() as browser:
            tab = await browser.open(page.as_uri())
            assert await tab.run("document.title") == "<b>run&amp;: training report"
            assert await tab.run("document.querySelector('h1').textContent") == "<b>run&amp;"
            assert await tab.run("document.querySelectorAll('script').length") == 2
            assert (
                await tab.run("[...document.images].filter((each) => !each.closest('#previews')).length") == 0
            )
            assert await tab.run("document.querySelector('.chart h3').textContent") == HOSTILE
            assert HOSTILE in await tab.run("document.querySelector('.commands').textContent")
            assert await requests_of(tab) == []
            assert tab.complaints == []

    asyncio.run(look())
