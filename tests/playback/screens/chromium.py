"""A headless Chromium, driven over its DevTools protocol: as much as the web page's tests need."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")

CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), str(_MAC) if _MAC.exists() else None)

Box = dict[str, Any]


class Tab:
    """One page in a window of its own.

    Attributes:
        complaints: errors, of scripts and of the console, and what the content policy refused.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.complaints: list[str] = []

    async def call(self, method: str, **params: Any) -> Box:
        return await self._browser.call(method, self._session, **params)

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, script: str, seconds: float = 20) -> Any:
        """Wait until an expression is true."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not (value := await self.run(script)):
            assert loop.time() < end, f"never came true: {script}; {self.complaints}"
            await asyncio.sleep(0.05)
        return value

    async def press(self, key: str, **more: Any) -> None:
        """Press a key and let go."""
        text = {"text": key} if len(key) == 1 else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **more)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    async def click(self, selector: str) -> None:
        """Click into the middle of an element."""
        place = await self.run(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
            )

    async def resize(self, width: int, height: int, *, phone: bool = False, scale: float = 1) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )
        await self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    async def picture(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


class Browser:
    """A running Chromium."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._answers: dict[int, asyncio.Future[Box]] = {}
        self._tabs: dict[str, Tab] = {}
        self._count = 0
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif (tab := self._tabs.get(said.get("sessionId", ""))) is not None:
                if said["method"] == "Runtime.exceptionThrown":
                    tab.complaints.append(str(said["params"]["exceptionDetails"]))
                elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                    tab.complaints.append(said["params"]["entry"]["text"])
                elif said["method"] == "Runtime.consoleAPICalled" and said["params"]["type"] == "error":
                    tab.complaints.append(str(said["params"]["args"]))

    async def call(self, method: str, session: str | None = None, **params: Any) -> Box:
        self._count += 1
        answer = self._answers[self._count] = asyncio.get_running_loop().create_future()
        request: Box = {"id": self._count, "method": method, "params": params}
        await self._socket.send_json(request if session is None else request | {"sessionId": session})
        said = await asyncio.wait_for(answer, 60)
        assert "error" not in said, (method, said)
        result: Box = said["result"]
        return result

    async def open(self, url: str, *, still: bool = False, before: str = "") -> Tab:
        """Open an address in a window of its own.

        ``still`` is for a viewer who wants less motion. ``before`` is a script that runs before
        the page's own.
        """
        # A window of its own: a tab behind another is in the background and draws nothing.
        target = (await self.call("Target.createTarget", url="about:blank", newWindow=True))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Log"):
            await tab.call(f"{domain}.enable")
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"}
        await tab.call("Emulation.setEmulatedMedia", features=[motion])
        if before:
            await tab.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        await tab.call("Page.navigate", url=url)
        await tab.until("document.readyState === 'complete'")
        return tab

    async def close(self) -> None:
        self._reader.cancel()
        await self._socket.close()


@contextlib.asynccontextmanager
async def chromium(*, webgl: bool = False) -> AsyncIterator[Browser]:
    """A headless Chromium with an empty profile; ``webgl`` for one that computes WebGL on the CPU."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",  # root in a container has none
            *(("--use-angle=swiftshader", "--enable-unsafe-swiftshader") if webgl else ("--disable-gpu",)),
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            place = Path(profile, "DevToolsActivePort")
            for _ in range(600):
                if place.exists() and len(lines := place.read_text().split()) == 2:
                    break
                await asyncio.sleep(0.05)
            port, path = lines
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
            ):
                browser = Browser(socket)
                try:
                    yield browser
                finally:
                    await browser.close()
        finally:
            process.terminate()
            await process.wait()


async def assert_controls_fit(tab: Tab, width: int, height: int, count: int) -> None:
    """There are ``count`` controls. All lie within the page and are large enough for a finger, 44 pixels."""
    boxes = await tab.run(
        "[...document.querySelectorAll('button, label')].map((one) => one.getBoundingClientRect())"
        ".map((box) => [box.left, box.top, box.right, box.bottom])"
    )
    assert len(boxes) == count
    for left, top, right, bottom in boxes:
        assert left >= 0 and right <= width and top >= 0 and bottom <= height
        assert min(right - left, bottom - top) >= 44


async def _look(url: str) -> Image.Image:
    """A lamp's page on a desktop and on a phone, side by side."""
    shots = []
    async with chromium() as browser:
        for width, height, phone in ((1024, 600, False), (337, 600, True)):
            tab = await browser.open(url)
            await tab.resize(width, height, phone=phone)
            await tab.until("document.getElementById('moments').textContent")
            await tab.until("document.getElementById('lamp').width > 100")
            await tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=9, y=9)
            await asyncio.sleep(1)
            shots.append(Image.open(io.BytesIO(await tab.picture())).convert("RGB"))
    both = Image.new("RGB", (1024 + 16 + 337, 600), "white")
    both.paste(shots[0], (0, 0))
    both.paste(shots[1], (1040, 0))
    return both


if __name__ == "__main__":  # python tests/playback/screens/chromium.py URL FILE.png: the picture in the docs
    # A palette makes it a third of the size.
    asyncio.run(_look(sys.argv[1])).quantize(256, kmeans=3).save(sys.argv[2], optimize=True)
