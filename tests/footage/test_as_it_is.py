"""Footage is read as it is: what phones, browsers, cameras and other programs write. Recipes are small."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from PIL import Image, ImageCms

import mlxlava
from mlxlava.cli import cli
from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.footage import prepare as footage
from mlxlava.footage.dataset import Footage, open_footage

H264 = "-c:v libx264 -preset veryfast -pix_fmt yuv420p -bf 0"
CLIP = "-f lavfi -i testsrc2=s=64x48:r=30:d=4"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ffmpeg(folder: Path, arguments: str) -> Path:
    """Run ffmpeg in a folder; an argument may hold spaces in quotation marks. Returns the file written."""
    parts = [part.strip() for part in arguments.split('"')]
    split = [word for at, part in enumerate(parts) for word in ([part] if at % 2 else part.split())]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-threads", "1", *split]
    subprocess.run(command, cwd=folder, check=True)
    return folder / split[-1]


def read(*sources: Path, size: tuple[int, int] = (32, 32), **options: Any) -> tuple[Footage, list[str]]:
    """Prepare footage, and what was said of it."""
    said: list[str] = []
    found = footage.prepare(sources, None, size=size, on_warning=said.append, **options)
    assert all("\n" not in line and line.startswith("footage: ") for line in said)
    return found, said


def about(found: Footage) -> dict[str, Any]:
    source: dict[str, Any] = json.loads((found.path / "footage.json").read_text())["sources"][0]
    return source


def middle(found: Footage, at: int = 0) -> npt.NDArray[Any]:
    height, width = found.size
    part = found.frames[at, height // 4 : -height // 4, width // 4 : -width // 4]
    colour: npt.NDArray[Any] = part.mean((0, 1))
    return colour


def assert_colour(found: Footage, expected: Sequence[float], off: float = 4, at: int = 0) -> None:
    np.testing.assert_allclose(middle(found, at), expected, atol=off)


# --- time ---


def test_a_screen_recording_without_a_rate(tmp_path: Path) -> None:
    ffmpeg(tmp_path, f"{CLIP} -t 3 -c:v libvpx -b:v 500k -g 9999 a.webm")
    jitter = "\"setts=ts='floor(N*33.333+mod(N*7919,13))'\""
    path = ffmpeg(tmp_path, f"-i a.webm -c copy -bsf:v {jitter} j.webm")
    data = path.read_bytes()
    for name, length in (("23e38384", 8), ("448988", 11)):  # DefaultDuration and Duration become void
        at = data.index(bytes.fromhex(name))
        void = b"\xec" + bytes([0x80 + length - 2]) + bytes(length - 2)
        data = data[:at] + void + data[at + length :]
    path.write_bytes(data)
    found, said = read(path)
    assert len(found.frames) == about(found)["decoded_frames"] == 90
    assert found.fps == pytest.approx(30, rel=0.01) and found.cuts == ()
    assert len(said) == 1 and "come unevenly" in said[0] and "0 are repeated and 0 left out" in said[0]


def test_a_phones_variable_frame_rate(tmp_path: Path) -> None:
    path = ffmpeg(
        tmp_path,
        f"{CLIP} -t 3 -vf settb=1/600,setpts='N*20+mod(N*7,3)*5' -fps_mode passthrough -enc_time_base 1/600 "
        "-video_track_timescale 600 -c:v libx264 -preset veryfast -pix_fmt yuv420p phone.mp4",
    )
    found, said = read(path)
    assert len(found.frames) == 90 and found.fps == pytest.approx(30, rel=0.01)
    assert len(said) == 1 and "come unevenly" in said[0] and "0 are repeated and 0 left out" in said[0]


def test_a_raw_stream_says_that_its_rate_is_unknown(tmp_path: Path) -> None:
    ffmpeg(tmp_path, f"{CLIP} {H264} s.mp4")
    path = ffmpeg(
        tmp_path, "-i s.mp4 -c copy -bsf:v h264_mp4toannexb,h264_metadata=tick_rate=2000000 -f h264 rpi.h264"
    )
    found, said = read(path)
    assert (len(found.frames), found.fps, found.cuts) == (120, 30, ())
    assert len(said) == 1 and "nothing tells its rate" in said[0] and "--source-fps" in said[0]
    found, said = read(path, source_fps=25)
    assert (len(found.frames), found.fps, said) == (120, 25, [])


def test_a_slow_time_lapse(tmp_path: Path) -> None:
    path = ffmpeg(tmp_path, f"-f lavfi -i testsrc2=s=64x48:r=1/60 -frames:v 40 {H264} slow.mkv")
    found, said = read(path)
    assert (len(found.frames), found.cuts, said) == (40, (), [])
    assert found.fps == pytest.approx(1 / 60)


def test_pictures_and_a_raw_mjpeg_have_no_rate(tmp_path: Path) -> None:
    ffmpeg(tmp_path, f"{CLIP} -t 1 m.mjpeg")
    (tmp_path / "p").mkdir()
    ffmpeg(tmp_path, f"{CLIP} -t 1 p/%d.png")
    for source in (tmp_path / "m.mjpeg", tmp_path / "p"):
        found, said = read(source)
        assert (len(found.frames), found.fps) == (30, 30)
        assert len(said) == 1 and "nothing tells its rate" in said[0] and "--source-fps" in said[0]
        assert read(source)[1] == said  # also when it is opened again
        found, said = read(source, source_fps=1)
        assert (len(found.frames), found.fps, found.cuts, said) == (30, 1, (), [])
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="source-fps"):
            read(tmp_path / "p", source_fps=wrong)


def test_a_hole_is_a_cut(tmp_path: Path) -> None:
    path = ffmpeg(
        tmp_path, f"{CLIP} -vf setpts='if(lt(N,50),N,N+40)/30/TB' -fps_mode passthrough {H264} h.mp4"
    )
    found, said = read(path)
    assert (len(found.frames), found.fps, found.cuts) == (120, 30, (50,))
    assert len(said) == 1 and "1 hole in time" in said[0]
    every, _ = read(path, every_nth=4)
    assert (len(every.frames), every.cuts) == (13 + 18, (13,))


def test_frames_are_evenly_spaced_in_true_time(tmp_path: Path) -> None:
    """Half of the film has 30 frames a second, the other half 60: the stamps of kept frames stay even."""
    ramp = "-f lavfi -i color=black:s=64x48:r=60:d=2,geq=lum='16+N':cb=128:cr=128"
    chosen = "select='lt(n,60)*not(mod(n,2))+gte(n,60)'"
    path = ffmpeg(tmp_path, f"{ramp} -vf {chosen} -fps_mode passthrough {H264} -qp 0 v.mp4")
    found, said = read(path, every_nth=2)
    steps = np.diff(found.frames[:, 16, 16, 0].astype(float)) / (255 / 219)
    per_frame = 60 / found.step_fps
    assert np.abs(steps - per_frame).max() < 1.6 and np.abs(steps.mean() - per_frame) < 0.1
    assert len(said) == 1 and "come unevenly" in said[0]


def test_stamps_out_of_order_and_time_that_begins_again(tmp_path: Path) -> None:
    ffmpeg(tmp_path, f"{CLIP} -t 1 {H264} a.ts")
    (tmp_path / "two.ts").write_bytes((tmp_path / "a.ts").read_bytes() * 2)
    found, said = read(tmp_path / "two.ts")
    assert (len(found.frames), found.fps, found.cuts) == (60, 30, (30,))
    assert len(said) == 1 and "1 hole in time" in said[0]


# --- colour ---

EXACT = "flags=accurate_rnd+full_chroma_int"
RED = "color=0xEB1E14"
TO_HDR = (
    "setparams=color_primaries=bt709:color_trc=bt709:range=pc,"
    "zscale=tin=709:pin=709:min=gbr:rin=full:t=linear:npl=203,format=gbrpf32le,"
    "zscale=p=2020,zscale=t={curve}:m=2020_ncl:r=limited:npl=203,format=yuv420p10le"
)


@pytest.mark.parametrize("curve", ["arib-std-b67", "smpte2084"])
@pytest.mark.parametrize(("colour", "rgb"), [("EB1E14", (235, 30, 20)), ("505050", (80, 80, 80))])
def test_hdr_becomes_what_it_was_made_from(
    tmp_path: Path, curve: str, colour: str, rgb: tuple[int, int, int]
) -> None:
    path = ffmpeg(
        tmp_path,
        f"-f lavfi -i color=0x{colour}:s=192x96:r=30,format=gbrp -frames:v 6 "
        f"-vf {TO_HDR.format(curve=curve)} "
        "-c:v libx265 -x265-params log-level=none -crf 4 -tag:v hvc1 -colorspace bt2020nc "
        f"-color_primaries bt2020 -color_trc {curve} -color_range tv hdr.mov",
    )
    found, said = read(path)
    assert_colour(found, rgb, off=6)
    assert said == []


@pytest.mark.parametrize(("height", "matrix"), [(720, "bt709"), (704, "smpte170m")])
def test_video_without_colour_tags_goes_by_its_size(tmp_path: Path, height: int, matrix: str) -> None:
    untagged = "h264_metadata=colour_primaries=2:transfer_characteristics=2:matrix_coefficients=2"
    path = ffmpeg(
        tmp_path,
        f"-f lavfi -i {RED}:s=1280x{height}:r=30 -frames:v 3 "
        f"-vf scale=out_color_matrix={matrix}:out_range=tv:{EXACT},format=yuv420p "
        f"-c:v libx264 -qp 4 -bsf:v {untagged} "
        "hd.mp4",
    )
    assert_colour(read(path)[0], (235, 30, 20), off=3)


@pytest.mark.parametrize("matrix", ["bt709", "bt470bg", "smpte240m", "fcc", "bt2020nc"])
@pytest.mark.parametrize("levels", ["tv", "pc"])
def test_a_tagged_matrix_and_range_are_used(tmp_path: Path, matrix: str, levels: str) -> None:
    path = ffmpeg(
        tmp_path,
        f"-f lavfi -i {RED}:s=64x48:r=30 -frames:v 2 "
        f"-vf scale=out_color_matrix={matrix}:out_range={levels}:{EXACT},format=yuv420p,"
        f"setparams=colorspace={matrix}:range={levels} -c:v libx264 -qp 1 "
        f"-colorspace {matrix} -color_range {levels} m.mp4",
    )
    assert_colour(read(path)[0], (235, 30, 20), off=3)


def test_wide_primaries_become_srgb(tmp_path: Path) -> None:
    """The same red in Display P3, as zscale makes it."""
    convert = (
        "format=gbrp,setparams=color_primaries=bt709:color_trc=bt709:range=pc,"
        "zscale=min=gbr:rin=full:pin=709:tin=709:p=smpte432:t=709:m=709:r=limited,format=yuv444p"
    )
    path = ffmpeg(
        tmp_path,
        f"-f lavfi -i {RED}:s=64x48:r=30 -frames:v 2 -vf {convert} -c:v libx264 -qp 1 -colorspace bt709 "
        "-color_primaries smpte432 -color_trc bt709 -color_range tv p3.mp4",
    )
    assert_colour(read(path)[0], (235, 30, 20), off=5)


def display_p3() -> bytes:
    """An ICC profile of Display P3's primaries with a gamma of 2.2, made here."""
    return make_profile(((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)), 2.2)


