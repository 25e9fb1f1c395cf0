"""Export the weights of a run, with a model card and a sample of frames."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mlxlava.backend import arrays_by_name, mx, tree_map
from mlxlava.config import format_size
from mlxlava.console import format_duration
from mlxlava.errors import UserError
from mlxlava.footage.dataset import open_footage
from mlxlava.models.sheet import draw_sheet, preview_columns_and_gap
from mlxlava.paths import latest_checkpoint_folder
from mlxlava.records import SCORE
from mlxlava.rollout.speed_matching import match_pace
from mlxlava.rollout.weights import Weights, footage_without_folders, load_weights_of_run, save_weights
from mlxlava.schema import Mismatch
from mlxlava.text import clean_text, markdown_cell, markdown_code

_MODEL_CARD_TEMPLATE = """# {name}

A lava lamp learned by mlxlava, to be played for ever:

    mlxlava loop --weights {name}

Without mlxlava: `mlxlava export {name} --web FILE.html` writes it as one page for any browser, and
`--onnx DIR` as ONNX graphs with an example that plays them.

![Four lamps, time to the right]({picture})

Each row is one lamp (time to the right, {gap:.2g} s between pictures). These weights drew it from a random
state.

| what | value |
|---|---|
| learned from | {footage} |
| picture | {size} RGB |
| learned steps | {step_fps:g} a second of true time; {pace} |
| recipe | {recipe} |
| parameters | {generator:,} in the generator, {dynamics:,} in the state step; {dtype} |
| training | {steps} steps of {batch} clips, {clock} on {machine} |
{before}| command | `{command}` |

The lamp plays with the averaged (EMA) weights of that step. `config.json` has all settings.
"""

_SCORE_TEMPLATE = """
## Score

`mlxlava score {name}{footage}`, {clips} clips of {length} learned steps: image **{image:.2f}**, motion
**{motion:.2f}** times what real footage scores against itself (1 is as good as real footage).

