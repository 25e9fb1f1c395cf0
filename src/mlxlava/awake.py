"""Keeping a Mac from falling asleep while it works."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CAFFEINATE = Path("/usr/bin/caffeinate")  # part of macOS
ON_MACOS = sys.platform == "darwin"


@contextlib.contextmanager
def keep_awake() -> Iterator[None]:
    """Keep this Mac from idle sleep inside the block; its display may still go dark.

    Whoever closes the lid still sends it to sleep, and the work goes on when it wakes up. Nothing happens on
    other systems, nor where ``caffeinate`` is missing. ``caffeinate`` ends with the block; ``-w`` ends it as
    well when this process is killed. Of a distributed run each process has its own: it may be on another Mac.
    """
    helper = None
    if ON_MACOS:
        with contextlib.suppress(OSError):
            helper = subprocess.Popen(
                [CAFFEINATE, "-i", "-w", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # A terminal sends Ctrl-C to all of a session. After it there is still a checkpoint to write.
                start_new_session=True,
            )
    try:
        yield
    finally:
        if helper is not None:
            helper.terminate()
            helper.wait()
