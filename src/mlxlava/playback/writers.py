"""Files and pipes: frames in, a finished and playable file (or a stream on stdout) out.

A format is one small class in ``FORMATS``: it is given the place to write, the size and the rate, and
writes, finishes or gives up. What all formats share (enlarging, the temporary name, errors) stands once,
in ``Output``. Frames are uint8 (H, W, 3).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Protocol

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
from PIL import Image

from mlxlava.config import nearest
from mlxlava.errors import UserError
from mlxlava.products import matmul

Frame = npt.NDArray[np.uint8]

_Settings = tuple[int, ...] | None  # of an encoder, at QUALITIES; None: nothing is lost

# BT.601, studio range: what players assume of a YUV4MPEG2 stream, which has no tag for it.
_YUV = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=np.float32
) / np.float32(255)
_YUV_OFFSET = np.array([[16.5], [128.5], [128.5]], dtype=np.float32)  # the half rounds

# BT.709, and said so in the file: untagged colours are guessed differently by browsers and QuickTime.
_VIDEO_COLOURS = (
    "-vf scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)

# A GIF's palette is made from its first frames, which wait in memory until then: at most this much.
_PALETTE_BYTES = 2**28
_PALETTE_FRAMES = 250

# Browsers play GIF frames of 1/100 s ten times too slow, so 2/100 s is the shortest.
_GIF_MAX_FPS = 50

# What quality (0 to 100) means: the same peak signal-to-noise ratio in whatever format. A format names its
# encoder's settings at these, measured on a lamp at 256×256 (docs/playing.md, "Quality").
QUALITIES = (0, 25, 50, 75, 100)
QUALITY = 75

# ffmpeg exits with 256 − errno; these say more than its last line does.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class PipeClosed(Exception):
    """Nobody reads (or watches) any more: the end of playing, not a failure."""


class Sink(Protocol):
    """What frames are written to."""

    def write(self, frame: Frame) -> None:
        """Add a frame, uint8 (H, W, 3)."""

    def close(self) -> None:
        """Finish, so that what was written can be played; a second call does nothing."""

    def abort(self) -> None:
        """Give up: no partial file is left; after ``close`` it does nothing."""


class _Format(Sink, Protocol):
    """What ``Output`` asks of a format, besides: how to make it and how to find it."""

    endings: ClassVar[tuple[str, ...]]
    pipes: ClassVar[bool]  # whether it can go to stdout
    settings: ClassVar[_Settings]

    def __init__(self, path: str, size: tuple[int, int], rate: Fraction, quality: int) -> None: ...


def enlarge(frame: Frame, scale: int) -> Frame:
    """Enlarge a frame smoothly by a whole factor: (H, W, 3) → (scale·H, scale·W, 3)."""
    if scale == 1:
        return frame
    height, width = frame.shape[:2]
    image = Image.fromarray(frame).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    return np.asarray(image)


def write_all(stream: Any, data: bytes | memoryview) -> None:
    """Write all of ``data`` to a binary stream, which may be unbuffered and take it in parts.

    Raises:
        PipeClosed: the other end is gone.
    """
    rest = memoryview(data).cast("B")
    try:
        while rest:
            written = stream.write(rest)
            if written is None:  # another process has made our stdout non-blocking
                time.sleep(0.001)
            else:
                rest = rest[written:]
    except BrokenPipeError:
        raise PipeClosed from None


def unbuffered_stdout() -> Any:
    """Stdout without its buffer: frames leave at once; a closed pipe leaves nothing to flush at exit."""
    sys.stdout.flush()
    stream = sys.stdout.buffer
    return getattr(stream, "raw", stream)


class _Stream:
    """Bytes of one length a frame, written by Python itself: no encoder process, so they can be piped."""

    pipes: ClassVar[bool] = True
    settings: ClassVar[_Settings] = None

    def __init__(self, path: str, header: bytes, frame_bytes: int) -> None:
        self._path, self._header_bytes, self._frame_bytes = path, len(header), frame_bytes
        self._file = unbuffered_stdout() if path == "-" else io.FileIO(path, "w")
        write_all(self._file, header)

    def _pack(self, frame: Frame) -> bytes:
        raise NotImplementedError

    def write(self, frame: Frame) -> None:
        write_all(self._file, self._pack(frame))

    def close(self) -> None:
        if self._path != "-":
            self._file.close()
        if Path(self._path).is_file():
            # Ctrl-C in the middle of a write leaves part of a frame at the end.
            frames = (Path(self._path).stat().st_size - self._header_bytes) // self._frame_bytes
            os.truncate(self._path, self._header_bytes + frames * self._frame_bytes)

    def abort(self) -> None:
        if self._path != "-":
            self._file.close()


class Raw(_Stream):
    """RGB24 frames one after the other, with no header; the reader must know size and rate."""

    endings: ClassVar[tuple[str, ...]] = ("raw", "rgb")

    def __init__(self, path: str, size: tuple[int, int], rate: Fraction, quality: int) -> None:
        super().__init__(path, b"", size[0] * size[1] * 3)

    def _pack(self, frame: Frame) -> bytes:
        return frame.tobytes()


class Y4m(_Stream):
    """YUV4MPEG2, 4:4:4: uncompressed, with size and rate in its header; players read it from a pipe."""

    endings: ClassVar[tuple[str, ...]] = ("y4m",)

    def __init__(self, path: str, size: tuple[int, int], rate: Fraction, quality: int) -> None:
        height, width = size
        tags = f"W{width} H{height} F{rate.numerator}:{rate.denominator} Ip A1:1 C444 XCOLORRANGE=LIMITED"
        super().__init__(path, f"YUV4MPEG2 {tags}\n".encode(), len(b"FRAME\n") + height * width * 3)

    def _pack(self, frame: Frame) -> bytes:
        planes = (
            matmul(_YUV, frame.reshape(-1, 3).T.astype(np.float32)) + _YUV_OFFSET
        )  # (H, W, 3) -> (3, H*W)
        return b"FRAME\n" + planes.astype(np.uint8).tobytes()


class _Encoder:
    """The ffmpeg process that comes with imageio-ffmpeg; a format is the options it is given."""

    pipes: ClassVar[bool] = False
    settings: ClassVar[_Settings]
    options: str  # no option may hold a space; {level} is the setting of the quality

    def __init__(self, path: str, size: tuple[int, int], rate: Fraction, quality: int) -> None:
        level = None if self.settings is None else round(np.interp(quality, QUALITIES, self.settings))
        # discardcorrupt: Ctrl-C in the middle of a write leaves part of a frame at the end.
        general = "-hide_banner -loglevel error -nostats -y -fflags +discardcorrupt"
        source = f"-f rawvideo -pix_fmt rgb24 -s {size[1]}x{size[0]} -r {rate} -i -"
        try:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe could fill up and stop ffmpeg
            # Its own session: a terminal's Ctrl-C must not reach it before close() has finished the file.
            self._process = subprocess.Popen(
                [
                    imageio_ffmpeg.get_ffmpeg_exe(),
                    *f"{general} {source} {self.options.format(level=level)}".split(),
                    f"file:{path}",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                start_new_session=True,
                bufsize=0,
            )
        except (OSError, RuntimeError) as error:
            raise UserError(f"output: cannot start ffmpeg: {error}; reinstall imageio-ffmpeg") from error
        assert self._process.stdin is not None
        self._stdin = self._process.stdin

    def write(self, frame: Frame) -> None:
        try:
            write_all(self._stdin, np.ascontiguousarray(frame).data)
        except PipeClosed:
            self._process.wait()
            raise self._failure() from None

    def close(self) -> None:
        # A second Ctrl-C while waiting leaves ffmpeg to finish by itself, under the temporary name.
        self._stdin.close()
        if self._process.wait() != 0:
            raise self._failure()
        self._said.close()

    def abort(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._said.close()

    def _failure(self) -> OSError:
        code = self._process.returncode
        if 256 - code in _DISK_ERRORS:
            return OSError(256 - code, os.strerror(256 - code))
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines() or [f"exit {code}"]
        return OSError(errno.EIO, "ffmpeg stopped: " + re.sub(r"^(\[[^]]*\] )+", "", lines[-1]))


class Mp4(_Encoder):
    """H.264, 4:2:0: plays in QuickTime and browsers."""

    endings: ClassVar[tuple[str, ...]] = ("mp4", "m4v")
    settings: ClassVar[_Settings] = (46, 36, 28, 18, 10)
    options = f"{_VIDEO_COLOURS} -c:v libx264 -crf {{level}} -movflags +faststart -f mp4"


class Webm(_Encoder):
    """VP9, 4:2:0."""

    endings: ClassVar[tuple[str, ...]] = ("webm",)
    settings: ClassVar[_Settings] = (63, 50, 38, 24, 10)
    # libvpx's own default speed is many times slower for a few per cent of size.
    options = (
        f"{_VIDEO_COLOURS} -c:v libvpx-vp9 -crf {{level}} -b:v 0 -deadline good -cpu-used 4 -row-mt 1 -f webm"
    )


class Gif(_Encoder):
    """GIF that loops for ever; delays are whole hundredths of a second whose sum keeps the true time."""

    endings: ClassVar[tuple[str, ...]] = ("gif",)
    settings: ClassVar[_Settings] = (24, 56, 112, 176, 256)  # colours

    def __init__(self, path: str, size: tuple[int, int], rate: Fraction, quality: int) -> None:
        # One palette for the whole file (one for each frame doubles the size), from its first frames, so
        # that everything after them streams. Ordered dither: error diffusion crawls.
        first = max(1, min(_PALETTE_FRAMES, _PALETTE_BYTES // (4 * size[0] * size[1])))
        thin = f"fps={_GIF_MAX_FPS}," if rate > _GIF_MAX_FPS else ""
        self.options = (
            f"-filter_complex {thin}split[head][all];"
            f"[head]trim=end_frame={first},palettegen=max_colors={{level}}:reserve_transparent=0[palette];"
            "[all][palette]paletteuse=dither=bayer:bayer_scale=5:diff_mode=rectangle -loop 0 -f gif"
        )
        super().__init__(path, size, rate, quality)


class Apng(_Encoder):
    """Animated PNG that loops for ever; lossless."""

    endings: ClassVar[tuple[str, ...]] = ("apng", "png")
    settings: ClassVar[_Settings] = None
    options = "-c:v apng -plays 0 -f apng"


class Webp(_Encoder):
    """Animated WebP that loops for ever."""

    endings: ClassVar[tuple[str, ...]] = ("webp",)
    settings: ClassVar[_Settings] = (3, 22, 65, 85, 95)
    # Not libwebp_anim: it holds the whole file in memory, and its files were larger on a lamp's pictures.
    options = "-c:v libwebp -quality {level} -loop 0 -f webp"


FORMATS: dict[str, type[_Format]] = {
    "mp4": Mp4,
    "webm": Webm,
    "gif": Gif,
    "apng": Apng,
    "webp": Webp,
    "y4m": Y4m,
    "raw": Raw,
}


def format_of(target: str, name: str | None = None) -> str:
    """The format to write: ``name`` (``--format``) where given, else by the ending of ``target``.

    Raises:
        UserError: the format is unknown, or ``target`` is ``-`` (stdout) and the format cannot be piped.
    """
    pipes = " or ".join(key for key, kind in FORMATS.items() if kind.pipes)
    endings = {ending: key for key, kind in FORMATS.items() for ending in kind.endings}
    if name is None and target == "-":
        raise UserError(f"output: - (stdout) needs a format that can be piped; give --format {pipes}")
    word = name if name is not None else Path(target).suffix
    found = endings.get(word.lower().lstrip("."))
    if found is None:
        hint, known = nearest(word.lower().lstrip("."), list(endings)), f"known: {', '.join(FORMATS)}"
        advice = f"{hint} ({known})" if hint.startswith("did you") else known
        if name is not None:
            raise UserError(f"--format: unknown format {name!r}; {advice}")
        raise UserError(f"output: the ending of {target} names no format; {advice}; or give --format")
    if target == "-" and not FORMATS[found].pipes:
        raise UserError(f"output: {found} cannot go to stdout; give --format {pipes}, or a file with -o")
    return found


def check_quality(name: str, quality: int | None) -> None:
    """Refuse a quality that a format has not, or that is none (UserError)."""
    if quality is None:
        return
    if FORMATS[name].settings is None:
        raise UserError(f"--quality: {name} loses nothing; leave it out, or write another format")
    if not 0 <= quality <= 100:
        raise UserError(f"--quality: must be from 0 to 100, not {quality}")


class Output:
    """A sink with what all formats share: enlarging, a temporary name until it is finished, plain errors.

    Attributes:
        frames: how many were written.
    """

    def __init__(
        self, target: str, name: str, size: tuple[int, int], rate: Fraction, scale: int, quality: int
    ) -> None:
        self._target, self._size, self._scale = target, size, scale
        self._final = self._path = None if target == "-" else Path(target).resolve()
        self.frames, self._open = 0, True
        try:
            # A device or a named pipe is written to as it is.
            if self._final is not None and (self._final.is_file() or not self._final.exists()):
                self._path = self._final.with_name(f"{self._final.name}.{secrets.token_hex(3)}.part")
                self._path.touch(exist_ok=False)  # now, not when the encoder gets there
            elif self._final is not None and self._final.is_dir():
                raise IsADirectoryError(errno.EISDIR, "is a folder; name a file in it")
            big = (size[0] * scale, size[1] * scale)
            self._sink = FORMATS[name]("-" if self._path is None else str(self._path), big, rate, quality)
        except BaseException as error:
            self._remove()
            raise self._plain(error) from None

    def _remove(self) -> None:
        if self._path is not None and self._path != self._final:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _plain(self, error: BaseException) -> BaseException:
        if not isinstance(error, OSError):
            return error
        if self._final is not None and not self._final.parent.exists():
            return UserError(
                f"output: the folder {self._final.parent} does not exist; make it, or name another"
            )
        return UserError(f"output: cannot write {self._target}: {error.strerror or error}")

    def write(self, frame: Frame) -> None:
        """Add a frame, uint8 (H, W, 3) of the size that was announced."""
        if frame.shape != (*self._size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"a frame must be uint8 {(*self._size, 3)}, not {frame.dtype} {frame.shape}")
        if not self._open:
            raise ValueError("the sink is closed")
        try:
            self._sink.write(enlarge(frame, self._scale))
        except Exception as error:
            self.abort()
            raise self._plain(error) from None
        self.frames += 1

    def close(self) -> None:
        """Finish the file under its own name; a second call does nothing."""
        if not self._open:
            return
        if self.frames == 0:  # no format has a file without pictures
            self.abort()
            return
        try:
            self._sink.close()
            if self._path is not None and self._final is not None and self._path != self._final:
                self._path.replace(self._final)
        except Exception as error:
            self.abort()
            raise self._plain(error) from None
        self._open = False

    def abort(self) -> None:
        """Give up and leave no file; after ``close`` it does nothing."""
        if self._open:
            self._open = False
            self._sink.abort()
            self._remove()


@contextlib.contextmanager
def open_sink(
    target: str,
    *,
    size: tuple[int, int],
    fps: float,
    format: str | None = None,
    scale: int = 1,
    quality: int | None = None,
) -> Iterator[Output]:
    """Open a file, or stdout for ``-``, to write frames to; it is finished on the way out.

    The file has a temporary name (``lava.mp4.1a2b3c.part``) until it is finished. It is finished too when
    the block is left by ``PipeClosed`` or by what is no ``Exception`` (Ctrl-C, ``SystemExit``): ending a
    lamp is no failure. Any other exception removes it. Without a frame no file is left.

    Args:
        target: a file's name, or ``-`` for stdout.
        size: height and width of the frames that will be written.
        fps: frames a second.
        format: a key of ``FORMATS``; by the ending of ``target`` if None.
        scale: whole factor by which the pictures are enlarged.
        quality: 0 to 100, of formats that lose something; ``QUALITY`` if None.

    Raises:
        UserError: the format is unknown or has no quality to choose, the place cannot be written, the disk
            is full, the encoder failed.
        PipeClosed: the reader of stdout is gone.
    """
    name = format_of(target, format)
    if scale < 1 or not fps > 0:
        raise UserError(f"output: fps and scale must be positive, not {fps:g} and {scale}")
    check_quality(name, quality)
    if target == "-" and sys.stdout.isatty():
        raise UserError("output: - is the terminal; pipe it into a player, for example … | ffplay -")
    # 29.97002997 → 30000/1001; 29.97 → 2997/100.
    rate = Fraction(fps).limit_denominator(1001)
    sink = Output(target, name, size, rate, scale, QUALITY if quality is None else quality)
    try:
        yield sink
    except PipeClosed:
        sink.close()
        raise
    except Exception:
        sink.abort()
        raise
    except BaseException:
        sink.close()
        raise
    sink.close()
