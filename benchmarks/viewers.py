"""What the web page costs: pictures a second at each viewer, and the server's share of a processor.

    python -m benchmarks.viewers                       # the shipped lamp
    python -m benchmarks.viewers lamp --size 256       # any other command that plays on a screen

Viewers are WebSockets in this process, which say at once that they have drawn a picture. What they cost is
not counted. The share is the user and system time of the server's process, divided by wall time.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time

import aiohttp
import psutil

SECONDS = 10.0
VIEWERS = (0, 1, 5, 20, 100)


async def view(session: aiohttp.ClientSession, url: str, until: float) -> tuple[int, int]:
    """Look at a page until a moment (time.monotonic()): the number of pictures, and their bytes."""
    count = size = 0
    async with session.ws_connect(f"{url}live", headers={"Origin": url.rstrip("/")}) as viewer:
        while (left := until - time.monotonic()) > 0:
            try:
                message = await viewer.receive(timeout=left)
            except asyncio.TimeoutError:
                break
            if message.type is aiohttp.WSMsgType.BINARY:
                count, size = count + 1, size + len(message.data)
                await viewer.send_json({"drawn": count})
    return count, size


async def _measure(process: psutil.Process, url: str, viewers: int) -> dict[str, float]:
    async with aiohttp.ClientSession() as session:
        start, used = time.monotonic(), sum(process.cpu_times()[:2])
        views = await asyncio.gather(*(view(session, url, start + SECONDS) for _ in range(viewers)))
        await asyncio.sleep(max(0.0, start + SECONDS - time.monotonic()))  # where nobody looks
        wall, used = time.monotonic() - start, sum(process.cpu_times()[:2]) - used
    counts = [count for count, _ in views]
    bytes_each = sum(size for _, size in views) / max(sum(counts), 1)
    return {
        "viewers": viewers,
        "least pictures a second": round(min(counts, default=0) / wall, 1),
        "most": round(max(counts, default=0) / wall, 1),
        "kB a picture": round(bytes_each / 1000, 1),
        "share of a processor": round(used / wall, 3),
        "ms of it a picture": round(1000 * used / max(counts, default=0), 2) if counts else 0.0,
    }


def main() -> None:
    """Play, watch, and print one line of JSON for each number of viewers."""
    arguments = sys.argv[1:] or ["loop"]
    command = [sys.executable, "-m", "mlxlava", *arguments, "--screen", "web", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        url = next(word for word in server.stderr.readline().split() if "://" in word)
        asyncio.run(_measure(psutil.Process(server.pid), url, 1))  # warm
        for viewers in VIEWERS:
            print(json.dumps(asyncio.run(_measure(psutil.Process(server.pid), url, viewers))), flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
