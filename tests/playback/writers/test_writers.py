"""Each format is written and read again by another reader; what goes wrong leaves one line and no file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from mlxlava.errors import UserError
from mlxlava.playback.writers import (
    WRITER_OF_FORMAT,
    Frame,
    PipeClosed,
    choose_format,
    open_writer,
    write_all,
)
from mlxlava.resize import enlarge

COUNT, FPS = 20, 12.5


def moving(count: int = COUNT, height: int = 64, width: int = 48) -> list[Frame]:
    """A blob that rises in front of a gradient: as smooth as a lamp, and not the same upside down."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    frames = []
    for i in range(count):
        blob = np.clip(1.5 - np.hypot(y - height * (0.8 - 0.6 * i / count), x - width / 3) / 10, 0, 1)[
            ..., None
        ]
        glass = np.stack([30 + y, 20 + x / 2, 90 - y / 2], axis=-1)
        frames.append((glass * (1 - blob) + np.array([250, 120, 40]) * blob).astype(np.uint8))
    return frames


def noise(count: int, height: int = 64, width: int = 64) -> list[Frame]:
    """Pictures that no encoder makes small."""
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def write(path: Path | str, frames: list[Frame], **options: Any) -> None:
    options = {"size": frames[0].shape[:2], "fps": FPS, **options}
    with open_writer(str(path), **options) as writer:
        for frame in frames:
            writer.write(frame)


def read_video(path: Path) -> tuple[list[Frame], float]:
    """Frames and rate, by ffmpeg's own reader."""
    # swscale's fast path to RGB darkens by one: not the file's fault.
    exact = ["-vf", "scale=flags=accurate_rnd+full_chroma_int"]
    reader = imageio_ffmpeg.read_frames(path, pix_fmt="rgb24", output_params=exact)
    meta = next(reader)
    width, height = meta["size"]
    return [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader], meta["fps"]


def read_animation(path: Path) -> tuple[list[Frame], float]:
    """Frames and rate, by Pillow; it must loop for ever."""
    frames, milliseconds = [], 0.0
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            image.load()
            milliseconds += image.info["duration"]
            frames.append(np.asarray(image.convert("RGB")))
    return frames, 1000 * len(frames) / milliseconds


def read_raw(path: Path, width: int = 48) -> tuple[list[Frame], float]:
    return list(np.fromfile(path, np.uint8).reshape(-1, 64, width, 3)), FPS


READERS = {
    "mp4": (read_video, 1.5),
    "webm": (read_video, 2.0),
    "gif": (read_animation, 1.5),
    "apng": (read_animation, 0.0),
    "webp": (read_animation, 2.5),
    "y4m": (read_video, 0.6),
    "raw": (read_raw, 0.0),
}


@pytest.mark.parametrize("name", WRITER_OF_FORMAT)
def test_another_reader_sees_what_was_written(name: str, tmp_path: Path) -> None:
    frames, path = moving(), tmp_path / f"lava.{name}"
    write(path, frames)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    read, bound = READERS[name]
    seen, fps = read(path)
    assert len(seen) == COUNT
    assert fps == pytest.approx(FPS, rel=0.01)
    assert seen[0].shape == frames[0].shape
    error = np.abs(np.array(seen, dtype=float) - np.array(frames))
    assert error.mean() <= bound
    assert error.mean((1, 2, 3)).max() <= 1.5 * bound
    # The mean colour too: a wrong matrix or range shifts it.
    assert np.abs(np.mean(seen, axis=(0, 1, 2)) - np.mean(frames, axis=(0, 1, 2))).max() < 0.6
    assert np.abs(seen[-1].astype(float) - seen[0]).mean() > 8  # the blob has moved


