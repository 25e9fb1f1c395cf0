"""Write the weights and the report of a run, and describe weights, recipes and this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxlava.config import Recipe, load_recipe, setting_rows
from mlxlava.errors import UserError

if TYPE_CHECKING:
    from mlxlava.rollout.weights import Weights


def export(
    weights: str | Path,
    folder: str | Path | None = None,
    *,
    half: bool = False,
    score: Mapping[str, Any] | None = None,
    web: str | Path | None = None,
    onnx: str | Path | None = None,
) -> Weights:
    """Write a learned lamp: as weights with a model card and a sample picture, as a web page, as ONNX graphs.

    If ``weights`` is a run and its footage is still there, the lamp is slowed to the pace of the footage.

    Args:
        weights: folder of a run. Without ``folder`` it may also be the name of shipped weights or a folder of
            weights.
        folder: folder of weights to write; ``load`` takes it. Weights that are in it are replaced.
        half: store the weights in ``folder`` as float16, in half the size. They are played as float32.
        score: result of ``score`` for the run, to be shown on the card in ``folder``.
        web: HTML file to write: one page that plays the lamp in any browser, without a server.
        onnx: folder to write with two ONNX graphs and an example that plays them. Needs the extra ``onnx``.

    Returns:
        The weights that were written: the recipe, the arrays, and in ``about`` the entries of the card, for
        example ``steps`` and ``pace`` (``pace`` is missing if the footage is gone).

    Raises:
        UserError: nothing to write is given, ``weights`` is not a run or has no checkpoint, ``score`` is no
            score, the lamp's networks have no such form, or something cannot be written.
    """
    from mlxlava.exporting.portable import load_portable_weights, make_portable
    from mlxlava.exporting.web_page import check_page_file, write_page
    from mlxlava.rollout.export import export as export_run

    if folder is None and web is None and onnx is None:
        raise UserError("export: nothing to write; give -o (weights), --web (a page) or --onnx (graphs)")
    if folder is None and (half or score is not None):
        raise UserError("export: half and score are for a folder of weights (-o), which was not given")
    if web is not None:
        check_page_file(Path(web))  # before anything is written
    if folder is not None:
        written = export_run(
            Path(weights), Path(folder), half=half, score=None if score is None else dict(score)
        )
    else:
        written = load_portable_weights(weights)
    if web is None and onnx is None:
        return written
    lamp = make_portable(written, str(weights))
    if web is not None:
        write_page(lamp, Path(web), Path(weights).resolve().name)
    if onnx is not None:
        from mlxlava.exporting.graphs import write_graphs

        write_graphs(lamp, Path(onnx), written)
    return written


def report(run: str | Path) -> Path:
    """Write the report of a run anew: a page with curves, previews, choices, messages and commands.

    ``train`` writes it by itself. This is for runs of older versions, and for runs that were copied.

    Args:
        run: folder of the run.

    Returns:
        The page, ``report.html`` in the folder of the run.

    Raises:
        UserError: there is no such run, it has not made a step yet, or the page cannot be written.
    """
    from mlxlava.training.report import write_report

    return write_report(Path(run))


def info(weights: str | Path | None = None, *, verify: bool = False) -> dict[str, str]:
    """Describe this machine, or describe weights and how they were learned.

    Args:
        weights: shipped weights by name, a folder of weights, or a run. The machine is described when None.
        verify: instead, say whether the weights, or the checkpoints of the run, are as they were written; of
            all shipped weights when ``weights`` is None.

    Returns:
        Names and texts, as ``mlxlava info`` shows them. A machine is described by all that a report
        of a fault needs: versions, device, memory, the library for matrix products, the compiler, the
        terminal, variables that are set, the cache folder and the shipped weights. This works even where MLX
        cannot be loaded.

    Raises:
        UserError: there are no such weights, or they are damaged. With ``verify``, damage is no error.
    """
    if verify:
        from mlxlava.rollout.verify import verify_weights

        return verify_weights(weights)
    if weights is not None:
        from mlxlava.rollout.export import weights_facts
        from mlxlava.rollout.weights import load_weights

        return weights_facts(load_weights(weights))

    from mlxlava.machine import machine_facts

    return machine_facts()


def settings(recipe: str | Path | Recipe = "lava") -> list[tuple[str, Any, str]]:
    """List the settings of a recipe, which ``train(settings=…)`` changes.

    Args:
        recipe: name of a recipe, a TOML or JSON file, or a recipe.

    Returns:
        For each setting its name (for example ``data.size``), its value, and its help text.

    Raises:
        UserError: there is no such recipe, or it has a wrong setting.
    """
    return setting_rows(recipe if isinstance(recipe, Recipe) else load_recipe(recipe))
