"""Features of clips, from which measures are computed: principal components, patches, colours, change, wax.

A clip is uint8 (L, H, W, 3), one frame for each learned step. The principal components are those of the
reference frames alone. So no network is downloaded, and the judged clips do not affect the features.
NumPy is used, and SciPy for connected pieces of wax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from mlxlava.evaluation.frames import evenly_spaced_indices, shrink
from mlxlava.evaluation.wax import WaxMask, count_blobs
from mlxlava.products import NumpyArray, matmul

FEATURE_COUNT = 64  # features of a frame
FRAMES_PER_CLIP = 16  # number of frames of a clip for features where all frames would be too many
PYRAMID_LEVELS = 2  # number of levels of the Laplacian pyramid, from the finest on
PATCH_DIRECTIONS = 48  # number of random directions on which patches are projected
_MAX_FRAMES_TO_FIT = 1024
_PATCH_SIDE = 7  # height and width of a patch (Karras 2018)
_PATCHES_PER_LEVEL = 64  # patches of a clip at each level
_FRAMES_WITH_PATCHES = 4  # frames of a clip that patches are taken from


class PCAFeatures:
    """Principal components of reference frames, scaled so that their total variance is one.

    Args:
        clips: reference clips, each uint8 (L, H, W, 3).

    Raises:
        ValueError: nothing changes in the reference.
    """

    def __init__(self, clips: Iterable[NumpyArray]) -> None:
        clips = list(clips)
        every = -(-sum(map(len, clips)) // _MAX_FRAMES_TO_FIT)
        x = np.concatenate([shrink(clip[::every]) for clip in clips])
        x = x.reshape(len(x), -1)
        self._mean = x.mean(0)
        x -= self._mean
        if float(np.abs(x).max()) < 1:
            raise ValueError("nothing changes")
        rank = max(2, min(FEATURE_COUNT, len(x) // 8))
        # Eigenvectors of the Gram matrix are used. It is smaller than the covariance, as frames are fewer
        # than pixels.
        values, vectors = np.linalg.eigh(matmul(x, x.T))
        values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
        values = np.maximum(values, 1e-6 * values[0])
        self._basis = matmul(x.T, vectors) / np.sqrt(values)  # (D, d), orthonormal
        self._scale = np.sqrt(values.sum() / len(x))

    def __call__(self, small: NumpyArray) -> NumpyArray:
        """Shrunk frames (L, h, w, 3) → features, float32 (L, d)."""
        features: NumpyArray = matmul(small.reshape(len(small), -1) - self._mean, self._basis) / self._scale
        return features


class FittedFeatures:
    """Computes features of clips after it was fitted to reference clips, each uint8 (L, H, W, 3).

    Attributes:
        pca: computes the principal components of frames.
        wax: tells which pixels are wax.

    Raises:
        ValueError: nothing changes in the reference.
    """

    def __init__(self, clips: Iterable[NumpyArray]) -> None:
        clips = list(clips)
        self.pca = PCAFeatures(clips)
        self.wax = WaxMask(clips)


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """The features of C clips.

    Attributes:
        features: principal components of each frame (C, L, d).
        energy: mean change from each frame to the next, in grey levels (C, L − 1).
        patches: Laplacian patches, projected on random directions (C, levels, patches, directions).
        colours: share of pixels at or below each grey level (C, 3, 256).
        wax: share of pixels that are wax, in each frame (C, L).
        blobs: number of connected pieces of wax in each frame (C, L).
        edges: quantiles of the steepness of wax edges (C, Q).
        clip_numbers: number of each clip (C,). The bootstrap may repeat a clip. By its number a clip is not
            compared with itself.
    """

    features: NumpyArray
    energy: NumpyArray
    patches: NumpyArray
    colours: NumpyArray
    wax: NumpyArray
    blobs: NumpyArray
    edges: NumpyArray
    clip_numbers: NumpyArray

    def select(self, clips: NumpyArray) -> ClipFeatures:
        """The features of the clips with the given indices. An index may be repeated."""
        fields = (getattr(self, field.name)[clips] for field in dataclasses.fields(self))
        return ClipFeatures(*fields)

    def __len__(self) -> int:
        return len(self.clip_numbers)


def extract_features(fitted: FittedFeatures, clips: Iterable[NumpyArray]) -> ClipFeatures:
    """Compute the features of clips, uint8 (L, H, W, 3) each. Only one clip is in memory at a time."""
    rows = []
    for number, clip in enumerate(clips):
        small = shrink(clip)
        energy = np.array([np.abs(late - early).mean() for early, late in pairwise(small)], np.float32)
        some = clip[evenly_spaced_indices(len(clip), min(FRAMES_PER_CLIP, len(clip)))]
        counts = [np.bincount(some[..., channel].ravel(), minlength=256) for channel in range(3)]
        colours = np.cumsum(counts, axis=1) / some[..., 0].size
        few = some[:: max(1, len(some) // _FRAMES_WITH_PATCHES)]
        wax = fitted.wax(small)
        rows.append(
            (
                fitted.pca(small),
                energy,
                _project_patches(few),
                colours,
                wax.mean((1, 2)),
                count_blobs(wax),
                fitted.wax.edge_steepness(few),
                number,
            )
        )
    return ClipFeatures(*(np.stack(column) for column in zip(*rows, strict=True)))


def _project_patches(frames: NumpyArray) -> NumpyArray:
    """Project patches of a Laplacian pyramid on random directions: (levels, P, directions).

    The places of the patches and the directions are the same for every clip.
    """
    rng = np.random.default_rng(0)
    frames = frames.astype(np.float32)
    found = []
    for _ in range(PYRAMID_LEVELS):
        count, height, width, channels = frames.shape
        smaller = frames.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        band = frames - smaller.repeat(2, axis=1).repeat(2, axis=2)
        side = min(_PATCH_SIDE, height, width)
        directions = rng.standard_normal((side * side * channels, PATCH_DIRECTIONS)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        at = rng.integers(0, (count, height - side + 1, width - side + 1), (_PATCHES_PER_LEVEL, 3))
        patches = np.stack([band[n, y : y + side, x : x + side].ravel() for n, y, x in at])
        found.append(matmul(patches, directions))
        frames = smaller
    return np.stack(found)
