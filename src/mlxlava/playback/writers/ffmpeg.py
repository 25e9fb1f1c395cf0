"""Compressed formats, written by the ffmpeg of imageio-ffmpeg. Each format is a line of ffmpeg's options."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import tempfile
from fractions import Fraction
from typing import ClassVar

import imageio_ffmpeg
import numpy as np

from mlxlava.errors import UserError
from mlxlava.playback.writers.base import QUALITY_LEVELS, EncoderSettings, Frame, PipeClosed, write_all

# The file says that its colours are BT.709. If a file does not say so, browsers and QuickTime guess
# differently.
_VIDEO_COLOUR_OPTIONS = (
    "-vf scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)

# The palette of a GIF is made from its first frames. They wait in memory until then, so their number is
# limited.
_MAX_FRAME_BYTES_FOR_PALETTE = 2**28
_MAX_FRAMES_FOR_PALETTE = 250

# Browsers play GIF frames of 1/100 s ten times too slowly. So frames last at least 2/100 s.
_GIF_MAX_FPS = 50

# ffmpeg exits with 256 − errno. For these numbers, errno says more than the last line that ffmpeg prints.
_DISK_ERROR_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _FfmpegWriter:
    """An ffmpeg process that reads raw frames from a pipe.

    Attributes:
        options: options for the output. No single option may contain a space. ``{level}`` stands for the
            encoder's setting at the chosen quality.
    """

    can_be_piped: ClassVar[bool] = False
    bytes_per_pixel: ClassVar[int | None] = None
    encoder_settings: ClassVar[EncoderSettings]
    options: str

    def __init__(self, path: str, size: tuple[int, int], rate: Fraction, quality: int) -> None:
        level = (
            None
            if self.encoder_settings is None
            else round(np.interp(quality, QUALITY_LEVELS, self.encoder_settings))
        )
        # discardcorrupt: Ctrl-C during a write leaves an incomplete frame at the end.
        general = "-hide_banner -loglevel error -nostats -y -fflags +discardcorrupt"
        source = f"-f rawvideo -pix_fmt rgb24 -s {size[1]}x{size[0]} -r {rate} -i -"
        try:
            self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe could fill up and stop ffmpeg
            # Its own session: a terminal's Ctrl-C must not reach it before close() has finished the file.
            self._process = subprocess.Popen(
                [
                    imageio_ffmpeg.get_ffmpeg_exe(),
                    *f"{general} {source} {self.options.format(level=level)}".split(),
                    f"file:{path}",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._messages,
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
            raise self._describe_failure() from None

    def close(self) -> None:
        # After a second Ctrl-C during this wait ffmpeg finishes by itself, under the temporary name.
        self._stdin.close()
        if self._process.wait() != 0:
            raise self._describe_failure()
        self._messages.close()

    def abort(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._messages.close()

    def _describe_failure(self) -> OSError:
        """Why ffmpeg has stopped."""
        code = self._process.returncode
        if 256 - code in _DISK_ERROR_NUMBERS:
            return OSError(256 - code, os.strerror(256 - code))
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines() or [f"exit {code}"]
        return OSError(errno.EIO, "ffmpeg stopped: " + re.sub(r"^(\[[^]]*\] )+", "", lines[-1]))


class Mp4Writer(_FfmpegWriter):
    """H.264, 4:2:0. QuickTime and browsers play it."""

    endings: ClassVar[tuple[str, ...]] = ("mp4", "m4v")
    encoder_settings: ClassVar[EncoderSettings] = (46, 36, 28, 18, 10)
    options = f"{_VIDEO_COLOUR_OPTIONS} -c:v libx264 -crf {{level}} -movflags +faststart -f mp4"


class WebmWriter(_FfmpegWriter):
    """VP9, 4:2:0."""

    endings: ClassVar[tuple[str, ...]] = ("webm",)
    encoder_settings: ClassVar[EncoderSettings] = (63, 50, 38, 24, 10)
    # libvpx's own default speed is many times slower for a few per cent of size.
    options = (
        f"{_VIDEO_COLOUR_OPTIONS} -c:v libvpx-vp9 -crf {{level}} -b:v 0 -deadline good -cpu-used 4 "
        "-row-mt 1 -f webm"
    )


class GifWriter(_FfmpegWriter):
    """GIF that loops for ever. Delays are whole hundredths of a second, and their sum keeps the true time."""

    endings: ClassVar[tuple[str, ...]] = ("gif",)
    encoder_settings: ClassVar[EncoderSettings] = (24, 56, 112, 176, 256)  # colours

    def __init__(self, path: str, size: tuple[int, int], rate: Fraction, quality: int) -> None:
        # There is one palette for the whole file, since one for each frame would double the size. It is made
        # from the first frames, so that later frames need not wait. The dither is ordered: error diffusion
        # flickers.
        first = max(1, min(_MAX_FRAMES_FOR_PALETTE, _MAX_FRAME_BYTES_FOR_PALETTE // (4 * size[0] * size[1])))
        thin = f"fps={_GIF_MAX_FPS}," if rate > _GIF_MAX_FPS else ""
        self.options = (
            f"-filter_complex {thin}split[head][all];"
            f"[head]trim=end_frame={first},palettegen=max_colors={{level}}:reserve_transparent=0[palette];"
            "[all][palette]paletteuse=dither=bayer:bayer_scale=5:diff_mode=rectangle -loop 0 -f gif"
        )
        super().__init__(path, size, rate, quality)


class ApngWriter(_FfmpegWriter):
    """Animated PNG that loops for ever. Lossless."""

    endings: ClassVar[tuple[str, ...]] = ("apng", "png")
    encoder_settings: ClassVar[EncoderSettings] = None
    options = "-c:v apng -plays 0 -f apng"


class WebpWriter(_FfmpegWriter):
    """Animated WebP that loops for ever."""

    endings: ClassVar[tuple[str, ...]] = ("webp",)
    encoder_settings: ClassVar[EncoderSettings] = (3, 22, 65, 85, 95)
    # Not libwebp_anim: it holds the whole file in memory, and its files of a lamp were larger.
    options = "-c:v libwebp -quality {level} -loop 0 -f webp"
