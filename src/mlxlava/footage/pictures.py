"""The one reader of picture files, for footage and for pictures that a lamp starts from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mlxlava.errors import UserError
from mlxlava.paths import names_in

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_ORIENTATION = 0x0112  # the EXIF tag; with values of 5 and more, width and height are exchanged


def read_picture(path: str | Path, what: str = "footage", advice: str = "repair or remove it") -> Image.Image:
    """Read a picture: upright (its EXIF orientation is applied), 8 bits a channel, RGB.

    Sixteen bits of grey are scaled to eight. A picture of more pixels than Pillow allows (twice
    ``Image.MAX_IMAGE_PIXELS``, 179 megapixels) is refused, since a small file can ask for any memory.

    Args:
        path: the file.
        what: stands before an error.
        advice: what the user can do about a picture that cannot be read.

    Raises:
        UserError: the file is not there, is no picture, is damaged or too large.
    """
    with _one_line_errors(path, what, advice):
        with Image.open(path) as file:
            image: Image.Image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8, and all would be white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture once it is upright; reads the header only.

    Raises:
        UserError: as ``read_picture``.
    """
    with _one_line_errors(path, "footage", "repair or remove it"), Image.open(path) as image:
        on_its_side = image.getexif().get(_ORIENTATION, 1) >= 5
        return (image.height, image.width) if on_its_side else (image.width, image.height)


def common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Width and height that all pictures share.

    Raises:
        UserError: two of them differ, or one cannot be read.
    """
    first = picture_size(paths[0])
    for path in paths[1:]:
        size = picture_size(path)
        if size != first:
            raise UserError(
                f"footage: images differ in size: {paths[0]} is {first[0]}x{first[1]}, "
                f"{path.name} is {size[0]}x{size[1]} (width x height); give images of one size"
            )
    return first


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder in natural order (img2 before img10); hidden and other files are left out.

    Raises:
        UserError: there are none.
    """
    names = (name for name in names_in(folder) if not name.startswith("."))
    files = [folder / name for name in names if (folder / name).is_file()]
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not pictures:
        what = "has no images (png, jpg, webp, bmp, tif)" if files else "is an empty folder"
        raise UserError(f"footage: {folder} {what}; give a folder of images or the video files themselves")
    return sorted(pictures, key=lambda file: (_natural(file.name), file.name))


def _natural(name: str) -> list[str | int]:
    """A sort key by which img2 comes before img10."""
    # Texts and numbers alternate, so that no text is ever compared with a number.
    return [int(part) if odd % 2 else part for odd, part in enumerate(re.split("([0-9]+)", name.lower()))]


@contextmanager
def _one_line_errors(path: str | Path, what: str, advice: str) -> Iterator[None]:
    """Turn whatever goes wrong while a picture is read into one UserError."""
    try:
        with warnings.catch_warnings():
            # Pillow warns already at half the size that it refuses. A phone's 108 megapixels are no attack.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except UnidentifiedImageError as error:
        raise UserError(f"{what}: {path} is no picture that Pillow reads; {advice}") from error
    # A damaged file makes decoders fail in many ways: struct.error, EOFError, SyntaxError, IndexError …
    except Exception as error:
        raise UserError(f"{what}: cannot read the image {path} ({_reason(error)}); {advice}") from error


def _reason(error: Exception) -> str:
    """What is wrong with a picture, on one line."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels"
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(text.split())
