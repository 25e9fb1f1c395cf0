"""Files made by strangers: formats that are not read, sizes that nobody meant, text that a terminal obeys."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

import mlxlava
from mlxlava.config import Recipe, load_recipe, override, parse_size
from mlxlava.errors import UserError
from mlxlava.footage.dataset import Footage, open_footage
from mlxlava.footage.pictures import read_picture
from mlxlava.footage.prepare import prepare, prepare_lamp
from mlxlava.footage.timing import measure_timing
from mlxlava.integrity import DIGESTS_FILE
from mlxlava.models.safetensors_header import check_header
from mlxlava.schema import Mismatch
from mlxlava.training.memory_plan import require_memory
from tests.conftest import run_command

POSTSCRIPT = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(x) print showpage\n"


@pytest.mark.parametrize("text", [POSTSCRIPT, "<svg xmlns='http://www.w3.org/2000/svg'/>", "P9 1 1"])
def test_a_picture_of_another_format_is_refused_and_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(gs.parent))
    path = tmp_path / "a.png"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.png"):
        read_picture(path)
    with pytest.raises(UserError, match=r"a\.png"):
        prepare([path], tmp_path / "out", size=(16, 16))
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    "text",
    ["ffconcat version 1.0\nfile '{}'\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{}\n", POSTSCRIPT],
    ids=["concat", "playlist", "postscript"],
)
def test_a_video_makes_nothing_else_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"")
    path = tmp_path / "a.mp4"
    path.write_text(text.format(tmp_path / "secret.png"))
    with pytest.raises(UserError, match=r"a\.mp4 cannot be read as a video"):
        prepare([path], tmp_path / "out", size=(16, 16))


def test_a_small_file_of_a_huge_picture_is_refused(tmp_path: Path) -> None:
    for colour_type, width, height in ((2, 12_000, 11_000), (6, 9_000, 8_000)):
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
        chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT5\xaf\x06\x1e")
        with pytest.raises(UserError, match="megapixels, more than"):
            read_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    "settings",
    [
        {"generator.widths": [10**9, 10**9]},
        {"generator.widths": [-1]},
        {"generator.last_width": 0},
        {"generator.last_width": 2**64},
        {"generator.state_size": 2**32},
        {"dynamics.hidden": [0]},
        {"dynamics.couplings": 100_000},
        {"dynamics.hidden": [8] * 100},
        {"data.batch_size": 2**31},
        {"data.seq_len": 10**9},
        {"data.lamp_minutes": 1e9},
        {"data.lamp_fps": float("inf")},
        {"data.size": [65536, 65536]},
        {"training.seed": -1},
        {"training.betas": [0.9, 2]},
        {"training.warm_up": 10**20},
        {"training.learning_rate": float("nan")},
        {"training.steps": 10**400},
        {"data.lamp_fps": 10**400},
        {"training.betas": [0.9, -(10**400)]},
    ],
    ids=str,
)
def test_a_setting_that_nobody_meant_is_refused_with_its_limit(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"\[|\(|at most") as refused:
        override(load_recipe("lava"), settings)
    assert next(iter(settings)).partition(".")[2] in str(refused.value)


def test_a_size_is_bounded_before_a_number_of_any_length_is_read() -> None:
    for text in ("65536", "9" * 5000, "8192x8192"):
        with pytest.raises(UserError, match="too large"):
            parse_size(text)
    assert parse_size("1024x512") == (1024, 512)


def test_networks_that_no_memory_holds_are_refused_before_they_are_made(tiny: Recipe) -> None:
    from mlxlava.models.registry import make_generator

    large = override(tiny, {"generator.widths": [16384, 16384], "generator.state_size": 2048})
    with pytest.raises(UserError, match="weights, more than"):
        make_generator(large)
    with pytest.raises(UserError, match=r"GB, and this machine has 16; give --memory"):
        require_memory(override(load_recipe("lava"), {"data.batch_size": 65536}), 16)


def test_footage_that_its_disk_does_not_hold_is_refused_before_a_frame_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"GB, and .* GB are free"):
        prepare_lamp(
            tmp_path / "a", size=(2048, 2048), minutes=1e5, fps=1000, every_nth=1, seed=0, theme="classic"
        )
    assert not (tmp_path / "a").exists()


def test_how_many_frames_keeping_time_makes_is_known_before() -> None:
    even = measure_timing([np.arange(100) / 25])
    assert even is not None
    assert round(even.evenly_spaced_frames()) == 100


@pytest.mark.parametrize(
    "offsets",
    [[0, 2**64 - 1], [2**64 - 8, 2**64 - 4], [0, 8], [4, 8], [-4, 0], [0, "4"], [0], 3],
    ids=str,
)
def test_offsets_of_arrays_lie_in_their_file(tmp_path: Path, offsets: object) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(Mismatch):
        check_header(path)


@pytest.mark.parametrize("content", ["npz", "empty", "negative", "huge", "objects", "cut"])
def test_frames_that_are_no_frames_are_refused(tmp_path: Path, footage: Footage, content: str) -> None:
    folder = tmp_path / "footage"
    shutil.copytree(footage.path, folder)
    path = folder / "frames.npy"
    data = path.read_bytes()
    if content == "npz":
        with path.open("wb") as file:
            np.savez(file, frames=np.zeros(3))
    elif content == "objects":
        with path.open("wb") as file:
            np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    else:
        changed = {
            "empty": b"",
            "negative": data.replace(b"(32, ", b"(-1, ", 1),
            "huge": data.replace(b"(32, 16", b"(4611686018427387904, 16", 1),
            "cut": data[:50],
        }
        path.write_bytes(changed[content])
    with pytest.raises(UserError, match="is damaged"):
        open_footage(folder)


def test_a_recipe_that_extends_itself_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    for text, said in (
        (f'extends = "{path}"', "more than 8 times"),
        ("extends = 3", "extends"),
        ("data = 3", "data"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            load_recipe(path)
    path.write_text("x = " + "[" * 50_000)
    with pytest.raises(UserError, match="deep"):
        load_recipe(path)


@pytest.fixture
def bad_weights(tmp_path: Path) -> Path:
    """Weights whose texts are escape sequences and HTML."""
    folder = tmp_path / "weights"
    shutil.copytree(Path(__file__).parents[2] / "weights" / "lava-64", folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    bad = "\x1b]0;owned\x07<script>alert(1)</script>\u202e" + "x" * 3000
    config |= {"command": bad, "machine": {"system": bad, "mlx": bad}}
    config["footage"]["sources"] = [bad]
    config["recipe"]["name"] = bad[:500]
    path.write_text(json.dumps(config), encoding="utf-8")
    (folder / DIGESTS_FILE).unlink()  # a stranger would give the right ones
    return folder


def test_text_of_weights_is_cleaned_on_the_terminal_and_in_the_card(
    bad_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlxlava.rollout.export import model_card

    status, out, err = run_command(monkeypatch, capsys, "info", str(bad_weights))
    assert (status, err) == (0, "")
    assert not set("\x1b\x07\u202e") & set(out)
    assert max(map(len, out.splitlines())) < 600
    card = model_card(mlxlava.load(bad_weights).weights, "a`b|<i>")
    assert not set("\x1b\x07\u202e") & set(card)
    assert "<script>" not in card and "<i>" not in card


def test_weights_are_described_whatever_their_config_leaves_out(
    bad_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bad_weights / "config.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    for name in whole.keys() - {"format", "step_fps", "recipe"}:
        path.write_text(json.dumps({key: whole[key] for key in whole if key != name}), encoding="utf-8")
        status, _, err = run_command(monkeypatch, capsys, "info", str(bad_weights))
        assert (status, err) == (0, ""), name


def test_an_error_is_one_clean_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a\x1b[2Jb", "n" * 5000):
        status, out, err = run_command(monkeypatch, capsys, "info", name)
        assert (status, out) == (2, "")
        assert len(err.splitlines()) == 1 and len(err) < 2100
        assert "\x1b" not in err
