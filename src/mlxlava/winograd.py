"""Convolutions with fewer multiplications than taps, for large batches on the CPU; channels last.

Two neighbouring results of a filter of r taps need r + 1 multiplications in place of 2 r (Winograd 1980; for
nets: Lavin & Gray 2016). Along both sides of a plane, a tile of 2×2 results of 2×2 taps takes 9 in place of
16, and of 3×3 taps 16 in place of 36. What is multiplied are matrices of one row a tile, which BLAS is good
at. Sums before and after are passes over memory, which cost about as much as half of the products;
float32 stays exact to about 1e-6.

Gradients by the taps are made in the same way, which is why they are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mlxlava.backend import mx

# --- two taps ---
#
# With pixels d and taps g, results y0 = d0 g0 + d1 g1 and y1 = d1 g0 + d2 g1 are
#
#     y0 = (d0 − d1) g0 + d1 (g0 + g1)        y1 = (d2 − d1) g1 + d1 (g0 + g1)
#
# an outer product for each of them, and a middle one for both. Along two sides that is outer and outer, outer
# and middle, and so on: four batched products. More of them, smaller, would keep both cores from being busy,
# since MLX looks only about a hundred operations ahead (docs/decisions.md, "Fewer products").


class _Four(NamedTuple):
    """What is outer or middle along rows, then along columns: each (2 or 1, 2 or 1, …)."""

    outer: mx.array
    outer_middle: mx.array
    middle_outer: mx.array
    middle: mx.array


def down(x: mx.array, taps: mx.array) -> mx.array:
    """4×4 convolution of stride 2, padded by one: (N, H, W, I) → (N, H/2, W/2, O).

    ``taps``: (2, 2, O, 4 I), for squares of 2×2 pixels (row, column, channel).
    """
    count, height, width, _ = x.shape
    sums = _sums(mx.contiguous(taps)[:, :, None, None])
    products = _multiply(_differences(padded(x, 4), 2, 1), _all_transposed(sums))
    return _woven(products, count, _half(height // 2))[:, : height // 2, : width // 2]


def up(y: mx.array, taps: mx.array) -> mx.array:
    """4×4 transposed convolution of stride 2, cropped by one: (N, H, W, O) → (N, 2H, 2W, I).

    Each pixel of the result's squares is from a filter of 2×2 taps of its own, of which those of the second
    row and column begin a pixel later.

    ``taps``: (2, 2, row of the square, column, O, I).
    """
    count, height, width, _ = y.shape
    products = _multiply(_differences(padded(y, 2), 1, 2), _sums(mx.contiguous(taps)))
    return _woven(products, count, _half(height))[:, : 2 * height, : 2 * width]


def down_by_weight(x: mx.array, y: mx.array) -> mx.array:
    """The gradient of :func:`down` by its taps, from that by its result: (2, 2, O, 4 I)."""
    sums = _sums(_in_tiles(y)[:, :, None, None])
    outer, outer_middle, middle_outer, middle = _multiply(
        _all_transposed(sums), _differences(padded(x, 4), 2, 1)
    )
    return (outer + outer_middle + (middle_outer + middle))[:, :, 0, 0]


def _differences(x: mx.array, block: int, filters: int) -> _Four:
    """What tiles of 3×3 pixels of ``x``, each a ``block`` of its pixels, have to be multiplied.

    Returns:
        Each (…, filters, filters, tiles, block² C), for filters that begin a pixel later each.
    """
    count, height, width, channels = x.shape
    edge = block + filters - 1
    down, across = (height - edge) // (2 * block), (width - edge) // (2 * block)
    line, pixel = width * channels, block * channels
    shape = (filters, filters, count, down, across, block, pixel)
    strides = (line, channels, height * line, 2 * block * line, 2 * pixel, line, 1)

    def see(rows: int, columns: int) -> mx.array:
        """The two outer ones of each tile's rows and columns, or the middle one."""
        start = (rows == 1) * block * line + (columns == 1) * pixel
        return mx.as_strided(x, (rows, columns, *shape), (2 * block * line, 2 * pixel, *strides), start)

    outer, outer_middle, middle_outer, middle = see(2, 2), see(2, 1), see(1, 2), see(1, 1)
    four = _Four(
        outer - outer_middle - middle_outer + middle, outer_middle - middle, middle_outer - middle, middle
    )
    return _Four(*(part.reshape(*part.shape[:4], -1, block * pixel) for part in four))


def _sums(g: mx.array) -> _Four:
    """(2, 2, …): the middle is the sum of both."""
    middle_outer = g[:1] + g[1:]
    return _Four(g, g[:, :1] + g[:, 1:], middle_outer, middle_outer[:, :1] + middle_outer[:, 1:])


def _all_transposed(four: _Four) -> _Four:
    return _Four(*(part.swapaxes(-1, -2) for part in four))


def _multiply(a: _Four, b: _Four) -> _Four:
    return _Four(*(x @ y for x, y in zip(a, b, strict=True)))