| measure | drawn | real against real | ratio |
|---|---|---|---|
{rows}
"""

# The parts of a score that the model card shows.
_SCORE_KEYS = ("headline", "clips", "clip_length", "seed", "measures")

_MAX_FACT = 500  # characters of a fact about weights
_SAMPLE_SIDE_PIXELS = 640  # pixels at most of sample.png, which lies in the repository and in the wheel


def export(run: Path, folder: Path, *, half: bool = False, score: dict[str, Any] | None = None) -> Weights:
    """Write the averaged weights of a run with ``config.json``, ``README.md`` and ``sample.png``.

    If the run's footage is still there, the lamp is slowed to its pace (:func:`match_pace`).

    Args:
        run: folder of the run.
        folder: folder to write; weights that are in it are replaced.
        half: store learned weights as float16, in half the size. They are played as float32.
        score: the output of ``mlxlava score --json`` for these weights, shown on the model card.

    Returns:
        The weights that were written.

    Raises:
        UserError: ``run`` is not a run or has no checkpoint, ``score`` is not the output of ``mlxlava score
            --json``, or ``folder`` cannot be written.
    """
    weights = averaged_weights(run, score)
    arrays = weights.arrays
    if half:
        # The statistics stay float32. Rounded bases are not orthogonal, so each step makes a state a little
        # smaller. After a million steps its deviation was 0.95 (docs/decisions/009-bases-stay-float32.md).
        learned = {part: arrays[part] for part in ("generator", "dynamics")}
        arrays = {**arrays, **tree_map(lambda a: a.astype(mx.float16), learned)}
    sample = io.BytesIO()
    sheet = Image.fromarray(draw_sheet(weights.recipe, arrays))
    sheet.reduce(-(-max(sheet.size) // _SAMPLE_SIDE_PIXELS)).save(sample, "png", optimize=True)
    written = dataclasses.replace(weights, arrays=arrays)
    save_weights(written, folder, card=model_card(written, folder.resolve().name), sample=sample.getvalue())
    return written


def averaged_weights(run: Path, score: dict[str, Any] | None = None) -> Weights:
    """Read the averaged weights of a run, slowed to the pace of its footage if that is still there.

    Args:
        run: folder of the run.
        score: the output of ``mlxlava score --json`` for these weights.

    Returns:
        The weights. ``about`` has all that the model card shows.

    Raises:
        UserError: ``run`` is not a run or has no checkpoint, or ``score`` is not the output of ``mlxlava
            score --json``.
    """
    if score is not None:
        try:
            SCORE(score, "")
        except Mismatch as problem:
            raise UserError(f"export: --score is not what mlxlava score --json prints: {problem}") from None
    if latest_checkpoint_folder(run) is None:
        raise UserError(
            f"export: {run} is not a run with a checkpoint; give a folder that mlxlava train made"
        )
    weights = load_weights_of_run(run)
    about = {
        "footage": footage_without_folders(weights),
        "steps": weights.about["steps"],
        "seconds": round(weights.about["seconds"]),
        "command": weights.about.get("command"),
        "machine": {
            key: value for key, value in weights.about.get("machine", {}).items() if "/" not in str(value)
        },
    }
    if "initial" in weights.about:
        about["initial"] = weights.about["initial"]
    if score is not None:
        about["score"] = {key: score[key] for key in _SCORE_KEYS}
    prepared = weights.about.get("footage", {}).get("prepared")
    if prepared and (Path(prepared) / "footage.json").is_file():
        learned, _ = open_footage(prepared).split(weights.recipe.data.held_out)
        weights, about["pace"] = match_pace(weights, learned.frames, learned.cuts)
    return dataclasses.replace(weights, about=about)


def model_card(weights: Weights, name: str) -> str:
    """The model card of weights, as Markdown."""
    recipe, about = weights.recipe, weights.about
    _, gap = preview_columns_and_gap(recipe)
    text = _MODEL_CARD_TEMPLATE.format(
        name=markdown_code(name),
        picture="sample.png",
        gap=gap / weights.step_fps,
        footage=_footage_cell(about["footage"]),
        size=format_size(recipe.data.size),
        step_fps=weights.step_fps,
        pace=f"slowed to {about['pace']:.3f} of the learned pace"
        if about.get("pace", 1.0) < 1
        else "at the learned pace",
        recipe=markdown_cell(recipe.name),
        **count_parameters(weights),
        dtype="float16" if _is_half_precision(weights) else "float32",
        steps=about["steps"],
        batch=recipe.data.batch_size,
        clock=format_duration(about["seconds"]),
        machine=markdown_cell(_describe_machine(about["machine"])),
        before="".join(_rows_of_earlier_trainings(about.get("initial", []), recipe.data.size)),
        command=markdown_code(about["command"] or "not known"),
    )
    if "score" not in about:
        return text
    score = about["score"]
    return text + _SCORE_TEMPLATE.format(
        name=markdown_code(name),
        footage=" --footage FOOTAGE" if about["footage"]["sources"] else "",
        clips=score["clips"],
        length=score["clip_length"],
        **score["headline"],
        rows="\n".join(
            f"| `{markdown_code(measure)}` | {row['value']:.3g} | {row['floor']:.3g} | "
            f"{'–' if row['ratio'] is None else format(row['ratio'], '.2f')} |"
            for measure, row in score["measures"].items()
        ),
    )


def _rows_of_earlier_trainings(history: Sequence[Mapping[str, Any]], size: Sequence[int]) -> Iterator[str]:
    """Yield a row of the model card for each training in the history of the weights that were started from.

    ``size`` is that of the lamp that started from them. It is larger if the lamp has grown.
    """
    for training in history:
        name = "started from" if list(training["size"]) == list(size) else "grown from"
        cells = [markdown_cell(_describe_training(training))]
        if "footage" in training:
            cells.append(f"learned from {_footage_cell(training['footage'])}")
        if training.get("command"):
            cells.append(f"`{markdown_code(training['command'])}`")
        yield f"| {name} | {'; '.join(cells)} |\n"
        size = training["size"]


def _describe_training(training: Mapping[str, Any]) -> str:
    """The size of a lamp, its recipe, and its training, in words."""
    height, width = training["size"]
    return ", ".join(
        [f"{format_size((height, width))}, recipe {training['recipe']}", *_steps_and_time(training)]
    )


def _steps_and_time(training: Mapping[str, Any]) -> list[str]:
    """How long a training was, as far as it is known: its steps, and its time."""
    parts = []
    if "steps" in training:
        clips = f" of {training['batch_size']} clips" if "batch_size" in training else ""
        parts.append(f"{training['steps']} steps{clips}")
    if "seconds" in training:
        parts.append(format_duration(training["seconds"]))
    return parts


def _footage_cell(footage: Mapping[str, Any]) -> str:
    """What weights were learned from, for a cell of the model card."""
    sources, frames = footage.get("sources", []), footage.get("frames")
    names = markdown_cell(", ".join(sources)) if sources else "the built-in lamp (`mlxlava lamp`)"
    return names if frames is None else f"{names}, {frames} frames"


def count_parameters(weights: Weights) -> dict[str, int]:
    """How many parameters the generator and the state step have."""
    return {
        part: sum(array.size for array in arrays_by_name(weights.arrays[part]).values())
        for part in ("generator", "dynamics")
    }


def weights_facts(weights: Weights) -> dict[str, str]:
    """Facts about weights, by name, for ``mlxlava info``."""
    recipe, about = weights.recipe, weights.about
    footage = about.get("footage", {})
    parameters = count_parameters(weights)
    rows = {
        "recipe": clean_text(recipe.name, _MAX_FACT),
        "picture": format_size(recipe.data.size),
        "learned steps": f"{weights.step_fps:g} a second",
        "generator": f"{recipe.generator.kind}, {parameters['generator']:,} parameters",
        "state step": f"{recipe.dynamics.kind}, {parameters['dynamics']:,} parameters",
        "learned from": clean_text(", ".join(footage.get("sources", [])), _MAX_FACT) or "the built-in lamp",
        "frames": str(footage.get("frames", "?")),
    }
    if training := _steps_and_time(about):
        rows |= {"training": ", ".join(training)}
    if about.get("initial"):
        rows |= {"started from": clean_text(_describe_training(about["initial"][0]), _MAX_FACT)}
    if about.get("command"):
        rows |= {"command": clean_text(about["command"], _MAX_FACT)}
    return rows | {"machine": clean_text(_describe_machine(about.get("machine", {})), _MAX_FACT)}


def _is_half_precision(weights: Weights) -> bool:
    return any(array.dtype == mx.float16 for array in arrays_by_name(weights.arrays).values())


def _describe_machine(machine: dict[str, Any]) -> str:
    device = machine.get("device name") or machine.get("processor", "an unknown processor")
    cores = f" ({machine['cores']} cores)" if "cores" in machine else ""
    return f"{device}{cores}, MLX {machine.get('mlx', '?')}, {machine.get('system', '?')}"
