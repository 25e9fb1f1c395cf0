"""How fast footage is prepared, beside ffmpeg's own decoding of the same file, and how much memory it takes.

    python -m benchmarks.footage [--seconds S] [--size HxW] [VIDEO]

Without VIDEO, a 1920×1080 film of S seconds is made: H.264, 16 Mbit/s, moving and noisy, as of a phone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imageio_ffmpeg

from mlxlava.config import parse_size
from mlxlava.footage.prepare import prepare

REPEATS = 3


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("video", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--size", type=parse_size, default=(64, 64))
    parser.add_argument("--only-prepare", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only_prepare:
        print(json.dumps(_prepare(given.video, given.size)))
        return
    with tempfile.TemporaryDirectory() as folder:
        video = given.video or make_film(Path(folder) / "film.mp4", given.seconds)
        decoding, preparing = [], []
        for _ in range(REPEATS):  # in turns, since a shared machine's speed changes
            decoding.append(_decode(video))
            command = [sys.executable, "-m", "benchmarks.footage", str(video), "--only-prepare"]
            command += ["--size", "x".join(map(str, given.size))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            preparing.append(json.loads(done.stdout))
    ffmpeg = {name: min(row[name] for row in decoding) for name in decoding[0]}
    ours = {name: min(row[name] for row in preparing) for name in preparing[0]}
    ratios = {f"{name} ratio": round(ours[name] / ffmpeg[name], 2) for name in ("seconds", "cpu")}
    hour = round(3600 * 30 / ours["frames"] * ours["seconds"] / 60, 1)
    cores = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    print(
        json.dumps({"ffmpeg": ffmpeg, "prepare": ours, **ratios, "minutes an hour at 30 fps": hour, **cores})
    )


def make_film(path: Path, seconds: float) -> Path:
    """A film of 1920×1080, 30 frames a second."""
    source = f"testsrc2=s=1920x1080:r=30:d={seconds},noise=alls=8:allf=t"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "lavfi", "-i", source]
    coded = "-c:v libx264 -preset veryfast -b:v 16M -pix_fmt yuv420p"
    subprocess.run([*command, *coded.split(), str(path)], check=True)
    return path


def _decode(video: Path) -> dict[str, float]:
    """ffmpeg decodes to nowhere: time, and that of all cores together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video), "-f", "null", "-"]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 3), "cpu": round(cpu, 3)}


def _prepare(video: Path, size: tuple[int, int]) -> dict[str, float]:
    """The same figures of ``prepare``, without Python's start, and the peak of memory."""
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), time.process_time()
        frames = len(prepare([video], Path(folder) / "data", size=size).frames)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    rounded = {"seconds": round(seconds, 3), "cpu": round(cpu, 3)}
    return {**rounded, "frames": frames, "peak_mb": round(kilobytes / 1024, 1)}


if __name__ == "__main__":
    main()