def _woven(four: _Four, count: int, down: int) -> mx.array:
    """Products (…, filters, filters, tiles, C) as planes: one pass that sums and puts in order."""
    filters, channels = four.middle.shape[2], four.middle.shape[-1]
    outer, outer_middle, middle_outer, middle = (
        # -> (N, down, row of the tile, of the filter, across, column of the tile, of the filter, C)
        part.reshape(*part.shape[:4], count, down, -1, channels).transpose(4, 5, 0, 2, 6, 1, 3, 7)
        for part in four
    )
    planes = outer + outer_middle + middle_outer + middle
    return planes.reshape(count, 2 * filters * down, -1, channels)


# --- three taps ---
#
# Along one side, with d the four pixels that a tile sees and g the taps, the two results are
#
#     after · ((weigh · g) * (before · d))
#
# and the gradient by g is the same three matrices, transposed.

Matrix = Sequence[Sequence[float]]
Grid = list[list[mx.array]]  # [row][column]

BEFORE: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
WEIGH: Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
AFTER: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))


def keep(x: mx.array, taps: mx.array) -> mx.array:
    """3×3 convolution, padded by one: (N, H, W, I), (3, 3, I, O) → (N, H, W, O)."""
    count, height, width, _ = x.shape
    y = _mix(AFTER, _products(_before(x), _mix(WEIGH, _grid(taps))))
    down = _half(height)
    lines = [mx.concatenate([part.reshape(count, down, -1, part.shape[-1]) for part in row], -1) for row in y]
    planes = mx.concatenate([line.reshape(count, down, -1) for line in lines], axis=-1)
    return planes.reshape(count, 2 * down, -1, taps.shape[-1])[:, :height, :width]


def keep_by_weight(x: mx.array, y: mx.array) -> mx.array:
    """The gradient of :func:`keep` by its taps, from that by its result: (3, 3, O, I)."""
    results = _mix(_transposed(AFTER), _grid(_in_tiles(y)))
    transposed = [[part.T for part in row] for row in results]
    taps = _mix(_transposed(WEIGH), _products(transposed, _before(x)))
    return mx.stack([mx.stack(row) for row in taps])


def tiles(x: mx.array) -> mx.array:
    """What each 2×2 results of a 3×3 convolution see: (N, H, W, C) → (4, 4, N, rows, columns, C), a view.

    The last results of an odd side see an empty edge.
    """
    x = padded(x, 2)
    count, height, width, channels = x.shape
    line = width * channels
    shape = (4, 4, count, height // 2 - 1, width // 2 - 1, channels)
    return mx.as_strided(x, shape, (line, channels, height * line, 2 * line, 2 * channels, 1))


def _before(x: mx.array) -> Grid:
    """4×4 of (tiles, I): what tiles of ``x`` have to be multiplied."""
    return [[part.reshape(-1, x.shape[-1]) for part in row] for row in _mix(BEFORE, _grid(tiles(x)))]


def _grid(array: mx.array) -> Grid:
    return [[array[i, j] for j in range(array.shape[1])] for i in range(len(array))]


def _products(a: Grid, b: Grid) -> Grid:
    return [[x @ y for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]


def _mix(matrix: Matrix, grid: Grid) -> Grid:
    """``matrix`` · grid · ``matrix``ᵀ, of arrays."""
    columns = [_combine(matrix, column) for column in zip(*grid, strict=True)]
    return [_combine(matrix, row) for row in zip(*columns, strict=True)]


def _transposed(matrix: Matrix) -> Matrix:
    return list(zip(*matrix, strict=True))


def _combine(matrix: Matrix, arrays: Sequence[mx.array]) -> list[mx.array]:
    """``matrix`` · arrays, without the passes that 0 and ±1 do not need."""
    sums = []
    for row in matrix:
        terms = [(c, array) for c, array in zip(row, arrays, strict=True) if c]
        (c, total), *others = sorted(terms, key=lambda term: term[0] < 0)
        total = total if c == 1 else c * total
        for c, array in others:
            term = array if abs(c) == 1 else abs(c) * array
            total = total + term if c > 0 else total - term
        sums.append(total)
    return sums


# --- both ---


def padded(x: mx.array, multiple: int = 1) -> mx.array:
    """Planes with an empty edge of a pixel, and more behind until sides without the edge are multiples."""
    _, height, width, _ = x.shape
    return mx.pad(x, [(0, 0), (1, 1 + -height % multiple), (1, 1 + -width % multiple), (0, 0)])


def _half(side: int) -> int:
    return -(-side // 2)


def _in_tiles(y: mx.array) -> mx.array:
    """(N, H, W, O) → (2, 2, tiles, O); tiles that reach beyond an odd side are empty there."""
    count, height, width, channels = y.shape
    if height % 2 or width % 2:
        y = mx.pad(y, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)])
    y = y.reshape(count, _half(height), 2, _half(width), 2, channels).transpose(2, 4, 0, 1, 3, 5)
    return y.reshape(2, 2, -1, channels)
