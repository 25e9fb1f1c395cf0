"""Reads picture files, for footage and for ``mlxlava loop --from``. No other module reads pictures."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from mlxlava.errors import UserError
from mlxlava.paths import is_system_file, list_names

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff")
# Pillow knows more formats. Some of those start other programs (PostScript) or read other files.
_PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
UNREADABLE_SUFFIXES = (
    ".heic",
    ".heif",
    ".gif",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".jxl",
    ".jp2",
    ".exr",
    ".svg",
    ".psd",
)
_VIDEO_SUFFIXES = (
    ".mp4",
    ".mov",
    ".m4v",
    ".mkv",
    ".webm",
    ".avi",
    ".ts",
    ".mts",
    ".m2ts",
    ".mpg",
    ".mpeg",
    ".3gp",
    ".wmv",
)
_MAX_PIXELS = 120_000_000
_MAX_PIXELS_WITH_COPIES = 64_000_000
_ADVICE = "repair or remove it"  # what to do about a picture that cannot be read
_EXIF_ORIENTATION_TAG = 0x0112  # with values of 5 and more, width and height are exchanged


def read_picture(path: str | Path, what: str = "footage", advice: str = _ADVICE) -> Image.Image:
    """Read a picture: upright (its EXIF orientation is applied), sRGB, 8 bits a channel.

    - Colours are converted by the picture's ICC profile. Without a profile they are read as sRGB.
    - Transparent pixels are blended over black.
    - Grey levels of 16 bits, and floating point numbers of 0 … 1, are scaled to 8 bits. Integers of 32 bits
      are refused, since their scale is not known.
    - A picture with more than 120 megapixels is refused, since a small file could use up all memory (so many
      take a gigabyte). With transparency, 32 bits or other colours it is copied more often: it may have 64.
    - Of an animation, the first picture is read.

    Args:
        path: the file.
        what: first word of an error message.
        advice: what the user can do about a picture that cannot be read.

    Raises:
        UserError: the file does not exist, is not a picture, is damaged or too large.
    """
    with _open_picture(path, what, advice) as file:
        _require_few_pixels(file)
        file.load()  # Pillow turns a TIFF upright here, and changes its tag
        profile = file.info.get("icc_profile")
        ImageOps.exif_transpose(file, in_place=True)  # no copy: a large picture fills much memory
        return _to_srgb(_to_eight_bits(file), profile)


def read_animation(path: Path) -> Iterator[tuple[float, Image.Image]]:
    """Read the pictures of an animated PNG, WebP or AVIF as ``read_picture`` does, with their times.

    Yields:
        The time from the start in seconds, and the picture.

    Raises:
        UserError: as ``read_picture``.
    """
    with _open_picture(path) as file:
        profile, time = file.info.get("icc_profile"), 0.0
        for number in range(getattr(file, "n_frames", 1)):
            file.seek(number)
            _require_few_pixels(file)
            file.load()
            yield time, _to_srgb(_to_eight_bits(file.copy()), profile)
            time += float(file.info.get("duration", 0)) / 1000


def animation_times(path: Path) -> list[float]:
    """The times of an animation's pictures, in seconds.

    Raises:
        UserError: as ``read_picture``.
    """
    with _open_picture(path) as file:
        times = [0.0]
        for number in range(getattr(file, "n_frames", 1)):
            file.seek(number)
            _require_few_pixels(file)
            file.load()  # some formats have the time only after this
            times.append(times[-1] + float(file.info.get("duration", 0)) / 1000)
        return times[:-1]


def read_picture_header(path: Path) -> tuple[tuple[int, int], bool]:
    """Width and height of an upright picture, and whether it is an animation. Only the header is read.

    Raises:
        UserError: as ``read_picture``.
    """
    with _open_picture(path) as image:
        animated = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
        # Pillow gives the size of an upright TIFF.
        on_its_side = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION_TAG, 1) >= 5
        return ((image.height, image.width) if on_its_side else (image.width, image.height)), animated


def require_common_size(paths: Sequence[Path]) -> tuple[tuple[int, int], list[Path]]:
    """The width and height that all pictures have, and the list of those that are animations.

    Raises:
        UserError: two of them differ, or one cannot be read.
    """
    first, animations = None, []
    for path in paths:
        size, animated = read_picture_header(path)
        first = first or size
        if size != first:
            raise UserError(
                f"footage: images differ in size: {paths[0]} is {first[0]}x{first[1]}, "
                f"{path.name} is {size[0]}x{size[1]} (width x height); give images of one size"
            )
        if animated:
            animations.append(path)
    assert first is not None
    return first, animations


def list_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, in natural order (img2 before img10). Hidden and other files are left out.

    Raises:
        UserError: there are none.
    """
    names = [name for name in list_names(folder) if not name.startswith(".")]
    files = [folder / name for name in names if (folder / name).is_file()]
    pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        if left := describe_files_not_read(folder):
            what = f"has no images (png, jpg, webp, avif, bmp, tif), but {left}"
        elif files:
            what = "has no images (png, jpg, webp, avif, bmp, tif)"
        else:
            what = "is an empty folder"
        raise UserError(f"footage: {folder} {what}; give a folder of images or the video files themselves")
    return sorted(pictures, key=lambda file: (_natural_sort_key(file.name), file.name))


