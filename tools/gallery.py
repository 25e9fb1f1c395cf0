"""Write docs/gallery: the shipped lamps and the flame of docs/flame.md as web pages, with an index.

    python tools/gallery.py                      # learns the flame first, where runs/flame is not finished
    python tools/gallery.py --without-flame      # in seconds
    python tools/gallery.py runs/mine            # with more lamps: runs, or folders of weights
    python tools/gallery.py --folder site        # into another folder

The pages of the shipped lamps are written before the flame is learned. Ctrl-C keeps what was learned, and the
next call goes on with the training. Pages (5 MB each) are not in the repository, their small pictures are.
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Sequence
from pathlib import Path

import mlxlava
from mlxlava.config import format_size
from mlxlava.errors import UserError
from mlxlava.paths import (
    latest_checkpoint_folder,
    read_json,
    shipped_weights_folders,
    write_text_atomically,
)
from mlxlava.resize import resize_smoothly

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs/gallery"
FLAME = ROOT / "runs/flame"

SEED = 3  # of the lamp in a picture
PICTURE_HEIGHT = 256  # pixels

_INDEX = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Lamps that play for ever</title>
<style>
  body {{ margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: #07050a; color: #f6f0ff;
         font: 16px/1.5 system-ui, sans-serif; }}
  ul {{ display: flex; flex-wrap: wrap; gap: 1.5rem; padding: 0; list-style: none; }}
  a {{ color: #ffb26b; }}
  li a {{ display: block; padding: 1rem; border: 1px solid #3a3144; border-radius: 1rem; text-align: center;
         text-decoration: none; }}
  li a:hover, li a:focus-visible {{ border-color: #ffb26b; }}
  img {{ display: block; height: 256px; margin: 0 auto .7rem; border-radius: .5rem; }}
  small {{ display: block; color: #c4b9d4; }}
</style>
<h1>Lamps that play for ever</h1>
<p>Each of these pages holds a learned lamp and draws it on your machine. No frame is a recording, and nothing
repeats. Add <code>#seed=7</code> to an address for another lamp, <code>#controls=0</code> for the picture
alone.</p>
<ul>
{cards}
</ul>
"""
_CARD = """<li><a href="{name}.html"><img src="{name}.webp" width="{width}" height="{height}" alt="">{name}
<small>{size}, {megabytes:.1f} MB</small></a></li>"""


def learn_flame(run: Path) -> None:
    """Learn the flame as docs/flame.md does. A training that was interrupted goes on where it stopped."""
    if latest_checkpoint_folder(run) is not None:
        mlxlava.resume(run)
        return
    sys.path.insert(0, str(ROOT))
    from benchmarks.flame import write_clip

    clip = run.with_suffix(".mp4")
    clip.parent.mkdir(parents=True, exist_ok=True)
    write_clip(clip, seconds=900)
    mlxlava.train(clip, run=run, steps=400, settings={"loss.d_start": 1.0})


def is_learned(run: Path) -> bool:
    """Whether a run has made all its steps."""
    latest = latest_checkpoint_folder(run)
    if latest is None:
        return False
    step = read_json(latest / "progress.json", "checkpoint")["step"]
    return bool(step == read_json(run / "config.json", "run")["total_steps"])


def add_lamp(lamp: str | Path, folder: Path) -> str:
    """Write the page and the picture of a lamp.

    Args:
        lamp: shipped weights by name, a folder of weights, or a run.
        folder: the gallery.

    Returns:
        Its card for the index.
    """
    name = Path(lamp).resolve().name
    page = folder / f"{name}.html"
    mlxlava.export(lamp, web=page)
    frame = next(iter(mlxlava.load(lamp).frames(seed=SEED)))
    height, width = frame.shape[:2]
    shown = (PICTURE_HEIGHT, round(width * PICTURE_HEIGHT / height))
    resize_smoothly(frame, shown).save(folder / f"{name}.webp", quality=85, method=6)
    return _CARD.format(
        name=html.escape(name),
        width=shown[1],
        height=shown[0],
        size=format_size((height, width)),
        megabytes=page.stat().st_size / 1e6,
    )


def write_gallery(lamps: Sequence[str | Path], folder: Path) -> None:
    """Write the pages, the pictures and the index of a gallery."""
    folder.mkdir(parents=True, exist_ok=True)
    cards = [add_lamp(lamp, folder) for lamp in lamps]
    write_text_atomically(folder / "index.html", _INDEX.format(cards="\n".join(cards)))
    print(f"gallery: {len(lamps)} lamps; open {folder / 'index.html'} in a browser")


def main() -> None:
    """Write the gallery."""
    parser = argparse.ArgumentParser(description="Write docs/gallery.")
    parser.add_argument("lamps", nargs="*", help="runs and folders of weights beside the shipped ones")
    parser.add_argument("--folder", type=Path, default=GALLERY)
    parser.add_argument("--without-flame", action="store_true")
    args = parser.parse_args()
    lamps = [*(folder.name for folder in shipped_weights_folders()), *args.lamps]
    try:
        if not args.without_flame and not is_learned(FLAME):
            write_gallery(lamps, args.folder)
            print("gallery: learning the flame, some 12 minutes; Ctrl-C keeps what there is")
            learn_flame(FLAME)
        if not args.without_flame and latest_checkpoint_folder(FLAME) is not None:
            lamps.append(FLAME)
        write_gallery(lamps, args.folder)
    except UserError as error:
        print(f"gallery: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
