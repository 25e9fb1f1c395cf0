"""Uncompressed formats that Python writes itself. They need no encoder, so they can go into a pipe."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np

from mlxlava.playback.writers.base import EncoderSettings, Frame, unbuffered_stdout, write_all
from mlxlava.products import matmul

# BT.601 in studio range. Players assume it for a YUV4MPEG2 stream, which cannot name its colours.
_YUV_MATRIX = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=np.float32
) / np.float32(255)
_YUV_OFFSET = np.array([[16.5], [128.5], [128.5]], dtype=np.float32)  # 0.5 more, so that truncation rounds


class _UncompressedWriter:
    """A header, then the same number of bytes for each frame."""

    can_be_piped: ClassVar[bool] = True
    bytes_per_pixel: ClassVar[int | None] = 3
    encoder_settings: ClassVar[EncoderSettings] = None

    def __init__(self, path: str, header: bytes, frame_bytes: int) -> None:
        self._path, self._header_bytes, self._frame_bytes = path, len(header), frame_bytes
        self._file = unbuffered_stdout() if path == "-" else io.FileIO(path, "w")
        write_all(self._file, header)

    def _pack_frame(self, frame: Frame) -> bytes:
        raise NotImplementedError

    def write(self, frame: Frame) -> None:
        write_all(self._file, self._pack_frame(frame))

    def close(self) -> None:
        if self._path != "-":
            self._file.close()
        if Path(self._path).is_file():
            # Ctrl-C during a write leaves an incomplete frame at the end.
            frames = (Path(self._path).stat().st_size - self._header_bytes) // self._frame_bytes
            os.truncate(self._path, self._header_bytes + frames * self._frame_bytes)

    def abort(self) -> None:
        if self._path != "-":
            self._file.close()


class RawWriter(_UncompressedWriter):
    """RGB24 frames without a header. The reader must know their size and rate."""

    endings: ClassVar[tuple[str, ...]] = ("raw", "rgb")

    def __init__(self, path: str, size: tuple[int, int], rate: Fraction, quality: int) -> None:
        super().__init__(path, b"", size[0] * size[1] * 3)

    def _pack_frame(self, frame: Frame) -> bytes:
        return frame.tobytes()


class Y4mWriter(_UncompressedWriter):
    """YUV4MPEG2, 4:4:4, with size and rate in its header. Players read it from a pipe."""

    endings: ClassVar[tuple[str, ...]] = ("y4m",)

    def __init__(self, path: str, size: tuple[int, int], rate: Fraction, quality: int) -> None:
        height, width = size
        tags = f"W{width} H{height} F{rate.numerator}:{rate.denominator} Ip A1:1 C444 XCOLORRANGE=LIMITED"
        super().__init__(path, f"YUV4MPEG2 {tags}\n".encode(), len(b"FRAME\n") + height * width * 3)

    def _pack_frame(self, frame: Frame) -> bytes:
        rgb = frame.reshape(-1, 3).T.astype(np.float32)  # (H, W, 3) -> (3, H*W)
        yuv = matmul(_YUV_MATRIX, rgb) + _YUV_OFFSET
        return b"FRAME\n" + yuv.astype(np.uint8).tobytes()
