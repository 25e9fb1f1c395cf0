"""Writers of frames to files that can be played, or to a stream on stdout.

``open_writer`` opens a writer. The table of formats is in formats.py, and the code that all formats share is
in base.py. Frames are uint8 (H, W, 3).
"""

from mlxlava.playback.writers.base import Frame, OutputFile, PipeClosed, Writer, unbuffered_stdout, write_all
from mlxlava.playback.writers.formats import (
    WRITER_OF_FORMAT,
    check_quality,
    choose_format,
    open_writer,
    require_room,
)

__all__ = [
    "WRITER_OF_FORMAT",
    "Frame",
    "OutputFile",
    "PipeClosed",
    "Writer",
    "check_quality",
    "choose_format",
    "open_writer",
    "require_room",
    "unbuffered_stdout",
    "write_all",
]