@pytest.mark.parametrize(
    "name", [name for name, kind in WRITER_OF_FORMAT.items() if kind.encoder_settings is not None]
)
def test_quality_is_paid_for_in_bytes(name: str, tmp_path: Path) -> None:
    frames, sizes, errors = moving(height=128, width=96), [], []
    for quality in (0, 50, 100):
        path = tmp_path / f"{quality}.{name}"
        write(path, frames, quality=quality)
        seen, _ = READERS[name][0](path)
        sizes.append(path.stat().st_size)
        errors.append(float(np.abs(np.array(seen, dtype=float) - np.array(frames)).mean()))
    assert sizes == sorted(set(sizes)), sizes
    assert errors == sorted(set(errors), reverse=True), errors


@pytest.mark.parametrize(
    "name", [name for name, kind in WRITER_OF_FORMAT.items() if kind.encoder_settings is None]
)
def test_what_loses_nothing_has_no_quality(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--quality: {name} is lossless"):
        write(tmp_path / f"lava.{name}", moving(1), quality=50)
    with pytest.raises(UserError, match="from 0 to 100"):
        write(tmp_path / "lava.gif", moving(1), quality=101)
    assert list(tmp_path.iterdir()) == []


def test_every_format_is_found_by_its_endings(tmp_path: Path) -> None:
    for name, kind in WRITER_OF_FORMAT.items():
        for ending in kind.endings:
            assert choose_format(f"a.b/lava.{ending.upper()}") == name
            assert choose_format("lava", ending) == name
    assert choose_format("-", "y4m") == "y4m"


@pytest.mark.parametrize(
    ("target", "name", "words"),
    [
        ("lava.mp5", None, ["lava.mp5", "did you mean mp4", "webm", "raw"]),
        ("lava", None, ["known: mp4", "--format"]),
        ("lava.mp4", "weebm", ["weebm", "did you mean webm", "y4m"]),
        ("-", None, ["--format y4m or raw"]),
        ("-", "mp4", ["mp4 cannot go to stdout", "y4m or raw"]),
    ],
)
def test_what_cannot_be_written_is_said(target: str, name: str | None, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        choose_format(target, name)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("name", ["apng", "y4m"])
def test_scale_enlarges_smoothly(name: str, tmp_path: Path) -> None:
    frames, path = moving(3), tmp_path / f"lava.{name}"
    write(path, frames, scale=3)
    seen, _ = READERS[name][0](path)
    assert seen[0].shape == (192, 144, 3)
    back = np.array(seen, dtype=float).reshape(3, 64, 3, 48, 3, 3).mean((2, 4))
    assert np.abs(back - np.array(frames)).mean() < 2
    flat = np.repeat(np.repeat(frames[0], 3, axis=0), 3, axis=1)
    assert np.abs(enlarge(frames[0], 3).astype(float) - flat).max() > 5  # not nearest neighbour


@pytest.mark.parametrize(("fps", "kept", "delays"), [(30.0, 30, {30, 40}), (60.0, 25, {20})])
def test_gif_keeps_the_true_time(fps: float, kept: int, delays: set[int], tmp_path: Path) -> None:
    write(tmp_path / "lava.gif", moving(30), fps=fps)
    with Image.open(tmp_path / "lava.gif") as image:
        seen = []
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            seen.append(image.info["duration"])
    assert len(seen) == kept
    assert set(seen) == delays
    assert sum(seen) == pytest.approx(1000 * 30 / fps, abs=10)


def test_gif_colours_hold_when_the_palette_is_older(tmp_path: Path) -> None:
    frames = moving(1250, height=32, width=24)  # the palette is made from the first 250
    write(tmp_path / "lava.gif", frames)
    seen, _ = read_animation(tmp_path / "lava.gif")
    assert len(seen) == len(frames)
    assert np.abs(np.array(seen, dtype=float) - np.array(frames)).mean() < 6


def test_mp4_says_its_colours_and_starts_fast(tmp_path: Path) -> None:
    write(tmp_path / "lava.mp4", moving(), fps=30000 / 1001)
    data = (tmp_path / "lava.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(tmp_path / "lava.mp4")]
    said = subprocess.run(program, capture_output=True, text=True).stderr
    assert re.search(r"Video: h264 .*yuv420p\(tv, bt709, ", said)
    assert "29.97 fps" in said


@pytest.mark.parametrize("name", WRITER_OF_FORMAT)
def test_a_failure_removes_the_file_and_keeps_the_old_one(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"lava.{name}"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="mine"), open_writer(str(path), size=(64, 48), fps=FPS) as writer:
        writer.write(moving(1)[0])
        assert len(list(tmp_path.iterdir())) == 2
        raise RuntimeError("mine")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, PipeClosed])
def test_an_ended_lamp_is_finished(end: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(end), open_writer(str(tmp_path / "lava.mp4"), size=(64, 48), fps=FPS) as writer:
        for frame in moving(5):
            writer.write(frame)
        raise end
    assert len(read_video(tmp_path / "lava.mp4")[0]) == 5


@pytest.mark.parametrize("name", ["webm", "y4m"])
def test_close_and_abort_are_idempotent_and_no_frame_is_no_file(name: str, tmp_path: Path) -> None:
    with open_writer(str(tmp_path / f"lava.{name}"), size=(64, 48), fps=FPS) as writer:
        writer.write(moving(1)[0])
        writer.close()
        writer.close()
        writer.abort()
        with pytest.raises(ValueError, match="closed"):
            writer.write(moving(1)[0])
    assert (tmp_path / f"lava.{name}").exists()
    with open_writer(str(tmp_path / f"empty.{name}"), size=(64, 48), fps=FPS):
        pass
    assert len(list(tmp_path.iterdir())) == 1


def test_a_wrong_frame_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="uint8"),
        open_writer(str(tmp_path / "a.raw"), size=(64, 64), fps=FPS) as writer,
    ):
        writer.write(moving(1)[0])


