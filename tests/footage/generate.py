"""Small videos with known contents, made by ffmpeg in many formats, and what must be read from them.

Each frame carries its number as eight black and white squares, and eight patches of known colours.
"""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 128, 96  # upright, with square pixels
_SQUARE = 16
COLOURS = np.array(
    [
        [(235, 30, 20), (20, 190, 40), (30, 40, 210), (225, 200, 40)],
        [(128, 128, 128), (200, 90, 160), (16, 16, 16), (240, 240, 240)],
    ]
)
_PATCH = (HEIGHT - _SQUARE) // 2, WIDTH // 4


@dataclasses.dataclass(frozen=True)
class Codec:
    """How a codec is asked for, and what it can do."""

    options: str
    containers: tuple[str, ...]
    formats: tuple[str, ...] = ("yuv420p",)
    matrices: tuple[str, ...] = ("bt709", "smpte170m", "bt2020nc", "untagged")
    ranges: tuple[str, ...] = ("tv", "pc")
    rates: tuple[str, ...] = ("30", "25", "30000/1001", "12.5", "60", "5")
    off: float = 7  # levels that a patch may differ by
    fields: bool = False


_MOST = ("mp4", "mov", "mkv", "ts", "avi", "nut")
_STANDARD = ("30", "25", "30000/1001", "60")  # rates of television
_PLAIN = {"matrices": ("untagged",), "ranges": ("tv",)}
CODECS = {
    "h264": Codec(
        "-c:v libx264 -preset veryfast -crf 6", _MOST, ("yuv420p", "yuv422p", "yuv444p"), fields=True
    ),
    "h264 without B": Codec(
        "-c:v libx264 -preset veryfast -crf 6 -bf 0", (*_MOST, "flv", "h264"), fields=True
    ),
    "h264 10 bits": Codec("-c:v libx264 -preset veryfast -crf 6", _MOST, ("yuv420p10le", "yuv422p10le")),
    "hevc": Codec(
        "-c:v libx265 -preset ultrafast -x265-params log-level=none -crf 6",
        ("mp4", "mov", "mkv", "ts"),
        ("yuv420p", "yuv420p10le"),
    ),
    "vp8": Codec(
        "-c:v libvpx -b:v 3M -crf 4 -auto-alt-ref 0",
        ("webm", "mkv", "ivf"),
        matrices=("untagged",),
        ranges=("tv",),
    ),
    "vp9": Codec(
        "-c:v libvpx-vp9 -crf 8 -b:v 0 -deadline realtime -cpu-used 8",
        ("webm", "mkv", "mp4", "ivf"),
        ("yuv420p", "yuv444p", "yuv420p10le"),
    ),
    "av1": Codec("-c:v libaom-av1 -cpu-used 8 -crf 12", ("mp4", "mkv", "webm"), ("yuv420p", "yuv420p10le")),
    "mpeg4": Codec(
        "-c:v mpeg4 -q:v 2 -bf 2", ("mp4", "avi", "mkv", "mov"), matrices=("untagged",), ranges=("tv",), off=9
    ),
    "mpeg2": Codec(
        "-c:v mpeg2video -q:v 2 -bf 2",
        ("ts", "mpg", "mkv"),
        ("yuv420p", "yuv422p"),
        ("bt709", "smpte170m", "untagged"),
        ("tv",),
        _STANDARD,
        9,
        True,
    ),
    "mpeg1": Codec(
        "-c:v mpeg1video -q:v 2", ("mpg",), matrices=("untagged",), ranges=("tv",), rates=_STANDARD, off=9
    ),
    "mjpeg": Codec(
        "-c:v mjpeg -q:v 2",
        ("avi", "mov", "mkv", "mjpeg"),
        ("yuvj420p", "yuvj422p", "yuvj444p"),
        ("smpte170m",),
        ("pc",),
        off=9,
    ),
    "prores": Codec(
        "-c:v prores_ks -profile:v 3",
        ("mov", "mkv"),
        ("yuv422p10le",),
        ("bt709", "smpte170m", "bt2020nc"),
        ("tv",),
        fields=True,
    ),
    "ffv1": Codec(
        "-c:v ffv1",
        ("mkv", "avi", "nut"),
        ("yuv420p", "yuv422p10le", "yuv444p16le", "gbrp", "gray", "bgra"),
    ),
    "huffyuv": Codec(
        "-c:v ffvhuff",
        ("mkv", "avi"),
        ("yuv420p", "yuv422p", "gbrp", "bgra"),
        matrices=("untagged",),
        ranges=("tv",),
    ),
    "utvideo": Codec(
        "-c:v utvideo",
        ("mkv", "avi", "mov"),
        ("yuv420p", "yuv422p", "gbrp"),
        matrices=("smpte170m",),
        ranges=("tv",),
    ),
    "raw": Codec(
        "-c:v rawvideo",
        ("nut", "mkv"),
        ("yuv420p", "yuyv422", "uyvy422", "nv12", "rgb24", "bgr24", "rgb48be", "gray", "yuv444p10be"),
        matrices=("untagged",),
        ranges=("tv",),
    ),
    "qtrle": Codec("-c:v qtrle", ("mov",), ("rgb24", "argb")),
    "png": Codec("-c:v png", ("mov", "mkv"), ("rgb24", "rgba", "rgb48be", "pal8")),
    "apng": Codec("-c:v apng", ("apng",), ("rgb24", "rgba"), rates=("25", "10", "5")),
    "gif": Codec(
        "-filter_complex split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=none -c:v gif",
        ("gif",),
        ("rgb24",),
        rates=("25", "10", "5"),
    ),
    "wmv2": Codec("-c:v wmv2 -q:v 2", ("asf", "avi"), matrices=("untagged",), ranges=("tv",), off=9),
    "flv1": Codec("-c:v flv1 -q:v 2", ("flv",), matrices=("untagged",), ranges=("tv",), off=9),
    "theora": Codec("-c:v libtheora -q:v 10", ("ogv", "mkv"), matrices=("untagged",), ranges=("tv",), off=9),
    "jpeg2000": Codec(
        "-c:v jpeg2000 -q:v 2",
        ("mov", "mkv"),
        ("yuv420p", "rgb24"),
        matrices=("untagged",),
        ranges=("tv",),
        off=9,
    ),
}
_NO_STAMPS = ("h264", "mjpeg")
_VARIABLE = ("mp4", "mov", "mkv", "webm", "nut")  # containers that take any stamps
_TURNING = ("mp4", "mov", "mkv")
_STREAMS = ("ts", "mkv", "webm", "h264", "mjpeg", "mpg", "flv", "nut")  # are read up to where they end
# Codecs whose decoders notice most wrong bytes; what others do not notice, nobody can.
_NOTICING = ("h264", "h264 without B", "h264 10 bits", "hevc", "vp9", "av1", "mpeg2", "mpeg1", "mjpeg")
_FIXED = ("ffv1", "huffyuv", "utvideo", "raw", "qtrle", "png", "apng", "gif", "jpeg2000")


