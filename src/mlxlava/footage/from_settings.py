"""Prepares footage with the ``data`` settings of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlxlava.config import Data
from mlxlava.console import progress, say
from mlxlava.footage.dataset import Footage
from mlxlava.footage.prepare import prepare, prepare_lamp


def prepare_from_settings(
    sources: Sequence[str | Path], data: Data, *, seed: int = 0, folder: Path | None = None
) -> Footage:
    """Prepare footage, or reopen it if it was prepared before. Shows progress and warnings on stderr.

    Args:
        sources: videos, folders of images, or one folder of prepared footage; if empty, the built-in lamp.
        data: size, crop and frame step; length, rate and colours of the built-in lamp.
        seed: seed of the built-in lamp.
        folder: folder to write; the cache if None. The built-in lamp is always written to the cache.

    Raises:
        UserError: a source cannot be read, or the folder cannot be written.
    """
    with progress("footage") as update:

        def show(done: int, total: int | None) -> None:
            update(done, total, f"{done} frames")

        if sources:
            return prepare(
                sources,
                folder,
                size=data.size,
                crop=data.crop,
                every_nth=data.every_nth,
                source_fps=data.source_fps or None,
                on_progress=show,
                on_warning=say,
            )
        return prepare_lamp(
            None,
            size=data.size,
            minutes=data.lamp_minutes,
            fps=data.lamp_fps,
            every_nth=data.every_nth,
            seed=seed,
            theme=data.lamp_theme,
            on_progress=show,
        )