@pytest.mark.parametrize("name", ["mp4", "raw"])
def test_a_place_that_cannot_be_written_is_said_before_anything_starts(name: str, tmp_path: Path) -> None:
    (tmp_path / f"folder.{name}").mkdir()
    (tmp_path / "file").touch()
    for target in (f"missing/lava.{name}", f"folder.{name}", f"file/lava.{name}"):
        with (
            pytest.raises(UserError, match="output: ") as caught,
            open_writer(str(tmp_path / target), size=(64, 64), fps=FPS),
        ):
            pytest.fail("opened")
        assert str(tmp_path / target).rpartition("/")[0] in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", WRITER_OF_FORMAT)
def test_an_uncompressed_file_that_its_disk_has_no_room_for_is_not_begun(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"lava.{name}"
    refused = name in ("y4m", "raw")
    expected = pytest.raises(UserError, match=r"are free; play for a shorter time")
    with (
        expected if refused else contextlib.nullcontext(),
        open_writer(str(path), size=(64, 64), fps=FPS, frames=10**15) as writer,
    ):
        assert not refused
        writer.write(noise(1)[0])
    assert path.exists() == (not refused)


def test_a_stream_may_be_longer_than_a_disk_unless_it_goes_to_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlxlava", "lamp", "--size", "16", "--seconds", "1e8", "--fps", "1000"]
    command += ["--format", "raw", "-o", "-"]
    with (tmp_path / "file").open("wb") as file:
        ended = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, "are free" in ended.stderr) == (2, True), ended.stderr
    assert not (tmp_path / "file").stat().st_size
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert len(process.stdout.read(100_000)) == 100_000
        process.stdout.close()


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let no file of this process and its children grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", WRITER_OF_FORMAT)
def test_a_file_that_cannot_grow_is_removed(name: str, tmp_path: Path) -> None:
    with files_end_at(40_000), pytest.raises(UserError, match=r"output: cannot write .*lava") as caught:
        write(tmp_path / f"lava.{name}", noise(20))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("name", WRITER_OF_FORMAT)
def test_a_full_disk_is_said(name: str) -> None:
    with pytest.raises(UserError, match="output: cannot write /dev/full: No space left on device"):
        write("/dev/full", noise(20), format=name)