def make_profile(columns: Sequence[Sequence[float]], gamma: float) -> bytes:
    """A matrix profile (ICC.1, version 2)."""

    def fixed(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    tags = {b"desc": b"desc" + bytes(4) + (2).to_bytes(4, "big") + b"p\0" + bytes(79)}
    tags[b"wtpt"] = b"XYZ " + bytes(4) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True):
        tags[name] = b"XYZ " + bytes(4) + b"".join(map(fixed, column))
    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big") + bytes(2)
    tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    tags[b"cprt"] = b"text" + bytes(4) + b"none\0\0\0\0"
    table, body, at = len(tags).to_bytes(4, "big"), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + (at + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data
    header = (at + len(body)).to_bytes(4, "big") + bytes(4) + bytes.fromhex("02400000") + b"mntrRGB XYZ "
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return header + bytes(128 - len(header)) + table + body


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_a_pictures_profile_is_used(tmp_path: Path, name: str) -> None:
    (tmp_path / "p").mkdir()
    Image.new("RGB", (64, 64), (200, 60, 50)).save(tmp_path / "p" / name, icc_profile=display_p3())
    found, _ = read(tmp_path / "p")
    # The red of P3 in sRGB: more red, less green and blue.
    assert_colour(found, (217, 45, 38), off=8)
    assert middle(found)[0] > 208 and middle(found)[1] < 52
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "s").mkdir()
    Image.new("RGB", (64, 64), (200, 60, 50)).save(tmp_path / "s" / name, icc_profile=srgb, quality=95)
    assert_colour(read(tmp_path / "s")[0], (200, 60, 50), off=4)
    (tmp_path / "d").mkdir()
    Image.new("RGB", (64, 64), (200, 60, 50)).save(tmp_path / "d" / name, icc_profile=b"damaged", quality=95)
    assert_colour(read(tmp_path / "d")[0], (200, 60, 50), off=4)


