"""Reads videos: opens files, and yields their time stamps and their frames.

PyAV (ffmpeg's libraries) decodes, with one thread for each core.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
from array import array
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
from PIL import Image

from mlxlava.cores import core_limit
from mlxlava.errors import UserError
from mlxlava.footage.raster import DecodedFrame, Orientation
from mlxlava.footage.timing import Timing, measure_timing, split_where_time_restarts

FPS_IF_UNKNOWN = 30.0  # frames per second, if no rate is known

# Only these containers are read. None of them is a playlist or a list of files, so a file cannot make other
# files be read. Pictures have their own reader.
_READABLE_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,h263,m4v,vc1,mjpeg,mjpeg_2000,"
    "ivf,obu,av1,flv,asf,ogg,gif,apng,yuv4mpegpipe,nut,mxf,dv,rm,wtv,gxf,smjpeg,mpjpeg,wav,mp3,flac"
)
_READABLE_CODECS = (
    "h264 hevc vp8 vp9 av1 libdav1d libaom-av1 vvc mpeg4 msmpeg4 msmpeg4v1 msmpeg4v2 msmpeg4v3 "
    "mpeg1video mpeg2video mpegvideo h261 h263 h263i h263p flv flv1 theora wmv1 wmv2 wmv3 vc1 rv10 rv20 "
    "rv30 rv40 svq1 svq3 cinepak mjpeg mjpegb jpeg2000 libopenjpeg prores dnxhd cfhd dvvideo ffv1 "
    "huffyuv ffvhuff utvideo magicyuv lagarith rawvideo v210 v308 v408 v410 r210 r10k qtrle rpza png "
    "apng gif webp bmp tiff msrle msvideo1 zmbv flashsv flashsv2 vp6 vp6f vp6a hap speedhq "
)
# Bare streams have no time stamps. Some contain a rate, but it is often wrong.
_CONTAINERS_WITHOUT_STAMPS = "h264 hevc h263 m4v vc1 mjpeg mjpeg_2000 mpegvideo obu av1 mpjpeg smjpeg"
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # ffmpeg's own decoders ignore alpha
_MAX_FRAME_PIXELS = 8192 * 4352  # the most that H.264, HEVC and AV1 have (levels 6 to 6.3)
_PROBED_FRAMES = 16  # so many packets are decoded to see whether a file follows its format
_MAX_FRAMES_SKIPPED_AFTER_DAMAGE = 300  # most frames that are left out after a damaged one


@dataclasses.dataclass(frozen=True)
class VideoSurvey:
    """What is known of a video before its frames are read.

    Attributes:
        size: width and height of its first frame, upright.
        timing: timing of its stamps; None if there are none.
        frames: expected number of frames.
        errors_mean_damage: whether its first packets follow the format. Then later errors mean damage.
        streams: number of video streams in the file. One of them is read.
        problem: why it ends early; empty if it does not.
    """

    size: tuple[int, int]
    timing: Timing | None
    frames: int
    errors_mean_damage: bool
    streams: int
    problem: str


class Video:
    """An opened video. Use it in a ``with`` statement, and iterate over it for its frames.

    Each frame that can be decoded comes once, in the order of showing. Damaged frames are left out, and so
    are the frames after them up to the next key frame.

    Args:
        path: the file.
        errors_mean_damage: see ``VideoSurvey``.
        key_frames_only: read only key frames, which is fast.

    Attributes:
        damaged: number of frames that were left out because of damage.
        errors: number of packets that could not be decoded.
        problem: why reading ended early; empty if it did not.

    Raises:
        UserError: the file is not a video, or its format is not supported.
    """

    def __init__(self, path: Path, *, errors_mean_damage: bool = True, key_frames_only: bool = False) -> None:
        self._errors_mean_damage = errors_mean_damage
        self._container = _open_container(path)
        try:
            self._stream, self.streams = _choose_stream(self._container, path)
            self._decoder = _choose_decoder(self._stream)
            self._decoder.thread_type = "AUTO"
            self._decoder.thread_count = core_limit() or 0  # 0: all
            options = {"max_pixels": str(_MAX_FRAME_PIXELS)}
            if errors_mean_damage:
                options["err_detect"] = "explode"
            self._decoder.options = options
            if key_frames_only:
                self._decoder.skip_frame = "NONKEY"
        except BaseException:
            self._container.close()
            raise
        self.timed = self._container.format.name not in _CONTAINERS_WITHOUT_STAMPS.split()
        # AVI has times of decoding and not of showing. They are the same times in another order.
        self._by_order = self._container.format.name == "avi"
        self._raw_size = 0
        self._turns: dict[int, Orientation] = {}
        self.damaged = 0
        self.errors = 0
        self.problem = ""

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[DecodedFrame]:
        aspect = float(self._stream.sample_aspect_ratio or 1)
        waiting = 0
        decoding: list[int] = []  # times of the packets whose frames have not been decoded yet
        for packet in self._packets():
            if self._by_order and packet is not None and packet.dts is not None and packet.size:
                heapq.heappush(decoding, packet.dts)
            try:
                if packet is not None and self._is_incomplete_packet(packet):
                    raise av.error.InvalidDataError(0, "a part of the file is missing")
                frames = self._decoder.decode(packet)
            except av.error.EOFError:
                break
            except (av.error.FFmpegError, ValueError) as error:
                self.damaged += 1
                self.errors += 1
                self.problem = self.problem or _describe_ffmpeg_error(error)
                waiting = _MAX_FRAMES_SKIPPED_AFTER_DAMAGE
                continue
            for frame in frames:
                if frame.is_corrupt or (waiting and not frame.key_frame):
                    self.damaged += 1
                    waiting = max(0, waiting - 1)
                    continue
                waiting = 0
                known = frame.dts if frame.pts is None else frame.pts
                if self._by_order:
                    known = heapq.heappop(decoding) if decoding else None
                base = self._stream.time_base
                stamp = None if known is None or base is None or not self.timed else float(known * base)
                yield DecodedFrame(
                    frame,
                    stamp=stamp,
                    aspect=aspect,
                    turn=self._orientation_of(frame),
                    codec=self._decoder.name,
                )

    def _is_incomplete_packet(self, packet: Any) -> bool:
        """Whether the end of a packet is missing. ffmpeg decodes raw pictures even then."""
        if self._decoder.name == "rawvideo" and packet.size:
            self._raw_size = max(self._raw_size, packet.size)
            return bool(packet.size < self._raw_size)
        # Complete packets are marked too, where MPEG transport streams were joined.
        joined = self._container.format.name == "mpegts"
        return self._errors_mean_damage and bool(packet.is_corrupt) and not joined

    def _packets(self) -> Iterator[Any]:
        """Yield all packets, then an empty one, which makes the decoder return its last frames."""
        try:
            yield from self._container.demux(self._stream)
        except av.error.FFmpegError as error:
            self.problem = self.problem or _describe_ffmpeg_error(error)
            yield None

    def _orientation_of(self, frame: Any) -> Orientation:
        """How a frame is turned upright.

        After the side data of a frame is read, the frame and the data refer to each other. Then only Python's
        garbage collector frees them, and it runs too late for pictures. So each angle is read only once.
        """
        angle = frame.rotation
        if angle not in self._turns:
            matrix = frame.side_data.get("DISPLAYMATRIX")
            self._turns[angle] = Orientation() if matrix is None else Orientation.from_matrix(bytes(matrix))
        return self._turns[angle]

    def seek(self, seconds: float) -> bool:
        """Continue from the last key frame before a time of the stream's stamps. False if that fails."""
        base = self._stream.time_base
        if base is None or not self.timed or self._by_order:
            return False
        try:
            self._container.seek(int(seconds / base), stream=self._stream)
        except (av.error.FFmpegError, OverflowError):
            return False
        return True

    def read_timing(self) -> tuple[Timing | None, int]:
        """Read all stamps without decoding: the timing and the number of frames. Also sets ``problem``.

        After this, no frame can be decoded.
        """
        base = self._stream.time_base or Fraction(1, 1000)
        shown, order = array("q"), array("q")  # 16 bytes a frame: 17 MB for ten hours
        frames = packets = 0
        logs: list[str] = []
        with _capture_ffmpeg_errors(logs):
            for packet in self._packets():
                if packet is None or not packet.size:
                    continue
                packets += 1
                if packet.is_discard:
                    continue
                frames += 1
                stamp = packet.dts if packet.pts is None or self._by_order else packet.pts
                if stamp is None:
                    continue
                shown.append(stamp)
                order.append(packet.dts if packet.dts is not None else (order[-1] if order else stamp))
        self.problem = self.problem or (logs[0] if logs else "")
        if packets < self._stream.frames:
            self.problem = self.problem or "frames that its header promises are missing"
        if not self.timed or len(shown) < 2:
            return None, frames
        unit = float(base)
        runs = [run * unit for run in split_where_time_restarts(shown, order)]
        rates = (self._stream.average_rate, self._stream.guessed_rate)
        timing = measure_timing(runs, unit, [float(rate) for rate in rates if rate])
        if timing and len(runs) == 1:
            end = max(float(runs[0].max()), float(np.ptp(runs[0]))) + 2 / timing.fps
            promised = self._header_duration_seconds()
            if end < 0.98 * promised and not self.problem:
                self.problem = f"it ends after {end:.1f} of the {promised:.1f} seconds that its header names"
        return timing, frames

    def _header_duration_seconds(self) -> float:
        """The duration in the header, in seconds; 0 if it may be that of another stream."""
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        alone = len(self._container.streams) == 1 and self._container.duration is not None
        return self._container.duration / av.time_base if alone else 0.0