def test_an_encoder_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WRITER_OF_FORMAT["webm"], "options", "-c:v nonsense -f webm")
    with pytest.raises(UserError, match=r"ffmpeg stopped: .*(nonsense|Encoder)"):
        write(tmp_path / "lava.webm", noise(20))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "no-ffmpeg"))
    with pytest.raises(UserError, match="cannot start ffmpeg"):
        write(tmp_path / "lava.webm", noise(1))
    assert list(tmp_path.iterdir()) == []


ENDLESS = """
    import itertools, signal, sys
    import numpy as np
    from mlxlava.playback.writers import PipeClosed, open_writer

    target, name, height = sys.argv[1], sys.argv[2], int(sys.argv[3])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    try:
        with open_writer(target, size=(height, 64), fps=20, format=name) as writer:
            for i in itertools.count():
                writer.write(np.full((height, 64, 3), i % 250, np.uint8))
                if i == 30:
                    print("going", file=sys.stderr, flush=True)
    except PipeClosed:
        print("closed", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
"""


def start_endless(target: str, name: str, height: int) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-c", textwrap.dedent(ENDLESS), target, name, str(height)]
    # A session of its own, so that a signal can be sent to the whole group, as a terminal does.
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


@pytest.mark.parametrize("name", ["y4m", "raw"])
def test_a_closed_pipe_ends_it_quietly(name: str) -> None:
    with start_endless("-", name, 64) as process:
        assert process.stdout is not None and process.stderr is not None
        head = process.stdout.read(40)
        assert head.startswith(b"YUV4MPEG2 W64 H64 F20:1 ") or name == "raw"
        process.stdout.close()
        assert process.stderr.read().splitlines()[-1] == b"closed"
    assert process.returncode == 0


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells a process's memory there"
)
def test_a_slow_reader_holds_the_lamp_back() -> None:
    def resident(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()

    height = 2048  # 384 KiB a frame
    with start_endless("-", "raw", height) as process:
        assert process.stdout is not None
        process.stdout.read(height * 64 * 3)
        before = resident(process.pid)
        for _ in range(20):
            time.sleep(0.02)  # in which some hundred frames could be made
            frame = np.frombuffer(process.stdout.read(height * 64 * 3), np.uint8)
            assert frame.min() == frame.max()
        assert resident(process.pid) - before < 4 * 2**20  # a few frames and no more
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[-1] == b"closed"
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("name", "number"), [("mp4", signal.SIGINT), ("gif", signal.SIGTERM), ("y4m", signal.SIGINT)]
)
def test_a_signal_leaves_a_finished_file(name: str, number: int, tmp_path: Path) -> None:
    path = tmp_path / f"lava.{name}"
    # Frames above a pipe's 64 KiB, so that the signal falls into the middle of one.
    with start_endless(str(path), name, 1024) as process:
        assert process.stderr is not None
        process.stderr.readline()
        os.killpg(process.pid, number)
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if name == "gif":
        with Image.open(path) as image:
            assert getattr(image, "n_frames", 1) >= 30
    else:
        assert len(read_video(path)[0]) >= 30


@pytest.mark.parametrize("name", ["mp4", "y4m"])
def test_a_partial_frame_at_the_end_is_dropped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(stream: Any, data: bytes | memoryview) -> None:
        write_all(stream, memoryview(data).cast("B")[:1000])
        raise KeyboardInterrupt

    path = tmp_path / f"lava.{name}"
    with (
        pytest.raises(KeyboardInterrupt),
        open_writer(str(path), size=(64, 48), fps=FPS) as writer,
    ):
        for frame in moving(4):
            writer.write(frame)
        for module in ("ffmpeg", "raw"):
            monkeypatch.setattr(f"mlxlava.playback.writers.{module}.write_all", interrupted)
        writer.write(moving(1)[0])
    assert len(read_video(path)[0]) == 4


def test_importing_brings_no_mlx() -> None:
    code = "import json, sys; from mlxlava.playback import writers, session; "
    code += "print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not [name for name in modules if name == "mlx" or name.startswith("mlx.")]
