"""Uncompressed formats that Python writes itself. They need no encoder, so they can go into a pipe."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np

from mlxlava.playback.writers.base import Frame, Settings, unbuffered_stdout, write_all
from mlxlava.products import matmul

# BT.601, studio range: what players assume of a YUV4MPEG2 stream, which has no tag for it.
_YUV = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=np.float32
) / np.float32(255)
_YUV_OFFSET = np.array([[16.5], [128.5], [128.5]], dtype=np.float32)  # 0.5 more, so that truncation rounds


class _Uncompressed:
    """A header, then the same number of bytes for each frame."""

    pipes: ClassVar[bool] = True
    settings: ClassVar[Settings] = None

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
            # Ctrl-C during a write leaves an incomplete frame at the end.
            frames = (Path(self._path).stat().st_size - self._header_bytes) // self._frame_bytes
            os.truncate(self._path, self._header_bytes + frames * self._frame_bytes)

    def abort(self) -> None:
        if self._path != "-":
            self._file.close()


class Raw(_Uncompressed):
    """RGB24 frames without a header. The reader must know their size and rate."""

    endings: ClassVar[tuple[str, ...]] = ("raw", "rgb")

    def __init__(self, path: str, size: tuple[int, int], rate: Fraction, quality: int) -> None:
        super().__init__(path, b"", size[0] * size[1] * 3)

    def _pack(self, frame: Frame) -> bytes:
        return frame.tobytes()


class Y4m(_Uncompressed):
    """YUV4MPEG2, 4:4:4, with size and rate in its header. Players read it from a pipe."""

    endings: ClassVar[tuple[str, ...]] = ("y4m",)

    def __init__(self, path: str, size: tuple[int, int], rate: Fraction, quality: int) -> None:
        height, width = size
        tags = f"W{width} H{height} F{rate.numerator}:{rate.denominator} Ip A1:1 C444 XCOLORRANGE=LIMITED"
        super().__init__(path, f"YUV4MPEG2 {tags}\n".encode(), len(b"FRAME\n") + height * width * 3)

    def _pack(self, frame: Frame) -> bytes:
        rgb = frame.reshape(-1, 3).T.astype(np.float32)  # (H, W, 3) -> (3, H*W)
        yuv = matmul(_YUV, rgb) + _YUV_OFFSET
        return b"FRAME\n" + yuv.astype(np.uint8).tobytes()