def describe_files_not_read(folder: Path) -> str:
    """Name the files in a folder that look like footage but are not read; empty if there are none.

    Other files, for example notes, are not named.
    """
    found: Counter[str] = Counter()
    for name in sorted(list_names(folder)):
        path, suffix = folder / name, Path(name).suffix.lower()
        if name.startswith(".") or is_system_file(name):
            continue
        if path.is_dir():
            found["sub-folder"] += 1
        elif not path.exists():
            found["broken link"] += 1
        elif suffix in UNREADABLE_SUFFIXES or suffix in _VIDEO_SUFFIXES:
            found[f"{suffix[1:]} file"] += 1
    return ", ".join(f"{count} {what}{'s' * (count > 1)}" for what, count in sorted(found.items()))


def _require_few_pixels(file: Image.Image) -> None:
    """Raise ValueError for a picture that would take more than a gigabyte."""
    plain = file.mode in ("1", "L", "RGB", "I;16") and not file.has_transparency_data
    limit = _MAX_PIXELS if plain else _MAX_PIXELS_WITH_COPIES
    if file.width * file.height > limit:
        raise ValueError(
            f"it has {file.width * file.height / 1e6:.0f} megapixels, more than {limit // 10**6}"
        )


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert to 8 bits a channel. Pillow's own conversion would clip all levels above 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I":
        raise ValueError("its numbers have 32 bits, and nothing tells their scale; save it with 8 or 16")
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= -0.001 and values.max() <= 1.001):  # NaN included
            raise ValueError("its numbers do not lie in 0 … 1; scale them, or save it with 8 or 16 bits")
        return Image.fromarray((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8))
    return image


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB, and blend transparent pixels over black."""
    alpha = None
    if image.has_transparency_data:
        if image.mode in ("P", "La", "RGBa", "L", "RGB"):
            image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    converted = _convert_by_icc_profile(image, profile) if profile or image.mode == "LAB" else None
    image = converted or image
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size), alpha)
    return image


def _convert_by_icc_profile(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """Convert by an ICC profile; None if the profile is damaged or does not fit the picture."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _natural_sort_key(name: str) -> list[str | int]:
    """A sort key by which img2 comes before img10."""
    # Texts and numbers alternate, so a text is never compared with a number.
    return [int(part) if odd % 2 else part for odd, part in enumerate(re.split("([0-9]+)", name.lower()))]


@contextmanager
def _open_picture(path: str | Path, what: str = "footage", advice: str = _ADVICE) -> Iterator[Image.Image]:
    """Open a picture; every error while it is read becomes a UserError of one line."""
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of the size that it refuses. Phones take pictures of 108 megapixels.
            # It also warns of damaged tags that are not needed.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path, formats=_PILLOW_FORMATS) as file:
                yield file
    except UnidentifiedImageError as error:
        raise UserError(
            f"{what}: {path} is not a picture in a supported format (PNG, JPEG …); {advice}"
        ) from error
    # A damaged file makes decoders fail in many ways: struct.error, EOFError, SyntaxError, IndexError …
    except Exception as error:
        raise UserError(
            f"{what}: cannot read the image {path} ({_describe_read_error(error)}); {advice}"
        ) from error


def _describe_read_error(error: Exception) -> str:
    """Describe in one line what is wrong with a picture."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels"
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(text.split())