@dataclasses.dataclass(frozen=True)
class Spec:
    """A video to make."""

    index: int
    codec: str
    container: str
    pixels: str
    matrix: str
    levels: str
    rate: str
    timing: str = "even"
    turn: str = "none"
    pixel_width: int = 1
    interlaced: bool = False
    damage: str = "none"

    def __str__(self) -> str:
        return "-".join(str(part).replace(" ", "_") for part in vars(self).values())


@dataclasses.dataclass(frozen=True)
class Made:
    """A video that was made.

    Attributes:
        path: the file.
        stamps: of its frames, in seconds.
        off: how much a patch may differ, in levels.
        grey: whether it has no colours.
    """

    path: Path
    stamps: npt.NDArray[np.float64]
    off: float
    grey: bool


def specs(count: int, seed: int = 20) -> list[Spec]:
    """So many different videos to make, the same ones each time; all codecs come in turns."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        name = list(CODECS)[index % len(CODECS)]
        codec = CODECS[name]

        def one(of: tuple[str, ...]) -> str:
            return str(rng.choice(np.array(of)))

        container, pixels = one(codec.containers), one(codec.formats)
        # AVI and NUT have no place for a matrix, and these codecs neither.
        yuv = pixels.startswith("yuv") and not (container in ("avi", "nut") and name in _FIXED)
        spec = Spec(
            index,
            name,
            container,
            pixels,
            one(codec.matrices) if yuv else "untagged",
            one(codec.ranges) if yuv else "tv",
            one(codec.rates),
        )
        if spec.matrix == "untagged":
            spec = dataclasses.replace(spec, levels=codec.ranges[0])
        kind = rng.random()
        if kind < 0.35 and container in _VARIABLE and name not in ("mpeg2", "mpeg1", "theora", "mpeg4"):
            spec = dataclasses.replace(spec, timing=one(("jitter", "dropped", "hole", "faster")))
        elif kind < 0.55 and container in _TURNING and name != "raw":
            spec = dataclasses.replace(spec, turn=one(("90", "180", "270", "mirrored")))
        elif kind < 0.65 and codec.fields and container not in _NO_STAMPS:
            spec = dataclasses.replace(spec, interlaced=True)
        elif kind < 0.75 and container in ("mp4", "mov", "mkv") and name not in _FIXED:
            spec = dataclasses.replace(spec, pixel_width=2)
        elif kind < 0.85 and container in _STREAMS:
            spec = dataclasses.replace(spec, damage="cut short")
        elif name in _NOTICING and container in _STREAMS:
            spec = dataclasses.replace(spec, damage="wrong bytes")
        found.append(spec)
    return found


def stamps_of(spec: Spec, count: int) -> npt.NDArray[np.float64]:
    """When the frames of a video are shown, in seconds."""
    number = np.arange(count)
    period = 1 / fraction(spec.rate)
    return np.asarray(eval(_TIMES[spec.timing], {"N": number, "mod": np.mod, "gt": np.greater})) * period


def fraction(rate: str) -> float:
    above, _, below = rate.partition("/")
    return float(above) / float(below or 1)


# Of each timing, the number of periods until frame N. ffmpeg and Python read them alike.
_TIMES = {
    "even": "N*1.0",
    "jitter": "N+mod(N*7,3)/6",
    "dropped": "N+gt(N,7)*1+gt(N,13)*2",
    "hole": "N+gt(N,9)*25",
    "faster": "N-gt(N,11)*(N-11)*0.5",
}


def make(spec: Spec, folder: Path, count: int = 20) -> Made:
    """Make a video.

    Args:
        spec: what it is.
        folder: where it goes.
        count: frames.
    """
    codec = CODECS[spec.codec]
    path = folder / f"{spec.index}.{spec.container}"
    frames = np.stack([_frame(number, spec) for number in range(count)])
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    filters = []
    if spec.timing != "even":
        filters.append(f"settb=1/90000,setpts='({_TIMES[spec.timing]})*90000/({spec.rate})'")
    if spec.interlaced:
        filters.append("setfield=tff")
    yuv = spec.pixels.startswith(("yuv", "uyvy", "yuyv", "nv12"))
    tags = ""
    if yuv:
        matrix = "smpte170m" if spec.matrix == "untagged" else spec.matrix
        exact = "flags=accurate_rnd+full_chroma_int+full_chroma_inp"
        filters.append(f"scale=out_color_matrix={matrix}:out_range={spec.levels}:{exact}")
        if spec.matrix != "untagged":
            tags = f"-colorspace {matrix} -color_range {spec.levels}"
    if "filter_complex" not in codec.options:
        filters.append(f"format={spec.pixels}")
    if yuv and spec.matrix != "untagged":
        filters.append(f"setparams=colorspace={matrix}:range={spec.levels}")
    filters.append(f"setsar={spec.pixel_width}")
    time = "-fps_mode passthrough -enc_time_base 1/90000" if spec.timing != "even" else ""
    if spec.timing != "even" and spec.container in ("mp4", "mov"):
        time += " -video_track_timescale 90000"
    fields = ""
    if spec.interlaced:
        fields = "-flags +ildct+ilme" if spec.codec != "prores" else "-flags +ildct"
    options = codec.options
    if "filter_complex" in options:
        options = options.replace("-filter_complex ", f"-filter_complex {','.join(filters)},", 1)
        filters = []
    muxer = {"mpg": "-f mpeg", "ts": "-f mpegts", "h264": "-f h264", "mjpeg": "-f mjpeg"}.get(
        spec.container, ""
    )
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-threads", "1"]
    command += f"-f rawvideo -pix_fmt rgb24 -s {size} -r {spec.rate} -i -".split()
    command += ["-vf", ",".join(filters)] if filters else []
    command += [*options.split(), *tags.split(), *time.split(), *fields.split(), *muxer.split()]
    command += ["-threads", "1", "-strict", "-2", str(path)]
    done = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    if spec.turn != "none":
        turned = path.with_stem(f"{spec.index}-turned")
        turn = "-display_hflip" if spec.turn == "mirrored" else f"-display_rotation {spec.turn}"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *turn.split(), "-i", str(path)]
        subprocess.run([*command, "-c", "copy", str(turned)], check=True)
        path = turned
    _damage(path, spec)
    off = 12 if spec.codec == "gif" or spec.pixels == "pal8" else codec.off
    return Made(path, stamps_of(spec, count), off, spec.pixels == "gray")


def _frame(number: int, spec: Spec) -> npt.NDArray[np.uint8]:
    """A frame as it is stored."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(8):
        picture[:_SQUARE, bit * _SQUARE : (bit + 1) * _SQUARE] = 235 if number >> bit & 1 else 16
    down, across = _PATCH
    for row in range(2):
        for column in range(4):
            top = _SQUARE + row * down
            picture[top : top + down, column * across : (column + 1) * across] = COLOURS[row, column]
    if spec.pixel_width == 2:
        picture = picture[:, ::2]
    if spec.turn == "mirrored":
        picture = picture[:, ::-1]
    elif spec.turn != "none":  # a display turns it by so much against the clock
        picture = np.rot90(picture, -int(spec.turn) // 90)
    return np.ascontiguousarray(picture)


def _damage(path: Path, spec: Spec) -> None:
    data = bytearray(path.read_bytes())
    if spec.damage == "cut short":
        del data[len(data) * 9 // 10 :]
    elif spec.damage == "wrong bytes":
        rng = np.random.default_rng(spec.index)
        at = len(data) * 4 // 5  # behind the first frame, which is most of some files
        data[at : at + 60] = rng.integers(0, 256, 60, dtype=np.uint8).tobytes()
    path.write_bytes(data)


def numbers(frames: npt.NDArray[np.uint8]) -> list[int]:
    """The numbers that frames (N, HEIGHT, WIDTH, 3) carry; −1 for those that cannot be read."""
    found = []
    for frame in frames:
        squares = frame[:_SQUARE].reshape(_SQUARE, 8, _SQUARE, 3)[4:-4, :, 4:-4].mean((0, 2, 3))
        clear = ((squares < 70) | (squares > 180)).all()
        found.append(sum(1 << bit for bit in range(8) if squares[bit] > 128) if clear else -1)
    return found


def colour_error(frames: npt.NDArray[np.uint8], grey: bool = False) -> float:
    """The largest difference of a patch's mean from what it was made of, in levels."""
    down, across = _PATCH
    patches = frames[:, _SQUARE:].reshape(len(frames), 2, down, 4, across, 3)[:, :, 8:-8, :, 8:-8]
    wanted = COLOURS.astype(np.float64)
    if grey:
        wanted = np.repeat((wanted @ [0.299, 0.587, 0.114])[..., None], 3, axis=-1)
    return float(np.abs(patches.mean((2, 4)) - wanted).max())
