"""Sources in, clips out: small synthetic videos and images, 64×48 unless said."""

from __future__ import annotations

import json
import resource
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from mlxlava.errors import UserError
from mlxlava.footage import prepare as footage
from mlxlava.footage import simulated_lamp
from mlxlava.footage.cuts import CutFinder
from mlxlava.footage.dataset import Footage, draw_frame_times, open_footage

SIZE = (48, 64)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlxlava" / "footage"


def flat_images(folder: Path, values: Sequence[int], size: tuple[int, int] = SIZE) -> Path:
    """A folder of single-coloured images: the pixels tell the index."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, value in enumerate(values):
        Image.fromarray(np.full((*size, 3), value, np.uint8)).save(folder / f"img{index + 1}.png")
    return folder


def moving(count: int, scene: int = 0, size: tuple[int, int] = SIZE) -> Iterator[np.ndarray]:
    """A bright square that moves over a dark or a blue background, with some noise."""
    rng = np.random.default_rng(scene)
    for index in range(count):
        frame = np.full((*size, 3), (10, 10, 10) if scene == 0 else (20, 60, 200), np.uint8)
        at = 2 + index % (size[1] - 20)
        frame[10:26, at : at + 16] = (250, 120, 20)
        yield frame + rng.integers(0, 6, frame.shape, dtype=np.uint8)


def video(path: Path, frames: Sequence[np.ndarray] | Iterator[np.ndarray], **options: Any) -> Path:
    frames = list(frames)
    size = (frames[0].shape[1], frames[0].shape[0])
    options = {"fps": 10, "macro_block_size": 1, **options}
    if path.suffix == ".gif":
        options |= {"codec": "gif", "pix_fmt_out": "rgb8", "quality": None}
    if path.suffix == ".webm":
        options |= {"codec": "libvpx-vp9"}
    writer = imageio_ffmpeg.write_frames(str(path), size, **options)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


def prepare(*sources: Path, out: Path | None = None, **options: Any) -> Footage:
    return footage.prepare(sources, out, **{"size": SIZE, **options})


def test_folder_is_exact_in_natural_order_and_memory_mapped(tmp_path: Path) -> None:
    folder = flat_images(tmp_path / "images", range(0, 240, 10))
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "._img1.png"):
        (folder / name).write_text("no image")
    seen: list[tuple[int, int | None]] = []
    found = prepare(
        folder, out=tmp_path / "data", every_nth=2, on_progress=lambda done, of: seen.append((done, of))
    )
    assert isinstance(found.frames, np.memmap)
    assert found.frames.shape == (12, *SIZE, 3) and found.frames.dtype == np.uint8
    assert found.frames[:, 3, 5, 1].tolist() == list(range(0, 240, 20))
    assert (found.fps, found.step_fps, found.cuts) == (30.0, 15.0, ())
    assert seen[0] == (1, 12) and seen[-1] == (12, 12)
    np.testing.assert_array_equal(np.load(tmp_path / "data" / "frames.npy"), found.frames)
    about = json.loads((tmp_path / "data" / "footage.json").read_text())
    assert about["sources"][0]["fps_assumed"] and len(about["sources"][0]["sha256"]) == 64


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".gif", ".mkv"])
def test_videos_decode(tmp_path: Path, suffix: str) -> None:
    source = list(moving(12))
    found = prepare(video(tmp_path / f"lamp{suffix}", source))
    assert found.frames.shape == (12, *SIZE, 3)
    assert found.fps == pytest.approx(10) and found.cuts == ()
    assert np.abs(np.asarray(found.frames[7], float) - source[7]).mean() < 20


def test_odd_size_and_rotation(tmp_path: Path) -> None:
    odd = video(tmp_path / "odd.mp4", moving(4, size=(49, 67)), pix_fmt_out="yuv444p")
    assert prepare(odd).frames.shape == (4, *SIZE, 3)
    plain = video(tmp_path / "plain.mp4", moving(4))
    turned = tmp_path / "turned.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90"]
    subprocess.run([*command, "-i", str(plain), "-c", "copy", str(turned)], check=True)
    upright = np.rot90(prepare(plain, size=SIZE).frames[0])
    found = prepare(turned, size=(64, 48), crop="0,0,48,64").frames[0]
    assert np.abs(found.astype(float) - upright).mean() < 6


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    wide = video(tmp_path / "wide.mp4", moving(4), output_params=["-vf", "setsar=2"])
    found = prepare(wide, size=(48, 128), crop="0,0,128,48")
    assert np.abs(found.frames[0, :, ::2].astype(float) - next(moving(1))).mean() < 15


def test_area_resize_and_crops(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "a.png")

    def mean(part: np.ndarray) -> Any:
        height, width = part.shape[0] // 16, part.shape[1] // 16
        return part.reshape(16, height, 16, width, 3).astype(float).mean((1, 3))

    centre = prepare(folder, size=(16, 16)).frames[0]
    assert np.abs(centre - mean(pixels[:, 16:80])).max() <= 1
    explicit = prepare(folder, size=(16, 16), crop="32, 16, 64,48").frames[0]
    assert np.abs(explicit - mean(pixels[16:64, 32:96])).max() <= 1
    assert prepare(folder, size=(128, 128), crop="0,0,8,8").frames.shape == (1, 128, 128, 3)
    for crop in ("40,0,64,64", "-1,0,8,8", "0,0,0,8"):
        with pytest.raises(UserError, match=r"^footage: --crop .* 96 wide and 64 high$"):
            prepare(folder, size=(16, 16), crop=crop)
    with pytest.raises(UserError, match="cannot read --crop 'middle'"):
        prepare(folder, size=(16, 16), crop="middle")


@pytest.mark.parametrize("kind", ["video", "folder"])
def test_auto_crop_finds_the_moving_square(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    still = rng.integers(0, 200, (120, 160, 3), dtype=np.uint8)
    frames = []
    for index in range(20):
        frame = still.copy()
        frame[20 + index : 36 + index, 100:116] = 255
        frames.append(frame)
    if kind == "video":
        source = video(tmp_path / "a.mp4", frames)
    else:
        source = tmp_path / "images"
        source.mkdir()
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(source / f"{index}.png")
    found = prepare(source, size=(32, 32), crop="auto")
    x, y, width, height = json.loads((found.path / "footage.json").read_text())["sources"][0]["crop"]
    assert width == height and width <= 60
    assert x <= 100 and x + width >= 116 and y <= 21 and y + height >= 54


def test_auto_crop_of_a_still_warns(tmp_path: Path) -> None:
    warnings: list[str] = []
    prepare(flat_images(tmp_path / "a", [90] * 3), crop="auto", source_fps=9, on_warning=warnings.append)
    assert len(warnings) == 1 and "nothing moves" in warnings[0]


def test_a_hard_cut_is_found_in_decoded_and_kept_frames(tmp_path: Path) -> None:
    source = video(tmp_path / "two.mp4", [*moving(25), *moving(25, scene=1)], fps=25)
    assert prepare(source).cuts == (25,)
    assert prepare(source, every_nth=4).cuts == (7,)  # kept frame 7 is decoded frame 28


def test_what_is_no_cut() -> None:
    rng = np.random.default_rng(2)

    def cuts(frames: Sequence[np.ndarray]) -> list[int]:
        finder = CutFinder()
        for frame in frames:
            finder.add_frame(np.clip(frame, 0, 255).astype(np.uint8))
        return finder.cuts()

    smooth = np.cumsum(rng.normal(0, 1, (60, 16, 16, 3)), axis=0) + 100
    assert cuts(list(smooth)) == []
    assert cuts([frame * rng.uniform(0.75, 1.25) for frame in smooth]) == []  # flicker
    assert (
        cuts([frame if index != 30 else frame + 120 for index, frame in enumerate(smooth)]) == []
    )  # a flash
    assert cuts([smooth[index // 5] for index in range(60)]) == []  # repeated to fill a faster rate
    assert cuts(list(rng.uniform(0, 255, (30, 16, 16, 3)))) == []  # time-lapse, nothing alike
    assert cuts([*smooth[:5], *(255 - smooth[5:])]) == [5]
    still = np.full((10, 16, 16, 3), 60.0)
    assert cuts([*still, *(still + 150), *still]) == [10, 20]


def test_clips_cross_no_cut_and_no_file(tmp_path: Path) -> None:
    sources = [flat_images(tmp_path / "a", range(0, 12)), flat_images(tmp_path / "b", range(100, 107))]
    sources.append(flat_images(tmp_path / "c", range(200, 203)))  # shorter than a clip
    found = prepare(*sources)
    assert found.cuts == (12, 19)
    assert found.clip_starts(5).tolist() == [*range(0, 8), *range(12, 15)]
    assert found.clip_count(5) == 11
    seen = set()
    for step in range(40):
        frames, times = found.batch(3, step, 16, 5)
        assert frames.shape == (16, 5, *SIZE, 3) and frames.dtype == np.uint8
        assert times.dtype == np.int32 and (times == np.arange(5)).all()
        values = frames[:, :, 0, 0, 0].astype(int)
        assert (np.diff(values, axis=1) == 1).all()
        seen |= set(values[:, 0].tolist())
    assert seen == {*range(0, 8), *range(100, 103)}


def test_a_batch_is_a_pure_function_of_seed_and_step(tmp_path: Path) -> None:
    found = prepare(flat_images(tmp_path / "a", range(200)))
    first = [found.batch(1, step, 4, 50, 3) for step in range(5)]
    again = [open_footage(found.path).batch(1, step, 4, 50, 3) for step in (4, 3, 2, 1, 0)][::-1]
    for (frames, times), (frames2, times2) in zip(first, again, strict=True):
        np.testing.assert_array_equal(frames, frames2)
        np.testing.assert_array_equal(times, times2)
        values = frames[..., 0, 0, 0].astype(int)
        np.testing.assert_array_equal(values - values[:, :1], times - times[:, :1])
    assert len({times.tobytes() for _, times in first}) == 5
    assert (found.batch(2, 0, 4, 50, 3)[1] != first[0][1]).any()
    # Evenly spaced frames of the same clips come before.
    frames, times = found.batch(1, 0, 4, 50, 3, context_frames=4)
    assert times[:, :4].tolist() == [[0, 16, 33, 49]] * 4
    np.testing.assert_array_equal(frames[:, 4:], first[0][0])
    np.testing.assert_array_equal(frames[..., 0, 0, 0].astype(int) - frames[:, :1, 0, 0, 0], times)


def test_drawn_times() -> None:
    rng = np.random.default_rng(0)
    times = draw_frame_times(rng, 40000, 32, 3)
    assert times.shape == (40000, 3) and times.dtype == np.int32
    assert times.min() == 0 and times.max() == 31 and (np.diff(times, axis=1) > 0).all()
    spans = times[:, -1] - times[:, 0]
    # Log-uniform: each octave of 2 … 32 holds a quarter.
    shares = np.histogram(spans, [2, 4, 8, 16, 32])[0] / len(spans)
    np.testing.assert_allclose(shares, 0.25, atol=0.01)
    middle = (times[:, 1] - times[:, 0])[spans == 5]
    np.testing.assert_allclose(np.bincount(middle, minlength=5)[1:] / len(middle), 0.25, atol=0.03)
    first = times[spans == 28, 0]
    np.testing.assert_allclose(np.bincount(first) / len(first), 0.25, atol=0.06)
    for seq_len, drawn in ((1, 0), (1, 1), (5, 1), (5, 2), (5, 4), (5, 5), (5, 0)):
        some = draw_frame_times(rng, 50, seq_len, drawn)
        assert some.shape == (50, drawn or seq_len) and some.min() >= 0 and some.max() < seq_len
        assert (np.diff(some, axis=1) > 0).all()
    with pytest.raises(ValueError, match="drawn_frames"):
        draw_frame_times(rng, 1, 4, 5)


def test_prepared_once_and_changes_noticed(tmp_path: Path, cache: Path) -> None:
    source = video(tmp_path / "a.mp4", moving(6))
    first = prepare(source)
    assert first.path.parent == cache
    stamp = (first.path / "frames.npy").stat().st_mtime_ns
    again = prepare(source)
    assert again.path == first.path and (again.path / "frames.npy").stat().st_mtime_ns == stamp
    assert prepare(source, every_nth=2).path != first.path
    video(source, moving(6, scene=1))
    assert prepare(source).path != first.path
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_given_folder_is_reused_replaced_or_refused(tmp_path: Path) -> None:
    source, out = flat_images(tmp_path / "a", range(4)), tmp_path / "data"
    stamp = (prepare(source, out=out).path / "frames.npy").stat().st_mtime_ns
    assert (prepare(source, out=out).path / "frames.npy").stat().st_mtime_ns == stamp
    (source / "img2.png").unlink()
    assert len(prepare(source, out=out).frames) == 3
    assert {path.name for path in out.iterdir()} == {"frames.npy", "footage.json"}
    (out / "footage.json").unlink()
    with pytest.raises(UserError, match="is not prepared footage; give another -o"):
        prepare(source, out=out)
    with pytest.raises(UserError, match="is not prepared footage; give another -o"):
        prepare(source, out=source / "img1.png")


def test_what_the_system_puts_into_folders_is_in_nobodys_way(tmp_path: Path) -> None:
    source, out = flat_images(tmp_path / "a", range(4)), tmp_path / "data"
    out.mkdir()
    (out / ".DS_Store").touch()
    assert len(prepare(source, out=out).frames) == 4
    (tmp_path / "b").mkdir()
    (tmp_path / "b/Thumbs.db").touch()
    with pytest.raises(UserError, match="is an empty folder"):
        prepare(tmp_path / "b")
    note = tmp_path / "._lamp.mov"
    note.write_bytes(bytes.fromhex("00051607"))
    with pytest.raises(UserError, match=r"\._lamp\.mov was made by the system .*leave it out"):
        prepare(video(tmp_path / "lamp.mov", moving(4)), note)


def test_prepared_footage_is_a_source(tmp_path: Path) -> None:
    made = prepare(flat_images(tmp_path / "a", range(4)), out=tmp_path / "data")
    assert prepare(tmp_path / "data").path == made.path
    with pytest.raises(UserError, match="is 48x64, not 64x64; give --size 48x64"):
        prepare(tmp_path / "data", size=(64, 64))
    with pytest.raises(UserError, match="give it alone"):
        prepare(tmp_path / "data", tmp_path / "a")


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    source = flat_images(tmp_path / "a", range(4))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # bytes of a file: two frames
    try:
        with pytest.raises(UserError, match=r"^footage: cannot write .*File too large; free some space"):
            prepare(source, out=tmp_path / "out" / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "out").iterdir()) == []


def test_interrupted_preparing_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    out = tmp_path / "out" / "data"
    prepare(flat_images(tmp_path / "a", range(4)), out=out)

    def stop(done: int, of: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(video(tmp_path / "b.mp4", moving(9)), out=out, on_progress=stop)
    assert [path.name for path in out.parent.iterdir()] == ["data"]
    assert len(open_footage(out).frames) == 4


def test_truncated_videos(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(40)]
    plain = video(tmp_path / "plain.mp4", frames)
    plain.write_bytes(plain.read_bytes()[: plain.stat().st_size // 2])
    with pytest.raises(UserError, match=r"plain.mp4 cannot be read as a video \(moov atom not found\)"):
        prepare(plain)
    fast = video(tmp_path / "fast.mp4", frames, output_params=["-movflags", "+faststart"])
    fast.write_bytes(fast.read_bytes()[: fast.stat().st_size // 2])
    for _ in range(2):  # told again when reused
        warnings: list[str] = []
        found = prepare(fast, on_warning=warnings.append)
        assert 5 < len(found.frames) < 35
        assert len(warnings) == 1
        assert "fast.mp4 is damaged or cut short (" in warnings[0]
        assert f"used the {len(found.frames)} frames that decode" in warnings[0]


def test_bad_sources(tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            prepare(path)
        text = str(caught.value)
        assert text.startswith("footage: ") and "\n" not in text and path.name in text

    refused(tmp_path / "none.mp4", "does not exist; give a video file or a folder of images")
    for name in ("notes.txt", "notes.mp4", "notes"):
        (tmp_path / name).write_text("This is no video.\n" * 50)
        refused(tmp_path / name, "is a text file|cannot be read as a video")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "cannot be read as a video")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is an empty folder")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    refused(tmp_path / "texts", "has no images")
    sound = tmp_path / "sound.wav"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "sine=duration=0.2"]
    subprocess.run([*command, str(sound)], check=True)
    refused(sound, "has no video stream; give a video file or a folder of images")
    mixed = flat_images(tmp_path / "mixed", [1, 2])
    Image.new("RGB", (40, 30)).save(mixed / "img3.jpg")
    refused(mixed, "img1.png is 64x48, img3.jpg is 40x30")
    broken = flat_images(tmp_path / "broken", [1, 2])
    (broken / "img2.png").write_bytes((broken / "img1.png").read_bytes()[:60])
    refused(broken, "cannot read the image .*img2.png")
    with pytest.raises(UserError, match="nothing given"):
        prepare()
    with pytest.raises(UserError, match="multiples of 16"):
        prepare(mixed, size=(50, 64))


def test_sixteen_bits_of_grey_are_scaled_to_eight(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "images/g16.png")
    assert np.array_equal(prepare(tmp_path / "images").frames[0], np.stack([grey] * 3, axis=-1))


def test_pictures_are_upright(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    grey = pixels[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    for name, stored in (("colour", pixels), ("grey16", grey.astype(np.uint16) * 257)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.ascontiguousarray(np.rot90(stored))).save(tmp_path / name / "a.png", exif=exif)
    assert np.array_equal(prepare(tmp_path / "colour").frames[0], pixels)
    assert np.array_equal(prepare(tmp_path / "grey16").frames[0], np.stack([grey] * 3, axis=-1))


def test_damaged_and_huge_pictures_are_told_in_one_line(damaged_picture: Path) -> None:
    with pytest.raises(UserError, match=r"^footage: cannot read the image .*\.png \(.*\); repair") as caught:
        prepare(damaged_picture.parent)
    assert "\n" not in str(caught.value)


def test_too_short(tmp_path: Path) -> None:
    found = prepare(flat_images(tmp_path / "a", range(6)), every_nth=2)
    found.require_clip(3)
    with pytest.raises(
        UserError, match=r"needs 4 frames, but there are 3 .*smaller --seq-len or --every-nth"
    ):
        found.require_clip(4)
    with pytest.raises(UserError, match="needs 4 frames"):
        found.batch(0, 0, 2, 4)


def test_of_different_rates_the_lowest_is_taken(tmp_path: Path) -> None:
    first = video(tmp_path / "a.mp4", moving(4), fps=10)
    second = video(tmp_path / "b.mp4", moving(8), fps=20)
    for sources in ((first, second), (second, first)):
        warnings: list[str] = []
        found = prepare(*sources, on_warning=warnings.append)
        assert (found.fps, found.cuts, len(found.frames)) == (10, (4,), 8)
        for half in (found.frames[:4], found.frames[4:]):
            middles = [float(np.argmax(frame[18, :, 0] > 128)) for frame in half]
            assert np.diff(middles).tolist() in ([1, 1, 1], [2, 2, 2])
        assert len(warnings) == 1 and "b.mp4 has 20" in warnings[0] and "10 of each are taken" in warnings[0]


def test_damaged_footage_is_refused_by_open_and_made_anew_by_prepare(tmp_path: Path) -> None:
    source = flat_images(tmp_path / "a", range(4))
    found = prepare(source)
    frames = found.path / "frames.npy"
    frames.write_bytes(frames.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"is damaged .*prepare it again"):
        open_footage(found.path)
    assert len(prepare(source).frames) == 4
    (found.path / "footage.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        open_footage(found.path)
    with pytest.raises(UserError, match="no prepared footage"):
        open_footage(tmp_path)


def test_built_in_lamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def frames(size: tuple[int, int], *, fps: float, seed: int, theme: str) -> Iterator[np.ndarray]:
        asked.append((size, fps, seed, theme))
        while True:
            yield np.full((*size, 3), seed, np.uint8)

    monkeypatch.setattr(simulated_lamp, "frames", frames)
    seen: list[tuple[int, int | None]] = []

    def make() -> Footage:
        return footage.prepare_lamp(
            None,
            size=SIZE,
            minutes=0.2,
            fps=10,
            every_nth=2,
            seed=3,
            theme="classic",
            on_progress=lambda done, of: seen.append((done, of)),
        )

    found = make()
    assert found.frames[:, 0, 0, 0].tolist() == [12] * 15 + [13] * 15 + [14] * 15 + [15] * 15
    assert (found.cuts, found.fps, found.step_fps) == ((15, 30, 45), 10, 5)
    assert asked == [(SIZE, 5.0, seed, "classic") for seed in (12, 13, 14, 15)]
    assert seen[-1] == (60, 60)
    before = time.monotonic()
    assert make().path == found.path and len(asked) == 4 and time.monotonic() - before < 1
