"""What measures are computed from: principal components, patches, colours and change of clips. NumPy only.

A clip is uint8 (L, H, W, 3), one frame for each learned step. The principal components are those of the
reference frames alone. So no network has to be downloaded, and the judged clips do not affect the features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from mlxlava.evaluation.frames import Array, evenly_spaced, shrink
from mlxlava.evaluation.wax import WaxMask, count_blobs
from mlxlava.products import matmul

RANK = 64  # features of a frame
FRAMES = 16  # frames of a clip that are used where all would be too many
LEVELS = 2  # finest levels of the Laplacian pyramid
DIRECTIONS = 48  # random directions that patches are projected on
_FIT_FRAMES = 1024
_PATCH = 7  # side of a patch (Karras 2018)
_PATCHES = 64  # of each clip and level
_PATCH_FRAMES = 4  # frames of a clip that patches are taken from


class PCAFeatures:
    """Principal components of reference frames, scaled so that their total variance is one.

    Args:
        clips: the reference, each uint8 (L, H, W, 3).

    Raises:
        ValueError: nothing changes in the reference.
    """

    def __init__(self, clips: Iterable[Array]) -> None:
        clips = list(clips)
        every = -(-sum(map(len, clips)) // _FIT_FRAMES)
        x = np.concatenate([shrink(clip[::every]) for clip in clips])
        x = x.reshape(len(x), -1)
        self._mean = x.mean(0)
        x -= self._mean
        if float(np.abs(x).max()) < 1:
            raise ValueError("nothing changes")
        rank = max(2, min(RANK, len(x) // 8))
        # Eigenvectors of the Gram matrix, which is smaller than the covariance: fewer frames than pixels.
        values, vectors = np.linalg.eigh(matmul(x, x.T))
        values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
        values = np.maximum(values, 1e-6 * values[0])
        self._basis = matmul(x.T, vectors) / np.sqrt(values)  # (D, d), orthonormal
        self._scale = np.sqrt(values.sum() / len(x))

    def __call__(self, small: Array) -> Array:
        """Shrunk frames (L, h, w, 3) → features, float32 (L, d)."""
        features: Array = matmul(small.reshape(len(small), -1) - self._mean, self._basis) / self._scale
        return features


class FittedFeatures:
    """What features are, fitted on reference clips alone: each uint8 (L, H, W, 3).

    Attributes:
        pca: principal components of frames.
        wax: which pixels are wax.

    Raises:
        ValueError: nothing changes in the reference.
    """

    def __init__(self, clips: Iterable[Array]) -> None:
        clips = list(clips)
        self.pca = PCAFeatures(clips)
        self.wax = WaxMask(clips)


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """What measures are computed from, for C clips.

    Attributes:
        features: principal components of each frame (C, L, d).
        energy: mean change of a frame to the next, grey levels (C, L − 1).
        patches: Laplacian patches along random directions (C, levels, patches, directions).
        colours: share of pixels at or below each grey level (C, 3, 256).
        wax: share of pixels that are wax, in each frame (C, L).
        blobs: connected pieces of wax in each frame (C, L).
        edges: how steep edges of wax are, quantiles (C, Q).
        names: which clip each is (C,). The bootstrap repeats clips; the names keep a clip from being compared
            with itself.
    """

    features: Array
    energy: Array
    patches: Array
    colours: Array
    wax: Array
    blobs: Array
    edges: Array
    names: Array

    def take(self, clips: Array) -> ClipFeatures:
        """The features of some of the clips, by index. An index may be repeated."""
        fields = (getattr(self, field.name)[clips] for field in dataclasses.fields(self))
        return ClipFeatures(*fields)

    def __len__(self) -> int:
        return len(self.names)


def extract_features(fitted: FittedFeatures, clips: Iterable[Array]) -> ClipFeatures:
    """The features of clips, uint8 (L, H, W, 3) each. Only one clip is in memory at a time."""
    rows = []
    for name, clip in enumerate(clips):
        small = shrink(clip)
        energy = np.array([np.abs(late - early).mean() for early, late in pairwise(small)], np.float32)
        some = clip[evenly_spaced(len(clip), min(FRAMES, len(clip)))]
        counts = [np.bincount(some[..., channel].ravel(), minlength=256) for channel in range(3)]
        colours = np.cumsum(counts, axis=1) / some[..., 0].size
        few = some[:: max(1, len(some) // _PATCH_FRAMES)]
        wax = fitted.wax(small)
        rows.append(
            (
                fitted.pca(small),
                energy,
                _patches(few),
                colours,
                wax.mean((1, 2)),
                count_blobs(wax),
                fitted.wax.steepness(few),
                name,
            )
        )
    return ClipFeatures(*(np.stack(column) for column in zip(*rows, strict=True)))


def _patches(frames: Array) -> Array:
    """Patches of a Laplacian pyramid, projected on random directions (levels, P, directions).

    Places and directions are the same for every clip.
    """
    rng = np.random.default_rng(0)
    frames = frames.astype(np.float32)
    found = []
    for _ in range(LEVELS):
        count, height, width, channels = frames.shape
        smaller = frames.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        band = frames - smaller.repeat(2, axis=1).repeat(2, axis=2)
        side = min(_PATCH, height, width)
        directions = rng.standard_normal((side * side * channels, DIRECTIONS)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        at = rng.integers(0, (count, height - side + 1, width - side + 1), (_PATCHES, 3))
        patches = np.stack([band[n, y : y + side, x : x + side].ravel() for n, y, x in at])
        found.append(matmul(patches, directions))
        frames = smaller
    return np.stack(found)
