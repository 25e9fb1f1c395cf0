"""Keeping a Mac from falling asleep while it works."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CAFFEINATE_PATH = Path("/usr/bin/caffeinate")  # part of macOS
ON_MACOS = sys.platform == "darwin"


@contextlib.contextmanager
def keep_awake() -> Iterator[None]:
    """Keep this Mac from idle sleep inside the block; its display may still go dark.

    Closing the lid still sends the Mac to sleep, and the work goes on when it wakes up. On other systems, or
    without ``caffeinate``, nothing happens. ``caffeinate`` ends with the block; with ``-w`` it also ends when
    this process is killed. In a distributed run each process has its own ``caffeinate``, since it may run on
    another Mac.
    """
    helper = None
    if ON_MACOS:
        with contextlib.suppress(OSError):
            helper = subprocess.Popen(
                [CAFFEINATE_PATH, "-i", "-w", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # A terminal sends Ctrl-C to its whole session. After Ctrl-C a checkpoint still has to be
                # written.
                start_new_session=True,
            )
    try:
        yield
    finally:
        if helper is not None:
            helper.terminate()
            helper.wait()
