"""Does the web page's server leak memory with each viewer? Viewers come, stay for a moment, and leave.

    python -m benchmarks.churn [--seconds 200]

Every ten seconds it prints frames, viewers that have come, resident memory, and the memory that the C
library has given out. With a leak both figures of memory rise all the time. While a heap still grows to its
final size, only the first one rises. Linux with glibc only.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import multiprocessing
import time
from collections.abc import Iterable, Iterator, Sequence

import aiohttp
import numpy as np
import psutil

from mlxlava.backend.cpu.allocator import keep_freed_pages
from mlxlava.playback.clock import WallClock
from mlxlava.playback.screens.web import WebPage
from mlxlava.playback.session import FrameSource, Session
from mlxlava.playback.writers import Frame

_FPS = 100.0
_VIEWERS = 20
_STAY_SECONDS = (0.2, 1.0)
_REPORT_SECONDS = 10.0


class _MallocInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks"),
            "keepcost",
        )
    )


class Still:
    """A lamp that is shown by hand."""

    names: Sequence[str] = ["still"]

    def open(self, name: str, seed: int) -> FrameSource:
        """A lamp without frames of its own."""

        def play(times: Iterable[float]) -> Iterator[tuple[float, Frame]]:
            return iter(())

        return FrameSource(play, (256, 128), lambda: (0.0, 1.0, 0.0, 3.0))


async def _view(url: str, come: object) -> None:
    await asyncio.gather(*(_come_and_go(url, come, number) for number in range(_VIEWERS)))


async def _come_and_go(url: str, come: object, number: int) -> None:
    random = np.random.default_rng(number)
    headers = {"Origin": url.rstrip("/")}
    while True:
        until = time.monotonic() + random.uniform(*_STAY_SECONDS)
        async with aiohttp.ClientSession() as session:
            async with session.get(url) as page:
                await page.read()
            async with session.ws_connect(f"{url}live", headers=headers) as viewer:
                with come.get_lock():  # type: ignore[attr-defined]
                    come.value += 1  # type: ignore[attr-defined]
                count = 0
                while time.monotonic() < until:
                    message = await viewer.receive()
                    if message.type is aiohttp.WSMsgType.BINARY:
                        count += 1
                        await viewer.send_json({"drawn": count})


def _run_viewers(url: str, come: object) -> None:
    asyncio.run(_view(url, come))


def main() -> None:
    """Show frames, and print a row every ten seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=200.0)
    seconds = parser.parse_args().seconds
    keep_freed_pages()  # as wherever a lamp plays
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = _MallocInfo
    across = np.linspace(0, 200, 128)[None, :, None]
    noise = np.random.default_rng(0).integers(0, 40, (16, 256, 128, 3))
    frames = (across + noise).astype(np.uint8)
    processes = multiprocessing.get_context("spawn")
    come = processes.Value("i", 0)
    session, process = Session(Still(), "still", 0, WallClock(_FPS)), psutil.Process()
    with WebPage(session, port=0) as page:
        viewers = processes.Process(target=_run_viewers, args=(page.url, come), daemon=True)
        viewers.start()
        start, shown, reports = time.monotonic(), 0, 0
        print("seconds  frames  viewers  resident, MB  given out, MB")
        while (now := time.monotonic() - start) < seconds:
            page.show(frames[shown % len(frames)].copy())
            shown += 1
            session.count_shown_frame(shown / _FPS)
            if now >= reports * _REPORT_SECONDS:
                reports += 1
                resident, given = process.memory_info().rss / 1e6, libc.mallinfo2().uordblks / 1e6
                print(f"{now:7.0f} {shown:7} {come.value:8} {resident:13.2f} {given:14.2f}", flush=True)
            time.sleep(1 / _FPS)
        viewers.kill()
        viewers.join()


if __name__ == "__main__":
    main()
