"""Writes a lamp as one web page, which holds its numbers and needs nothing else.

The page is put together here from files that can be read and tried by themselves: those in page/, and those
that it has in common with the page of a server (playback/screens/page/). Nothing is fetched from anywhere,
and the page's content security policy allows nothing to be.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from mlxlava.errors import UserError
from mlxlava.exporting.portable import Convolutions, Floats, Layer, PortableLamp
from mlxlava.paths import write_text_atomically
from mlxlava.playback.keys import PAGE, keys_module
from mlxlava.playback.session import SEED_COUNT, SPEED_RANGE

# The modules of the page, each after those that it imports.
_MODULES = ("keys", "settings", "stage", "weights", "random", "rollout", "smaller", "wasm", "webgl", "main")
_MADE_HERE = ("keys", "settings")
_SHARED_MODULE = "stage"

# Every page begins with this, so that a file of something else is never replaced.
_HTML_HEAD = """<!doctype html>
<!-- A lava lamp, written by mlxlava. SPDX-License-Identifier: MIT, (c) The mlxlava developers. -->
"""
# On a phone's home screen the page opens without the browser's bars.
_HOME_SCREEN = """<meta name="mobile-web-app-capable" content="yes">
<meta name="apple-mobile-web-app-capable" content="yes">
<meta name="apple-mobile-web-app-status-bar-style" content="black-translucent">"""
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src {scripts} 'wasm-unsafe-eval'; style-src {style}; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def write_page(lamp: PortableLamp, file: Path, name: str) -> int:
    """Write the page of a lamp.

    Args:
        lamp: the lamp.
        file: file to write. An older page of a lamp is replaced.
        name: name of the lamp, shown as the page's title.

    Returns:
        The size of the file in bytes.

    Raises:
        UserError: the file is not named as a page, holds something else, or cannot be written.
    """
    check_page_file(file)
    text = make_page(lamp, name)
    try:
        write_text_atomically(file, text)
    except OSError as error:
        raise UserError(f"export: cannot write {file}: {error.strerror}; give another file") from error
    return len(text.encode())


def check_page_file(file: Path) -> None:
    """Refuse a file that would not open as a page, and one that holds something else.

    Raises:
        UserError: its name does not end in .html, or it is not the page of a lamp.
    """
    if file.suffix.lower() not in (".html", ".htm"):
        # Servers, and some browsers, know a page by its name.
        raise UserError(f"export: a page's name ends in .html, as lamp.html, not {file.name!r}")
    if not file.exists():
        return
    if file.is_file():
        with file.open("rb") as opened:
            if opened.read(len(_HTML_HEAD.encode())) == _HTML_HEAD.encode():
                return
    raise UserError(f"export: {file} exists and is not the page of a lamp; give another file")


def make_page(lamp: PortableLamp, name: str) -> str:
    """The page of a lamp, as HTML."""
    about, numbers = pack_numbers(lamp)
    main, early, style = _bundle_modules(about | {"name": name}), _read_page_file("early.js"), _read_css()
    policy = _CONTENT_SECURITY_POLICY.format(
        scripts=" ".join(map(_csp_hash, (early, main))), style=_csp_hash(style)
    )
    page = _read_screen_page_file("index.html").removeprefix("<!doctype html>\n")
    icon = "data:image/svg+xml," + quote(_read_screen_page_file("lamp.svg"))
    for before, after in (
        (
            '<meta charset="utf-8">',
            f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">',
        ),
        ("<title>Lava lamp</title>", f"<title>Lava lamp {html.escape(name)}</title>\n{_HOME_SCREEN}"),
        ('href="lamp.svg"', f'href="{icon}"'),
        ('<link rel="stylesheet" href="lamp.css">', f"<style>{style}</style>"),
        ('<script type="module" src="lamp.js"></script>\n', ""),
        (
            '<p id="note" class="note" role="status"></p>',
            f'<p id="note" class="note" role="status"></p>\n<script>{early}</script>',
        ),
        (
            "</body>",
            # The numbers are no script, so no policy needs to allow them. What is after them is missing from
            # a page that was cut off.
            f'<script id="numbers" type="text/plain">{base64.b64encode(numbers).decode()}</script>\n'
            f'<script type="module">{main}</script>\n<i id="end" hidden></i>\n</body>',
        ),
    ):
        assert page.count(before) == 1, before
        page = page.replace(before, after)
    return _HTML_HEAD + page


def _read_page_file(name: str) -> str:
    return (files("mlxlava.exporting") / "page" / name).read_text(encoding="utf-8")


def _read_screen_page_file(name: str) -> str:
    return (files("mlxlava.playback.screens") / "page" / name).read_text(encoding="utf-8")


def _read_css() -> str:
    return _read_screen_page_file("lamp.css") + _read_page_file("page.css")


def _csp_hash(text: str) -> str:
    """A text's digest, as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _bundle_modules(about: dict[str, Any]) -> str:
    """All modules of the page as one, since a page from a file cannot import another file."""
    code = (files("mlxlava.exporting") / "page" / "convolution.wasm").read_bytes()
    settings = {
        "ABOUT": about,
        "CODE": base64.b64encode(code).decode(),
        "SPEEDS": SPEED_RANGE,
        "SEED_COUNT": SEED_COUNT,
    }
    made = {
        "keys": keys_module(PAGE),
        "settings": "".join(
            f"export const {key} = {_json_for_script(value)};\n" for key, value in settings.items()
        ),
    }
    texts = {
        name: made[name]
        if name in _MADE_HERE
        else _read_screen_page_file(f"{name}.js")
        if name == _SHARED_MODULE
        else _read_page_file(f"{name}.js")
        for name in _MODULES
    }
    return "\n" + "".join(_as_function(name, text) for name, text in texts.items())


