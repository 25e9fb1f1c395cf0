"""What a lamp as a web page costs, in a headless Chromium without a GPU.

    python -m benchmarks.web_page                # the pages of the shipped lamps
    python -m benchmarks.web_page FOLDER         # the page of other weights, whole and at half size
    python -m benchmarks.web_page --runtimes     # beside onnxruntime-web and TensorFlow.js; needs npm

The first prints a table: the size of each page, the time to its first frame, frames a second (the page asks
for 30), the share of a processor that all processes of the browser take, and how many frames a second of a
processor give, which depends less on what else runs. The second prints, for each way to draw, what it would
add to a page, and the least time of nine frames, in three rounds. Least, since other programs may run. WebGL
is computed on the processor here (SwiftShader), which says little about a GPU.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil
from aiohttp import web

import mlxlava
from mlxlava.exporting.portable import make_portable
from mlxlava.exporting.web_page import pack_numbers
from mlxlava.rollout.roll import Rollout
from tests.playback.screens.chromium import Browser, chromium

LAMPS = ("lava-64", "lava")
SECONDS = 15.0
ROUNDS = 3
FRAMES = 9  # as in runtimes.html
PAGE = Path(mlxlava.__file__).parent / "exporting/page"

PACKAGES = (
    "onnxruntime-web@1.30.0",
    "@tensorflow/tfjs-core@4.22.0",
    "@tensorflow/tfjs-backend-wasm@4.22.0",
    "@tensorflow/tfjs-backend-webgl@4.22.0",
)
_ORT, _TF = "onnxruntime-web/dist/", "@tensorflow/tfjs-"
# What a page would have to hold.
RUNTIMES: dict[str, Sequence[Path | str]] = {
    "own, WebAssembly": (PAGE / "wasm.js", PAGE / "convolution.wasm"),
    "own, WebGL": (PAGE / "webgl.js",),
    "onnxruntime-web, WebAssembly": (
        f"{_ORT}ort.wasm.min.js",
        f"{_ORT}ort-wasm-simd-threaded.mjs",
        f"{_ORT}ort-wasm-simd-threaded.wasm",
    ),
    "onnxruntime-web, WebGL": (f"{_ORT}ort.webgl.min.js",),
    "onnxruntime-web, WebGPU": (
        f"{_ORT}ort.webgpu.min.js",
        f"{_ORT}ort-wasm-simd-threaded.asyncify.mjs",
        f"{_ORT}ort-wasm-simd-threaded.asyncify.wasm",
    ),
    "TensorFlow.js, WebAssembly": (
        f"{_TF}core/dist/tf-core.min.js",
        f"{_TF}backend-wasm/dist/tf-backend-wasm.min.js",
        f"{_TF}backend-wasm/dist/tfjs-backend-wasm-simd.wasm",
    ),
    "TensorFlow.js, WebGL": (
        f"{_TF}core/dist/tf-core.min.js",
        f"{_TF}backend-webgl/dist/tf-backend-webgl.min.js",
    ),
}

_WATCH = """
  const watch = setInterval(() => {
    if (document.getElementById("count")?.textContent) {
      window.firstFrame = performance.now();
      clearInterval(watch);
    }
  }, 2);"""
_FRAME = "Number(document.getElementById('count').textContent.split(' ')[1].replace(',', ''))"


def _processor_seconds() -> float:
    """User and system time of all processes that this one has started."""
    times = (child.cpu_times() for child in psutil.Process().children(recursive=True))
    return float(sum(each.user + each.system for each in times))


async def _play(browser: Browser, page: Path, how: str, half: int) -> dict[str, Any]:
    """Play a page for a while."""
    tab = await browser.open(f"{page.as_uri()}#draw={how}&half={half}", before=_WATCH)
    await tab.until("window.firstFrame", 60)
    begun, frame, used = time.monotonic(), await tab.run(_FRAME), _processor_seconds()
    await asyncio.sleep(SECONDS)
    drawn, wall, used = (
        await tab.run(_FRAME) - frame,
        time.monotonic() - begun,
        _processor_seconds() - used,
    )
    said = await tab.run("document.getElementById('count').textContent")
    size = "×".join(map(str, await tab.run("mlxlava.about.size")))
    row = {
        "page": f"{page.stem}, {size}",
        "MB": round(page.stat().st_size / 1e6, 2),
        "drawn by": re.sub(".* by ", "", said),
        "first frame, s": round(await tab.run("firstFrame") / 1000, 2),
        "frames a second": round(drawn / wall, 1),
        "share of a processor": round(used / wall, 2),
        "frames a second of a processor": round(drawn / used),
    }
    await tab.call("Page.close")
    return row


async def measure_pages(folder: Path, lamps: Sequence[tuple[str, int]]) -> None:
    """Print a row for each lamp (name or folder of weights, 1 for half its size) and way to draw."""
    headed = False
    for how in ("wasm", "webgl"):
        async with chromium(webgl=how == "webgl") as browser:
            for name, half in lamps:
                page = folder / f"{Path(name).name}.html"
                mlxlava.export(name, web=page)
                row = await _play(browser, page, how, half)
                if not headed:
                    print(f"| {' | '.join(row)} |\n{'|---' * len(row)}|")
                    headed = True
                print(f"| {' | '.join(map(str, row.values()))} |", flush=True)


def _prepare_lamp(name: str, folder: Path) -> None:
    """Write what all ways to draw need of a lamp, and what its first frame should be."""
    import onnx  # from its extra, which pages without a runtime do not need

    weights = mlxlava.export(name, onnx=folder)
    # WebGL of onnxruntime takes no batch of any size.
    model = onnx.load(folder / "generator.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, folder / "generator.onnx")
    about, numbers = pack_numbers(make_portable(weights))
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "numbers.txt").write_bytes(base64.b64encode(numbers))
    states = np.random.default_rng(0).standard_normal((FRAMES, about["stateSize"]), np.float32)
    (folder / "states.bin").write_bytes(states.tobytes())
    (folder / "frame.bin").write_bytes(Rollout(weights).draw(states[:1]).tobytes())


def _bytes_in_page(folder: Path, paths: Sequence[Path | str]) -> float:
    """How many bytes files take in a page: WebAssembly is written in base64 there."""
    total = 0.0
    for path in paths:
        file = path if isinstance(path, Path) else folder / "packages/node_modules" / path
        total += file.stat().st_size * (4 / 3 if file.suffix == ".wasm" else 1)
    return total


async def measure_runtimes(folder: Path) -> None:
    """Print a row of a table for each runtime."""
    packages = folder / "packages"
    packages.mkdir()
    # "--no-save": only these packages themselves count, and nothing of them is run.
    command = [
        "npm",
        "install",
        "--silent",
        "--no-save",
        "--ignore-scripts",
        "--prefix",
        str(packages),
        *PACKAGES,
    ]
    subprocess.run(command, check=True)
    for name in LAMPS:
        _prepare_lamp(name, folder / name)
    (folder / "page").symlink_to(PAGE)
    (folder / "runtimes.html").write_bytes((Path(__file__).parent / "runtimes.html").read_bytes())
    app = web.Application()
    app.router.add_static("/packages", packages / "node_modules")
    app.router.add_static("/", folder, follow_symlinks=True)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}/runtimes.html"
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    async with chromium(webgl=True) as browser:
        for _ in range(ROUNDS):
            for runtime in RUNTIMES:
                for lamp in LAMPS:
                    tab = await browser.open(f"{address}?runtime={quote(runtime)}&lamp={lamp}")
                    found.setdefault((runtime, lamp), []).append(await tab.until("window.result", 120))
                    await tab.call("Page.close")
    await runner.cleanup()
    print("| drawn by | MB in a page | ms, 64×64 | ms, 256×128 | ms to the first, 256×128 | levels |")
    print("|---|---|---|---|---|---|")
    for runtime, paths in RUNTIMES.items():
        size = _bytes_in_page(folder, paths) / 1e6
        rows = [found[runtime, lamp] for lamp in LAMPS]
        if "error" in rows[0][0]:
            print(f"| {runtime} | {size:.2f} | {rows[0][0]['error']} | | | |")
            continue
        small, large = (min(row["milliseconds"] for row in each) for each in rows)
        first = min(row["first"] for row in rows[1])
        levels = max(row["levels"] for each in rows for row in each)
        print(f"| {runtime} | {size:.2f} | {small:.0f} | {large:.0f} | {first:.0f} | {levels} |")


def main() -> None:
    """Measure, and print."""
    given = sys.argv[1:]
    lamps = [(name, half) for name in given for half in (0, 1)] or [("lava-64", 0), ("lava", 0), ("lava", 1)]
    with tempfile.TemporaryDirectory() as folder:
        runtimes = "--runtimes" in given
        asyncio.run(measure_runtimes(Path(folder)) if runtimes else measure_pages(Path(folder), lamps))


if __name__ == "__main__":
    main()
