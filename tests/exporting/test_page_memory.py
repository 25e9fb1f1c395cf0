"""The page's memory stays flat while it plays. It takes five minutes, so CI does not run it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="needs the extra `dev`")
pytest.importorskip("aiohttp", reason="needs the extra `web`, for the browser")

import psutil

import mlxlava
from tests.playback.screens.chromium import CHROMIUM, Tab, chromium

MINUTES = 5
MB = 2**20


async def used(tab: Tab) -> tuple[float, float]:
    """MB of the page's JavaScript after a collection, and of the whole process that runs the page."""
    await tab.call("HeapProfiler.collectGarbage")
    metrics = (await tab.call("Performance.getMetrics"))["metrics"]
    heap = next(metric["value"] for metric in metrics if metric["name"] == "JSHeapUsedSize")
    pages = [
        child for child in psutil.Process().children(recursive=True) if "--type=renderer" in child.cmdline()
    ]
    return heap / MB, max(child.memory_info().rss for child in pages) / MB


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_memory_is_flat_for_five_minutes(tmp_path: Path) -> None:
    async def play() -> list[tuple[float, float]]:
        page = tmp_path / "lamp.html"
        mlxlava.export("lava-64", web=page)
        async with chromium() as browser:
            tab = await browser.open(f"{page.as_uri()}#speed=50")  # 75,000 learned steps
            await tab.call("Performance.enable")
            await tab.until("document.getElementById('count').textContent", 60)
            found = []
            for _ in range(MINUTES):
                await asyncio.sleep(60)
                found.append(await used(tab))
            assert tab.complaints == []
            return found

    (first_heap, first_rss), *_, (last_heap, last_rss) = asyncio.run(play())
    assert last_heap < first_heap + 1
    assert last_rss < first_rss + 16
