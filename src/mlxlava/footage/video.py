"""Decoding videos with ffmpeg."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

from mlxlava.errors import UserError

UNKNOWN_FPS = 30.0  # where ffmpeg finds no rate, and for folders of pictures

_PASSTHROUGH = ("-fps_mode", "passthrough")  # frames as they are, none repeated to keep time


class VideoDecoder:
    """One run of ffmpeg. Iterate over it for the frames that can be decoded, RGB; then ask what went wrong.

    Frames come as PPM, since its headers have the size after rotation. They come at a constant rate: where a
    video's rate varies, frames are repeated or left out, so that a step always takes the same time. Use it in
    a ``with`` statement, which ends the process.

    Args:
        path: the video.
        input_options: options of ffmpeg that stand before the input.
        output_options: options that stand after it.

    Raises:
        UserError: there is no ffmpeg.
    """

    def __init__(
        self, path: Path, *, input_options: Sequence[str] = (), output_options: Sequence[str] = ()
    ) -> None:
        try:
            program = imageio_ffmpeg.get_ffmpeg_exe()
        except RuntimeError as error:
            raise UserError(f"footage: {error}") from error
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        command = [program, "-nostdin", "-nostats", "-hide_banner"]
        command += ["-loglevel", "level+info", "-protocol_whitelist", "file,pipe", *input_options]
        # V is video that is no cover picture; pixels that are not square are made so.
        command += ["-i", f"file:{path.resolve()}", "-map", "0:V:0"]
        command += ["-vf", "scale=round(iw*sar):ih", "-pix_fmt", "rgb24"]
        command += [*output_options, "-c:v", "ppm", "-f", "image2pipe", "-"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log
        )

    def __enter__(self) -> VideoDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def __iter__(self) -> Iterator[Image.Image]:
        pipe = self._process.stdout
        assert pipe is not None
        while pipe.readline() == b"P6\n":
            width, height = map(int, pipe.readline().split())
            pipe.readline()
            data = pipe.read(3 * width * height)
            if len(data) < 3 * width * height:
                break
            yield Image.frombuffer("RGB", (width, height), data, "raw", "RGB", 0, 1)

    def fps(self) -> float:
        """Frames a second of ffmpeg's output. They are known once the first frame has come."""
        found = re.search(r"Output #0.*?([0-9.]+)(k?) fps", self._text(), re.DOTALL)
        return float(found[1]) * (1000 if found[2] else 1) if found else UNKNOWN_FPS

    def expected_frames(self) -> int | None:
        """Number of frames by the length in the file's header; None where it has none."""
        found = re.search(r"Duration: (\d+):(\d+):([0-9.]+)", self._text())
        if not found:
            return None
        return round((int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])) * self.fps())

    def complaints(self) -> list[str]:
        """ffmpeg's error messages, without their prefixes. Call it once all frames are read."""
        code = self._process.wait()
        lines = [line for line in self._text().splitlines() if "[error]" in line or "[fatal]" in line]
        texts = [re.sub(r"^(\[[^]]*\] )*", "", line).strip() for line in lines]
        return texts or ([f"ffmpeg ended with code {code}"] if code else [])

    def is_text(self) -> bool:
        """Whether this is a text file, which ffmpeg draws too. Known once the first frame has come."""
        return "Input #0, tty" in self._text()

    def why_nothing(self) -> str:
        """Why there is no first frame."""
        complaints = self.complaints()
        if any("matches no streams" in line for line in complaints):
            return "has no video stream"
        return f"cannot be read as a video ({complaints[0] if complaints else 'no frame decodes'})"

    def _text(self) -> str:
        """The log so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), min(size, 1 << 16), 0).decode("utf-8", "replace")


def sample_runs(path: Path) -> Iterator[Iterator[Image.Image]]:
    """Samples of a video, the cheapest first: its key frames, which decode fast, then all its frames."""
    for skipped in ("nokey", "none"):
        options = ("-skip_frame", skipped)
        with VideoDecoder(path, input_options=options, output_options=_PASSTHROUGH) as video:
            yield iter(video)