HALF = "color=0xF06450@0.5:s=64x48:r=10:d=0.3,format=rgba"


@pytest.mark.parametrize(
    "how",
    [
        "format=yuva444p10le -c:v prores_ks -profile:v 4444 a.mov",
        "format=yuva420p -c:v libvpx-vp9 -crf 4 -b:v 0 a.webm",
        "format=yuva420p -c:v libvpx -crf 4 -b:v 2M -auto-alt-ref 0 a.webm",
        "format=rgba -c:v png a.mov",
        "format=rgba -c:v qtrle a.mov",
        "format=rgba -c:v apng a.apng",
    ],
)
def test_alpha_of_video_lies_over_black(tmp_path: Path, how: str) -> None:
    path = ffmpeg(tmp_path, f"-f lavfi -i {HALF} -vf {how}")
    assert_colour(read(path)[0], (120, 50, 40), off=6)


def test_alpha_of_pictures_lies_over_black(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    half = Image.new("RGBA", (64, 64), (240, 100, 80, 128))
    half.save(tmp_path / "p/0.png")
    half.save(tmp_path / "p/1.webp", lossless=True)
    half.save(tmp_path / "p/2.tif")
    half.convert("LA").save(tmp_path / "p/3.png")
    key = Image.new("RGB", (64, 64), (10, 200, 30))
    key.save(tmp_path / "p/4.png", transparency=(10, 200, 30))
    palette = Image.new("P", (64, 64), 3)
    palette.putpalette([*([0] * 9), 250, 20, 10])
    palette.save(tmp_path / "p/5.png", transparency=bytes([255, 255, 255, 128]))
    found, _ = read(tmp_path / "p")
    for at in (0, 1, 2):
        assert_colour(found, (120, 50, 40), at=at)
    assert_colour(found, [half.convert("LA").getpixel((0, 0))[0] / 2] * 3, at=3)  # type: ignore[index]
    assert_colour(found, (0, 0, 0), at=4)
    assert_colour(found, (125, 10, 5), at=5)


# --- which pictures ---


def test_the_default_stream_is_taken(tmp_path: Path) -> None:
    path = ffmpeg(
        tmp_path,
        "-f lavfi -i color=blue:s=64x48:r=10:d=2 -f lavfi -i color=red:s=320x240:r=30:d=2 -map 0:v -map 1:v "
        "-c:v libx264 -pix_fmt yuv420p -disposition:v:0 0 -disposition:v:1 default two.mp4",
    )
    found, said = read(path)
    assert_colour(found, (254, 0, 0))
    assert (len(found.frames), found.fps) == (60, 30)
    assert len(said) == 1 and "2 video streams; that of 320x240 is taken" in said[0]


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    ffmpeg(tmp_path, f"{CLIP} -t 1 {H264} v.mp4")
    ffmpeg(tmp_path, "-f lavfi -i color=red:s=640x480 -frames:v 1 cover.png")
    path = ffmpeg(tmp_path, "-i cover.png -i v.mp4 -map 0 -map 1 -c copy -disposition:v:0 attached_pic c.mp4")
    found, said = read(path)
    assert (len(found.frames), said) == (30, [])


def test_a_change_of_size_is_a_cut_and_squares_stay_squares(tmp_path: Path) -> None:
    data = b""
    for number, size in enumerate(((256, 192), (192, 256))):
        x, y = size[0] // 2 - 40, size[1] // 2 - 40
        square = f"drawbox=x={x}:y={y}:w=80:h=80:color=white:t=fill"
        source = f"-f lavfi -i color=black:s={size[0]}x{size[1]}:r=30:d=1"
        path = ffmpeg(tmp_path, f"{source} -vf {square} {H264} p{number}.ts")
        data += path.read_bytes()
    (tmp_path / "both.ts").write_bytes(data)
    found, said = read(tmp_path / "both.ts", size=(96, 128))
    assert (len(found.frames), found.cuts) == (60, (30,))
    assert len(said) == 1 and "1 change of size" in said[0]
    for frame in (found.frames[10], found.frames[50]):
        white = frame[..., 1] > 128
        assert abs(int(white.any(1).sum()) - int(white.any(0).sum())) <= 1 < white.sum()


def test_a_tiff_with_an_orientation(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    picture = Image.new("RGB", (96, 64), (200, 30, 30))
    picture.paste((20, 200, 20), (0, 0, 96, 20))
    picture.save(tmp_path / "p/0.tif", tiffinfo={274: 6})
    found, _ = read(tmp_path / "p", size=(96, 64), crop="0,0,64,96")
    assert found.frames[0, 50, 60].tolist() == [20, 200, 20]  # the top has become the right
    assert found.frames[0, 50, 10].tolist() == [200, 30, 30]


def test_a_folder_of_folders_says_so(tmp_path: Path) -> None:
    (tmp_path / "deep/a").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "deep/a/0.png")
    with pytest.raises(UserError, match=r"deep has no images .*but 1 sub-folder; give"):
        read(tmp_path / "deep")


def test_what_is_left_out_of_a_folder_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    first, second = Image.new("RGB", (64, 64), (9, 9, 9)), Image.new("RGB", (64, 64), (99, 9, 9))
    for number in range(3):
        first.save(folder / f"{number}.png")
    first.save(folder / "3.png", save_all=True, append_images=[second], duration=100)
    first.save(folder / "4.webp", save_all=True, append_images=[second], duration=100, lossless=True)
    (folder / "5.heic").write_bytes(b"none")
    (folder / "6.png").symlink_to(folder / "nowhere.png")
    (folder / "notes.txt").write_text("of no interest")
    found, said = read(folder, source_fps=2)
    assert len(found.frames) == 5
    assert len(said) == 2
    assert "also has 1 broken link, 1 heic file, which is not read" in said[0]
    assert "animations (3.png, 4.webp)" in said[1]
    for name in ("3.png", "4.webp"):  # given alone, all of it is read
        found, said = read(folder / name)
        assert (len(found.frames), said) == (2, []) and found.fps == pytest.approx(10)
        assert_colour(found, (99, 9, 9), at=1)


@pytest.mark.parametrize("size", [(48, 64), (32, 32)])
def test_float_and_deep_pictures(tmp_path: Path, size: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (48, 64)).astype(np.uint8)
    frames = []
    for name, values in (
        ("eight", grey),
        ("sixteen", grey.astype(np.uint16) * 257),
        ("float", (grey / 255).astype(np.float32)),
    ):
        (tmp_path / name).mkdir()
        Image.fromarray(values).save(tmp_path / name / "0.tif")
        frames.append(read(tmp_path / name, size=size)[0].frames[0])
    assert (frames[0] == frames[1]).all() and (frames[0] == frames[2]).all() and frames[0].max() > 150
    for number, (odd, words) in enumerate(
        ((grey.astype(np.int32) * 70000, "32 bits"), (grey.astype(np.float32), "do not lie in 0"))
    ):
        (tmp_path / f"r{number}").mkdir()
        Image.fromarray(odd).save(tmp_path / f"r{number}/0.tif")
        with pytest.raises(UserError, match=words):
            read(tmp_path / f"r{number}")


def test_kinds_of_pictures_that_are_not_read_are_refused(tmp_path: Path) -> None:
    for name in ("a.heic", "a.HEIF", "a.dng"):
        (tmp_path / name).write_bytes(b"whatever")
        with pytest.raises(UserError, match="is a picture in a format that is not supported; convert it"):
            read(tmp_path / name)


def test_cmyk_palette_and_bilevel_pictures(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    red = Image.new("RGB", (64, 64), (200, 30, 30))
    red.convert("CMYK").save(tmp_path / "p/0.jpg", quality=95)
    red.convert("CMYK").save(tmp_path / "p/1.tif")
    red.quantize(16).save(tmp_path / "p/2.png")
    red.save(tmp_path / "p/3.bmp")
    Image.new("1", (64, 64), 1).save(tmp_path / "p/4.png")
    found, _ = read(tmp_path / "p")
    for at in range(4):
        assert_colour(found, (200, 30, 30), at=at)
    assert_colour(found, (255, 255, 255), at=4)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "f.ts"
    os.mkfifo(path)
    before = time.monotonic()
    with pytest.raises(UserError, match="is a pipe or a device"):
        read(path)
    with pytest.raises(UserError, match="is a pipe or a device"):
        read(Path("/dev/null"))
    assert time.monotonic() - before < 5


# --- what must not be read ---


def test_no_file_makes_others_be_read(tmp_path: Path) -> None:
    """Playlists, lists of files and drawings are no footage, by whatever name."""
    ffmpeg(tmp_path, f"{CLIP} -t 1 {H264} v.mp4")
    ffmpeg(tmp_path, f"{CLIP} -t 1 {H264} v.ts")
    (tmp_path / "list.txt").write_text("ffconcat version 1.0\nfile v.mp4\n")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nv.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "live.m3u8").write_text(playlist)
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48"/>')
    for name in ("list.txt", "live.m3u8", "a.svg"):
        for other in (name, "lamp.mp4"):
            shutil.copyfile(tmp_path / name, tmp_path / "copy")
            path = tmp_path / other if other != name else tmp_path / name
            (tmp_path / "copy").replace(path)
            with pytest.raises(UserError, match=r"cannot be read as a video|a format that is not supported"):
                read(path)
    postscript = tmp_path / "p"
    postscript.mkdir()
    (postscript / "0.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n")
    with pytest.raises(UserError, match="not a picture in a supported format"):
        read(postscript)


# --- commands ---


@pytest.mark.usefixtures("eager")
def test_prepared_footage_knows_its_size_and_training_takes_it(
    tmp_path: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ffmpeg(tmp_path, f"{CLIP} {H264} lamp.mp4")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["footage", str(path), "-o", "X", "--size", "32x16"])
    assert done.exit_code == 0
    trained = mlxlava.train("X", tiny, run=tmp_path / "run", steps=1)
    recipe = json.loads((trained.run / "config.json").read_text())["recipe"]
    assert recipe["data"]["size"] == [32, 16]
    with pytest.raises(UserError, match="is 32x16, not 16x16"):
        mlxlava.train("X", tiny, run=tmp_path / "other", steps=1, settings={"data.size": (16, 16)})


@pytest.mark.usefixtures("eager")
def test_the_true_rate_can_be_given_everywhere(
    tmp_path: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p").mkdir()
    ffmpeg(tmp_path, f"{CLIP} -t 1 p/%d.png")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["footage", "p", "-o", "X", "--size", "16", "--source-fps", "2.5"])
    assert done.exit_code == 0 and open_footage("X").fps == 2.5
    settings = {"data.source_fps": 2.5, "data.every_nth": 2, "data.seq_len": 4}
    trained = mlxlava.train("p", tiny, run=tmp_path / "run", steps=1, settings=settings)
    assert json.loads((trained.run / "config.json").read_text())["step_fps"] == 1.25
    for wrong in ("0", "-3", "nan", "inf", "x"):
        done = CliRunner().invoke(cli, ["footage", "p", "-o", "Y", "--source-fps", wrong])
        assert done.exit_code != 0 and not Path("Y").exists()