def _json_for_script(value: Any) -> str:
    """A value as JavaScript in a script. "</script>" in a name would end the script."""
    return json.dumps(value).replace("<", r"\u003c")


def _as_function(name: str, module: str) -> str:
    """A module as a constant that has what the module exports, with names of its own as a module has them."""
    body = re.sub(
        r"^import (\{.*?\}) from \"\./(\w+)\.js\";$",
        lambda found: f"const {found[1]} = {found[2]}_module;",
        module,
        flags=re.MULTILINE | re.DOTALL,
    )
    exported: Iterable[str] = re.findall(
        r"^export (?:async )?(?:const|class|function) (\w+)", body, re.MULTILINE
    )
    body = re.sub(r"^export ", "", body, flags=re.MULTILINE)
    return f"const {name}_module = (() => {{\n{body}return {{ {', '.join(exported)} }};\n}})();\n"


class _PackedArrays:
    """Arrays one behind the other, as the page reads them.

    Attributes:
        arrays: type, shape and place of each array, for JSON.
        data: their bytes.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}
        self.data = bytearray()

    def add(self, name: str, values: Floats, *, exact: bool) -> None:
        """Add an array as float16; if ``exact``, as float32 where float16 would lose something."""
        half = values.astype(np.float16)
        stored: Any = values if exact and not np.array_equal(half, values) else half
        self.data.extend(bytes(-len(self.data) % 4))  # where an array of float32 may begin
        self.arrays[name] = {"type": str(stored.dtype), "shape": stored.shape, "offset": len(self.data)}
        self.data.extend(stored.astype(stored.dtype.newbyteorder("<")).tobytes())

    def add_layer(self, name: str, layer: Layer, *, exact: bool) -> None:
        """Add weight and bias of a layer."""
        self.add(f"{name}.weight", layer.weight, exact=exact)
        self.add(f"{name}.bias", layer.bias, exact=exact)

    def add_convolutions(self, prefix: str, layers: Convolutions) -> None:
        """Add all that makes a picture of a feature map."""
        for i, up in enumerate(layers.ups):
            self.add_layer(f"{prefix}up{i}", up, exact=False)
        self.add_layer(f"{prefix}out", layers.out, exact=False)
        self.add(f"{prefix}gate", layers.gate, exact=False)
        self.add(f"{prefix}background", layers.background, exact=False)


def pack_numbers(lamp: PortableLamp) -> tuple[dict[str, Any], bytes]:
    """All numbers of a lamp, and their description as plain values for JSON.

    The generator's numbers are float16. Those of the state step are float16 only where that loses nothing:
    rounded bases would not be orthogonal, and rounded couplings would make another lamp of the same seed.
    """
    packed = _PackedArrays()
    for number, change in enumerate(lamp.changes):
        packed.add(f"change{number}", change, exact=True)
    for number, layers in enumerate(lamp.couplings):
        *hidden, angles = layers
        for i, layer in enumerate(hidden):
            packed.add_layer(f"{number}.hidden{i}", layer, exact=True)
        packed.add_layer(f"{number}.angles", angles, exact=True)
    packed.add_layer("dense", lamp.dense, exact=False)
    packed.add_convolutions("", lamp.convolutions)
    if lamp.upsampling is not None:
        # Differences from the centre are small, so rounding it would show.
        packed.add("upsampler.centre", lamp.upsampling.centre, exact=True)
        packed.add_layer("upsampler.in", lamp.upsampling.first, exact=False)
        packed.add_convolutions("upsampler.", lamp.upsampling.convolutions)
    about = {
        "size": lamp.size,
        "stepFps": lamp.step_fps,
        "stateSize": lamp.state_size,
        "base": lamp.base,
        "ups": len(lamp.convolutions.ups),
        "upsamplerUps": None if lamp.upsampling is None else len(lamp.upsampling.convolutions.ups),
        "couplings": len(lamp.couplings),
        "hidden": len(lamp.couplings[0]) - 1,
        "noiseAngle": None if lamp.noise_angle is None else lamp.noise_angle.tolist(),
        "arrays": packed.arrays,
        "bytes": len(packed.data),
    }
    return about, bytes(packed.data)