def survey_video(path: Path) -> VideoSurvey:
    """Examine a video: read all stamps, and decode the first frames.

    Raises:
        UserError: it is not a video, or no frame can be decoded.
    """
    size, errors_mean_damage, problem = _probe_first_frames(path, errors_mean_damage=True)
    if size is None or not errors_mean_damage:
        size, _, problem = _probe_first_frames(path, errors_mean_damage=False)
        errors_mean_damage = False
    if size is None:
        raise UserError(
            f"footage: {path} cannot be read as a video ({problem or 'no frame decodes'}); "
            "give a video file or a folder of images"
        )
    with Video(path) as video:
        timing, frames = video.read_timing()
        return VideoSurvey(size, timing, frames, errors_mean_damage, video.streams, video.problem)


def _probe_first_frames(path: Path, *, errors_mean_damage: bool) -> tuple[tuple[int, int] | None, bool, str]:
    """Size of the first frame, whether most of the first packets decode, and the first error."""
    size, count = None, 0
    with Video(path, errors_mean_damage=errors_mean_damage) as video:
        for frame in video:
            size = size or frame.size
            count += 1
            if count == _PROBED_FRAMES:
                break
        return size, video.errors <= (count + video.errors) // 4, video.problem


def sample_pictures(path: Path, size: tuple[int, int], longest: int = 640) -> Iterator[Iterator[Image.Image]]:
    """Samples of the pictures of a video. The first has only key frames, which are fast; the second has all.

    Args:
        path: the video.
        size: width and height; pictures of another size in the file are left out.
        longest: pictures are made smaller, so that no side is longer than this.
    """
    scale = min(1.0, longest / max(size))
    small = (max(1, round(size[1] * scale)), max(1, round(size[0] * scale)))
    for key_frames_only in (True, False):
        with Video(path, errors_mean_damage=False, key_frames_only=key_frames_only) as video:
            yield (Image.fromarray(frame.to_picture(small)) for frame in video if frame.size == size)


def sample_stretches(
    path: Path, found: VideoSurvey, stretches: int = 12, length: int = 60, longest: int = 256
) -> Iterator[list[Image.Image]]:
    """Yield stretches of consecutive pictures, evenly spread over a video.

    Args:
        path: the video.
        found: what is known of the video.
        stretches: number of stretches of a long video. A video that is not much longer than all stretches is
            one stretch. If the video cannot be searched, its beginning is one stretch.
        length: pictures in a stretch.
        longest: pictures are made smaller, so that no side is longer than this.
    """
    scale = min(1.0, longest / max(found.size))
    small = (max(1, round(found.size[1] * scale)), max(1, round(found.size[0] * scale)))
    most = stretches * length * 4 // 3
    stamps = found.timing.stamps if found.timing else ()
    starts = np.linspace(0, max(0, len(stamps) - length), stretches).astype(int) if len(stamps) > most else ()
    with Video(path, errors_mean_damage=False) as video:

        def read(count: int) -> list[Image.Image]:
            pictures = (
                Image.fromarray(frame.to_picture(small)) for frame in video if frame.size == found.size
            )
            return list(itertools.islice(pictures, count))

        for start in starts:
            if not video.seek(float(stamps[start])):
                break
            if pictures := read(length):
                yield pictures
        else:
            if len(starts):
                return
        yield read(most)


def _open_container(path: Path) -> Any:
    options = {"format_whitelist": _READABLE_CONTAINERS, "protocol_whitelist": "file,pipe"}
    logs: list[str] = []
    try:
        with _capture_ffmpeg_errors(logs):
            return av.open(f"file:{path.resolve()}", options=options, metadata_errors="ignore")
    except av.error.FFmpegError as error:
        why = logs[0] if logs else _describe_ffmpeg_error(error)
        if "whitelist" in why:
            why = "its format is not supported"
        raise UserError(
            f"footage: {path} cannot be read as a video ({why}); give a video file or a folder of images"
        ) from error


@contextlib.contextmanager
def _capture_ffmpeg_errors(logs: list[str]) -> Iterator[None]:
    """Collect the errors that ffmpeg logs. They say more than its error codes.

    Do not use it while decoding: ffmpeg's threads would wait for Python's lock.
    """
    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    try:
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(False)  # else an error of one file may be missing for the next
        with av.logging.Capture() as found:
            try:
                yield
            finally:
                logs += [" ".join(text.split()) for _, _, text in found if text.strip()]
    finally:
        av.logging.set_skip_repeated(skip)
        av.logging.set_level(level)


def _choose_stream(container: Any, path: Path) -> tuple[Any, int]:
    """The video stream that players show (the default one, else the largest); and the number of streams."""
    still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    if not streams:
        raise UserError(f"footage: {path} has no video stream; give a video file or a folder of images")

    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise UserError(f"footage: {path} has no video in a known codec; convert it, for example to H.264")

    def rank(stream: Any) -> tuple[bool, int]:
        default = bool(stream.disposition & av.stream.Disposition.default)
        return default, stream.codec_context.width * stream.codec_context.height

    chosen = max(known, key=rank)
    if chosen.codec_context.name not in _READABLE_CODECS.split():
        raise UserError(
            f"footage: {path} has the codec {chosen.codec_context.name}, which is not supported; "
            "convert it, for example to H.264"
        )
    return chosen, len(streams)


def _choose_decoder(stream: Any) -> Any:
    """The decoder of the stream; for video with alpha, a decoder that supports alpha."""
    own = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and own.name in _ALPHA_DECODERS:
        try:
            other = av.CodecContext.create(_ALPHA_DECODERS[own.name], "r")
        except (av.error.FFmpegError, ValueError):  # this ffmpeg does not have it
            return own
        other.extradata = own.extradata
        return other
    return own


def _describe_ffmpeg_error(error: Exception) -> str:
    """The text of an ffmpeg error, in a few words."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
