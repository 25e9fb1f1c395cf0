// Convolutions for MLX's CPU back end, as operations of MLX's own kind; native.py builds and loads this.
//
// Tiles of neighbouring results take fewer products than taps (Winograd 1980; for nets: Lavin & Gray 2016):
// with `before`, `weigh` and `after` from polynomials through a few points (Toom 1963, Cook 1966), along both
// sides of a tile,
//
//     results = after ((weigh taps weigh^T) * (before seen before^T)) after^T
//
// and the gradient by the taps is weigh^T (... (after^T results after) * (before seen before^T)) weigh.
// What is multiplied are, for each number of a tile, matrices of one row a tile. All is done for so many
// tiles at a time that the matrices stay in the processor's cache: the sums before and after cost little there.
//
// Few channels leave little to save: then all taps are multiplied at once, before a result is summed (few are
// seen), or after (few are made).
//
// Planes are (N, H, W, C), weights (O, side, side, I) with any strides, all float32.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mx = mlx::core;

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int PANEL = 2 * LANES;  // columns that a product makes at once
constexpr int ROWS = 6;           // and rows: with these 12 registers hold the sums
constexpr int DEPTH = 256;        // terms of a sum at once: so much of a panel stays in the nearest cache
constexpr long BLOCK = 400000;    // floats of the matrices of a block of tiles, about
constexpr float SLOPE = 0.2f;     // of leaky ReLU
constexpr int FEW = 16;           // channels, below which all taps are multiplied at once

typedef float Vector __attribute__((vector_size(4 * LANES)));

long ceil_div(long a, long b) { return (a + b - 1) / b; }

Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

Vector load(const float* from, int count) {
  if (count >= LANES) return load(from);
  Vector v{};
  std::memcpy(&v, from, sizeof(float) * count);
  return v;
}

void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

void store(float* to, Vector v, int count) {
  if (count >= LANES) return store(to, v);
  std::memcpy(to, &v, sizeof(float) * count);
}

// Floats from one matrix to the next. Numbers of a tile are at the same place of each; an odd count of lines of
// the cache apart, they do not push one another out.
long apart(long size) { return (ceil_div(size, 16) | 1) * 16; }

int panels(int columns) { return ceil_div(columns, PANEL); }

// --- matrix products ---

// c (rows, PANEL) = or += a b, with b (depth, PANEL) in one piece. Of a, row r and term k is at
// a[r * stride + k], or at a[k * stride + r] if transposed.
template <int rows, bool transposed>
void multiply(const float* a, long stride, const float* b, int depth, float* c, long c_stride, bool add) {
  Vector sums[rows][2];
  for (int r = 0; r < rows; r++)
    for (int h = 0; h < 2; h++) sums[r][h] = add ? load(c + r * c_stride + h * LANES) : Vector{};
  for (int k = 0; k < depth; k++) {
    Vector left = load(b + k * PANEL), right = load(b + k * PANEL + LANES);
    for (int r = 0; r < rows; r++) {
      float factor = transposed ? a[k * stride + r] : a[r * stride + k];
      sums[r][0] += factor * left;
      sums[r][1] += factor * right;
    }
  }
  for (int r = 0; r < rows; r++)
    for (int h = 0; h < 2; h++) store(c + r * c_stride + h * LANES, sums[r][h]);
}

template <bool transposed>
void multiply(int rows, const float* a, long stride, const float* b, int depth, float* c, long c_stride,
              bool add) {
  switch (rows) {
    case 1: return multiply<1, transposed>(a, stride, b, depth, c, c_stride, add);
    case 2: return multiply<2, transposed>(a, stride, b, depth, c, c_stride, add);
    case 3: return multiply<3, transposed>(a, stride, b, depth, c, c_stride, add);
    case 4: return multiply<4, transposed>(a, stride, b, depth, c, c_stride, add);
    case 5: return multiply<5, transposed>(a, stride, b, depth, c, c_stride, add);
    default: return multiply<ROWS, transposed>(a, stride, b, depth, c, c_stride, add);
  }
}

// c (rows, panels of columns) = or += a b, with b as panels (depth, PANEL), each in one piece.
template <bool transposed>
void product(int rows, int columns, int depth, const float* a, long stride, const float* b, float* c, bool add) {
  long c_stride = panels(columns) * PANEL;
  for (int start = 0; start < depth; start += DEPTH) {
    int terms = std::min(DEPTH, depth - start);
    for (int panel = 0; panel < panels(columns); panel++)
      for (int row = 0; row < rows; row += ROWS)
        multiply<transposed>(std::min(ROWS, rows - row),
                             a + (transposed ? start * stride + row : row * stride + start), stride,
                             b + (long(panel) * depth + start) * PANEL, terms,
                             c + row * c_stride + panel * PANEL, c_stride, add || start);
  }
}

// --- tiles ---

// results · results of taps · taps each, from so many points; the last one is infinity.
template <int results_, int taps_>
struct Form {
  static constexpr int results = results_, taps = taps_, points = results + taps - 1;
  float before[points][points]{}, weigh[points][taps]{}, after[results][points]{};

  constexpr Form() {
    constexpr double at[] = {0, 1, -1, taps == 2 ? -0.5 : 2, -2};
    for (int i = 0; i < points; i++) {
      bool infinite = i == points - 1;
      double scale = 1, polynomial[points]{1};
      for (int other = 0, degree = 0; other < points - 1; other++) {
        if (other == i) continue;
        scale *= infinite ? 1 : at[i] - at[other];
        degree++;
        for (int d = degree; d >= 0; d--)
          polynomial[d] = (d ? polynomial[d - 1] : 0) - at[other] * (d < degree ? polynomial[d] : 0);
      }
      double power = 1;
      for (int d = 0; d < points; d++) {
        before[i][d] = polynomial[d];
        if (d < taps) weigh[i][d] = infinite ? d == taps - 1 : power / scale;
        if (d < results) after[d][i] = infinite ? d == results - 1 : power;
        power *= infinite ? 0 : at[i];
      }
    }
  }
};

enum Which { BEFORE, WEIGH, AFTER };

template <class F, Which which, bool transposed>
struct Side {
  static constexpr F form{};
  static constexpr int tall = which == AFTER ? F::results : F::points;
  static constexpr int wide = which == WEIGH ? F::taps : F::points;
  static constexpr int out = transposed ? wide : tall, in = transposed ? tall : wide;

  static constexpr float at(int i, int j) {
    int row = transposed ? j : i, column = transposed ? i : j;
    return which == BEFORE ? form.before[row][column]
         : which == WEIGH ? form.weigh[row][column]
                          : form.after[row][column];
  }

  // The matrix times numbers that lie so far apart.
  static void apply(const Vector* from, int from_step, Vector* to, int to_step) {
#pragma GCC unroll 8
    for (int i = 0; i < out; i++) {
      Vector sum{};
      bool first = true;
#pragma GCC unroll 8
      for (int j = 0; j < in; j++) {
        float c = at(i, j);
        if (c == 0) continue;
        sum = first ? (c == 1 ? from[j * from_step] : c * from[j * from_step]) : sum + c * from[j * from_step];
        first = false;
      }
      to[i * to_step] = sum;
    }
  }

  // Along both sides: (in, in) -> (out, out).
  static void apply(const Vector (&from)[in][in], Vector (&to)[out][out]) {
    Vector half[out][in];
#pragma GCC unroll 8
    for (int j = 0; j < in; j++) apply(&from[0][j], in, &half[0][j], in);
#pragma GCC unroll 8
    for (int i = 0; i < out; i++) apply(&half[i][0], 1, &to[i][0], 1);
  }
};

// How results see planes: result (y, x) sees blocks of `block` · `block` pixels, the first of them at pixel
// (y * step + top, x * step + left), one for each tap, `step` pixels apart. What lies outside is empty.
struct Planes {
  const float* data;
  int height, width, channels, block, step, top, left;

  int depth() const { return block * block * channels; }
};

// Results, every `step` pixels of planes that begin at `data`. With a bias they are activated; then a result is a
// square of pixels, each of a quarter of its channels (pixel shuffle), and `step` is 2.
struct Results {
  float* data;
  int height, width, channels, step;
  const float* bias = nullptr;

  int columns() const { return panels(channels) * PANEL; }

  // Of one of the pixels that a result is.
  int depth() const { return bias ? channels / 4 : channels; }

  float* pixel(int plane, int y, int x) const {
    return data + ((long(plane) * height * step + y * step) * width * step + x * step) * depth();
  }
};

// Taps of a kernel: tap (i, j) of pixel (y, x) of a block, channel c in, n out, is at data[i * row +
// j * column + y * block_row + x * block_column + c * in + n * out].
struct Taps {
  const float* data;
  long row, column, block_row, block_column, in, out;

  // The first tap of number `k` of what a block holds.
  const float* at(int k, int block, int channels) const {
    int pixel = k / channels;
    return data + pixel / block * block_row + pixel % block * block_column + k % channels * in;
  }
};

std::vector<float>& scratch(int which, size_t size) {
  thread_local std::vector<float> buffers[4];
  auto& buffer = buffers[which];
  if (buffer.size() < size) buffer = std::vector<float>(size);
  return buffer;
}

float* matrix(int which, size_t size) {
  auto at = reinterpret_cast<uintptr_t>(scratch(which, size + 16).data());
  return reinterpret_cast<float*>((at + 63) / 64 * 64);
}

template <class F>
struct Tiles {
  static constexpr int points = F::points * F::points;
  int down, across;

  Tiles(int height, int width) : down(ceil_div(height, F::results)), across(ceil_div(width, F::results)) {}

  struct Place {
    int plane, top, left;  // of the tile's results
  };

  Place place(int index) const {
    return {index / (down * across), index / across % down * F::results, index % across * F::results};
  }

  // As many as keep their matrices in the cache.
  int block(int count, int depth, int columns) const {
    long fit = BLOCK / (points * long(depth + columns));
    return std::min<long>(long(count) * down * across, std::max<long>(fit / ROWS, 8) * ROWS);
  }

  // What tile `index` of all planes sees, times `before` on both sides: row `row` of points matrices.
  void see(const Planes& x, int index, float* to, long point, int row) const {
    auto [plane, top, left] = place(index);
    int side = (F::points - 1) * x.step + x.block;
    top = top * x.step + x.top, left = left * x.step + x.left;
    const float* from = x.data + long(plane) * x.height * x.width * x.channels;
    long line = long(x.width) * x.channels;
    if (top < 0 || left < 0 || top + side > x.height || left + side > x.width) {
      float* window = matrix(3, long(side) * side * x.channels + LANES);
      int from_x = std::max(left, 0), to_x = std::min(left + side, x.width);
      std::memset(window, 0, sizeof(float) * side * side * x.channels);
      for (int y = std::max(top, 0); y < std::min(top + side, x.height); y++)
        if (from_x < to_x)
          std::memcpy(window + (long(y - top) * side + from_x - left) * x.channels,
                      from + y * line + from_x * x.channels, sizeof(float) * (to_x - from_x) * x.channels);
      from = window;
      line = long(side) * x.channels;
    } else {
      from += top * line + left * x.channels;
    }
    int wide = x.block * x.channels;
    to += long(row) * x.depth();
    if (F::points == 1) {
      for (int y = 0; y < x.block; y++) std::memcpy(to + y * wide, from + y * line, sizeof(float) * wide);
      return;
    }
    for (int y = 0; y < x.block; y++)
      for (int c = 0; c < wide; c += LANES) {
        Vector seen[F::points][F::points], out[F::points][F::points];
        for (int i = 0; i < F::points; i++)
          for (int j = 0; j < F::points; j++)
            seen[i][j] = load(from + (i * x.step + y) * line + j * x.step * x.channels + c, wide - c);
        Side<F, BEFORE, false>::apply(seen, out);
        for (int i = 0; i < F::points; i++)
          for (int j = 0; j < F::points; j++)
            store(to + (i * F::points + j) * point + y * wide + c, out[i][j], wide - c);
      }
  }
};

// What `weigh` makes of taps, in floats.
template <class F>
size_t weighed_size(int depth, int columns) {
  return size_t(F::points) * F::points * depth * panels(columns) * PANEL;
}

// Taps times `weigh` on both sides, each of points matrices as panels.
template <class F>
void weigh(const Taps& taps, int block, int channels, int columns, float* to) {
  int depth = block * block * channels;
  long point = long(depth) * panels(columns) * PANEL;
  for (int panel = 0; panel < panels(columns); panel++)
    for (int k = 0; k < depth; k++)
      for (int half = 0; half < PANEL; half += LANES) {
        int first = panel * PANEL + half, many = std::clamp(columns - first, 0, LANES);
        const float* from = taps.at(k, block, channels) + first * taps.out;
        Vector seen[F::taps][F::taps], out[F::points][F::points];
        for (int i = 0; i < F::taps; i++)
          for (int j = 0; j < F::taps; j++) {
            alignas(64) float values[LANES]{};
            for (int n = 0; n < many; n++) values[n] = from[i * taps.row + j * taps.column + n * taps.out];
            seen[i][j] = load(values);
          }
        Side<F, WEIGH, false>::apply(seen, out);
        float* at = to + (long(panel) * depth + k) * PANEL + half;
        for (int i = 0; i < F::points; i++)
          for (int j = 0; j < F::points; j++) store(at + (i * F::points + j) * point, out[i][j]);
      }
}

template <class F>
void convolve(const Planes& x, const float* weights, int count, const Results& y) {
  Tiles<F> tiles(y.height, y.width);
  int depth = x.depth(), columns = y.channels, wide = y.columns(), points = tiles.points;
  int block = tiles.block(count, depth, wide), all = count * tiles.down * tiles.across;
  bool straight = points == 1 && y.step == 1 && columns == wide;  // products are results
  int depth_of_pixel = y.depth();
  long of_seen = apart(long(block) * depth), of_made = apart(long(block) * wide);
  float* seen = matrix(1, points * of_seen);
  float* made = straight ? y.data : matrix(2, points * of_made + LANES);
  for (int start = 0; start < all; start += block) {
    int many = std::min(block, all - start);
    for (int t = 0; t < many; t++) tiles.see(x, start + t, seen, of_seen, t);
    for (int p = 0; p < points; p++)
      product<false>(many, columns, depth, seen + p * of_seen, depth, weights + long(p) * depth * wide,
                     made + p * of_made, false);
    if (straight) {
      made += long(many) * wide;
      continue;
    }
    for (int t = 0; t < many; t++) {
      auto [plane, top, left] = tiles.place(start + t);
      int rows = std::min(F::results, y.height - top), across = std::min(F::results, y.width - left);
      for (int first = 0; first < columns; first += depth_of_pixel) {
        int quarter = first / depth_of_pixel;
        long corner = (quarter / 2 * long(y.width) * y.step + quarter % 2) * depth_of_pixel;
        for (int c = 0; c < depth_of_pixel; c += LANES) {
          Vector from[F::points][F::points], to[F::results][F::results];
          for (int i = 0; i < F::points; i++)
            for (int j = 0; j < F::points; j++)
              from[i][j] = load(made + (i * F::points + j) * of_made + long(t) * wide + first + c);
          Side<F, AFTER, false>::apply(from, to);
          for (int i = 0; i < rows; i++)
            for (int j = 0; j < across; j++) {
              Vector v = to[i][j];
              if (y.bias) {
                v += load(y.bias + first + c, depth_of_pixel - c);
                v = v > 0 ? v : SLOPE * v;
              }
              store(y.pixel(plane, top + i, left + j) + corner + c, v, depth_of_pixel - c);
            }
        }
      }
    }
  }
}

// The gradient of `convolve` by its taps, which are written to.
template <class F>
void learn(const Planes& x, const Results& y, int count, const Taps& taps) {
  Tiles<F> tiles(y.height, y.width);
  int depth = x.depth(), columns = y.channels, wide = y.columns(), points = tiles.points;
  int block = tiles.block(count, depth, wide), all = count * tiles.down * tiles.across;
  long of_seen = apart(long(block) * depth), of_made = apart(long(block) * wide);
  float* sums = matrix(0, size_t(points) * depth * wide);
  float* seen = matrix(1, points * of_seen);
  float* made = matrix(2, points * of_made);
  for (int start = 0; start < all; start += block) {
    int many = std::min(block, all - start);
    for (int t = 0; t < many; t++) {
      tiles.see(x, start + t, seen, of_seen, t);
      auto [plane, top, left] = tiles.place(start + t);
      for (int c = 0; c < wide; c += LANES) {
        Vector from[F::results][F::results]{}, to[F::points][F::points];
        for (int i = 0; i < F::results && top + i < y.height; i++)
          for (int j = 0; j < F::results && left + j < y.width; j++)
            if (c < columns) from[i][j] = load(y.pixel(plane, top + i, left + j) + c, columns - c);
        Side<F, AFTER, true>::apply(from, to);
        float* at = made + (long(c / PANEL) * many + t) * PANEL + c % PANEL;
        for (int i = 0; i < F::points; i++)
          for (int j = 0; j < F::points; j++) store(at + (i * F::points + j) * of_made, to[i][j]);
      }
    }
    for (int p = 0; p < points; p++)
      product<true>(depth, columns, many, seen + p * of_seen, depth, made + p * of_made,
                    sums + long(p) * depth * wide, start > 0);
  }
  for (int k = 0; k < depth; k++) {
    float* at = const_cast<float*>(taps.at(k, x.block, x.channels));
    for (int n = 0; n < columns; n += LANES) {
      Vector from[F::points][F::points], to[F::taps][F::taps];
      for (int i = 0; i < F::points; i++)
        for (int j = 0; j < F::points; j++)
          from[i][j] = load(sums + (long(i * F::points + j) * depth + k) * wide + n);
      Side<F, WEIGH, true>::apply(from, to);
      for (int i = 0; i < F::taps; i++)
        for (int j = 0; j < F::taps; j++)
          for (int l = 0; l < std::min(LANES, columns - n); l++)
            at[i * taps.row + j * taps.column + (n + l) * taps.out] = to[i][j][l];
    }
  }
}

// --- few results: each pixel times all taps, and added to all pixels that see it ---

// Taps as panels: columns are (row, column, channel of the result).
void gather(const Taps& taps, int side, int channels, int outputs, float* to) {
  int columns = side * side * outputs;
  for (int panel = 0; panel < panels(columns); panel++)
    for (int k = 0; k < channels; k++)
      for (int l = 0; l < PANEL; l++) {
        int n = panel * PANEL + l, o = n % outputs, j = n / outputs % side, i = n / outputs / side;
        *to++ = n < columns ? taps.data[i * taps.row + j * taps.column + k * taps.in + o * taps.out] : 0;
      }
}

// Pixel (y, x) of `from` adds to a square of the results whose corner is at (y * step - 1, x * step - 1).
void spread(const Planes& x, int side, int step, const float* weights, int count, const Results& y) {
  int across = side * y.channels, columns = side * across, wide = panels(columns) * PANEL;
  int vectors = ceil_div(across, LANES), stripes = ceil_div(vectors * LANES, step * y.channels);
  int lines = std::max<long>(1, BLOCK / 4 / (long(x.width) * wide)), edged = (y.width + 2) * y.channels;
  float* made = matrix(1, long(lines) * x.width * wide + LANES);
  float* sums = matrix(2, long(y.height + 2) * edged + LANES);
  Vector last{};
  for (int l = 0; l < across - (vectors - 1) * LANES; l++) last[l] = 1;
  for (int plane = 0; plane < count; plane++) {
    std::memset(sums, 0, sizeof(float) * (y.height + 2) * edged);
    const float* from = x.data + long(plane) * x.height * x.width * x.channels;
    for (int top = 0; top < x.height; top += lines) {
      int many = std::min(lines, x.height - top);
      product<false>(many * x.width, columns, x.channels, from + long(top) * x.width * x.channels, x.channels, weights, made,
                     false);
      for (int line = 0; line < many; line++)
        for (int i = 0; i < side; i++) {
          float* to = sums + long((top + line) * step + i) * edged;
          const float* taps = made + long(line) * x.width * wide + i * across;
          // Neighbours one after the other would wait for one another's sums.
          for (int first = 0; first < stripes; first++)
            for (int pixel = first; pixel < x.width; pixel += stripes)
              for (int v = 0; v < vectors; v++) {
                float* at = to + pixel * step * y.channels + v * LANES;
                Vector more = load(taps + long(pixel) * wide + v * LANES);
                store(at, load(at) + (v == vectors - 1 ? more * last : more));
              }
        }
    }
    for (int row = 0; row < y.height; row++)
      std::memcpy(y.pixel(plane, row, 0), sums + (row + 1) * edged + y.channels,
                  sizeof(float) * y.width * y.channels);
  }
}

// --- operations ---

enum Kind { DOWN, UP, KEEP, GROW };
enum Way { SMALL, LARGE, ALL_BEFORE, ALL_AFTER };  // tiles of 2·2 or of 4·4 results, or few channels

bool keeps(Kind kind) { return kind == KEEP || kind == GROW; }
int taps_of(Kind kind) { return keeps(kind) ? 3 : 2; }
int side_of(Kind kind) { return keeps(kind) ? 3 : 4; }
int step_of(Kind kind) { return keeps(kind) ? 1 : 2; }

// The way that takes the least time, for planes with such results.
Way choose(Kind kind, int count, int height, int width, int inputs, int outputs) {
  if ((kind == UP || kind == KEEP) && outputs < std::min(FEW, inputs)) return ALL_AFTER;
  if (kind != UP && inputs < FEW) return ALL_BEFORE;
  auto cost = [&](int results) {
    int points = results + taps_of(kind) - 1;
    // To read weights takes as long as some rows of a product.
    return points * points * (ceil_div(height, results) * ceil_div(width, results) * count + 8);
  };
  return cost(4) < cost(2) ? LARGE : SMALL;
}

template <class Act>
void with_form(Kind kind, Way way, Act act) {
  if (way == ALL_BEFORE) act(Form<1, 1>());
  else if (keeps(kind) && way == SMALL) act(Form<2, 3>());
  else if (keeps(kind)) act(Form<4, 3>());
  else if (way == SMALL) act(Form<2, 2>());
  else act(Form<4, 2>());
}

// Tap (i, j) of each of the four pixels (p, q) of a square of UP's results, which see a pixel later each.
Taps taps_of_pixel(Taps all, int p, int q) {
  return {all.data + (3 - p) * all.row + (3 - q) * all.column, -2 * all.row, -2 * all.column, 0, 0, all.in, all.out};
}

class Operation : public mx::UnaryPrimitive {
 public:
  Operation(mx::Stream stream, Kind kind, Way way) : UnaryPrimitive(stream), kind(kind), way(way) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    std::vector<mx::array> kept;
    for (auto& input : inputs) kept.push_back(mx::array::unsafe_weak_copy(input));
    mx::cpu::get_command_encoder(stream()).dispatch(
        [work = work(), kept, out = mx::array::unsafe_weak_copy(out)]() mutable { work(kept, out); });
  }

  void eval_gpu(const std::vector<mx::array>&, mx::array&) override {
    throw std::runtime_error("mlxlava's convolutions are for the CPU.");
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    auto& operation = static_cast<const Operation&>(other);
    return kind == operation.kind && way == operation.way;
  }

 protected:
  using Work = std::function<void(const std::vector<mx::array>&, mx::array&)>;
  virtual Work work() const = 0;

  const Kind kind;
  const Way way;
};

Planes planes(const mx::array& x, int block, int step, int top, int left) {
  return {x.data<float>(), x.shape(1), x.shape(2), x.shape(3), block, step, top, left};
}

Results results(const mx::array& y) {
  return {const_cast<float*>(y.data<float>()), y.shape(1), y.shape(2), y.shape(3), 1};
}

// Weight -> what `Convolve` takes.
class Weigh : public Operation {
  using Operation::Operation;

  const char* name() const override { return "Weigh"; }

  Work work() const override {
    return [kind = kind, way = way](const std::vector<mx::array>& given, mx::array& out) {
      const mx::array& weight = given[0];
      const auto& s = weight.strides();
      const float* data = weight.data<float>();
      float* to = out.data<float>();
      int side = side_of(kind), step = step_of(kind);
      if (kind == UP) {
        Taps all{data, s[1], s[2], 0, 0, s[0], s[3]};
        int inputs = weight.shape(0), outputs = weight.shape(3);
        if (way == ALL_AFTER) return gather(all, side, inputs, outputs, to);
        for (int p = 0; p < 2; p++)
          for (int q = 0; q < 2; q++)
            with_form(kind, way, [&](auto form) {
              weigh<decltype(form)>(taps_of_pixel(all, p, q), 1, inputs, outputs, to);
              to += weighed_size<decltype(form)>(inputs, outputs);
            });
        return;
      }
      int inputs = weight.shape(3), outputs = weight.shape(0);
      if (way == ALL_AFTER)  // seen from the other side, taps are turned about
        return gather({data + 2 * s[1] + 2 * s[2], -s[1], -s[2], 0, 0, s[3], s[0]}, side, inputs, outputs, to);
      Taps taps{data, step * s[1], step * s[2], s[1], s[2], s[3], s[0]};
      with_form(kind, way, [&](auto form) {
        weigh<decltype(form)>(taps, way == ALL_BEFORE ? side : step, inputs, outputs, to);
      });
    };
  }
};

// Planes, `Weigh`'s, of GROW also the bias -> planes.
class Convolve : public Operation {
  using Operation::Operation;

  const char* name() const override { return "Convolve"; }

  Work work() const override {
    return [kind = kind, way = way](const std::vector<mx::array>& given, mx::array& out) {
      const mx::array& x = given[0];
      const float* weights = given[1].data<float>();
      int count = x.shape(0), side = side_of(kind), step = step_of(kind);
      Results y = results(out);
      if (kind == GROW) y = {y.data, x.shape(1), x.shape(2), 4 * y.channels, 2, given[2].data<float>()};
      if (way == ALL_AFTER) return spread(planes(x, 1, 1, 0, 0), side, step, weights, count, y);
      if (kind != UP) {
        Planes seen = planes(x, way == ALL_BEFORE ? side : step, step, -1, -1);
        return with_form(kind, way, [&](auto form) { convolve<decltype(form)>(seen, weights, count, y); });
      }
      for (int p = 0; p < 2; p++)
        for (int q = 0; q < 2; q++)
          with_form(kind, way, [&](auto form) {
            Results of_pixel{y.pixel(0, p, q), x.shape(1), x.shape(2), y.channels, 2};
            convolve<decltype(form)>(planes(x, 1, 1, p - 1, q - 1), weights, count, of_pixel);
            weights += weighed_size<decltype(form)>(x.shape(3), y.channels);
          });
    };
  }
};

// Planes of DOWN or KEEP, gradient by their results -> gradient by the weight.
class Learn : public Operation {
  using Operation::Operation;

  const char* name() const override { return "Learn"; }

  Work work() const override {
    return [kind = kind, way = way](const std::vector<mx::array>& given, mx::array& out) {
      const mx::array &x = given[0], &y = given[1];
      const auto& s = out.strides();
      float* data = out.data<float>();
      int count = x.shape(0), side = side_of(kind), step = step_of(kind);
      if (way == ALL_AFTER)
        return learn<Form<1, 1>>(planes(y, side, 1, -1, -1), results(x), count,
                                 {data + 2 * s[1] + 2 * s[2], 0, 0, -s[1], -s[2], s[0], s[3]});
      Taps taps{data, step * s[1], step * s[2], s[1], s[2], s[3], s[0]};
      Planes seen = planes(x, way == ALL_BEFORE ? side : step, step, -1, -1);
      with_form(kind, way, [&](auto form) { learn<decltype(form)>(seen, results(y), count, taps); });
    };
  }
};

// `out` = `make()`; what went wrong, or nothing.
template <class Make>
const char* guarded(mx::array* out, Make make) {
  static thread_local std::string error;
  try {
    *out = make();
    return nullptr;
  } catch (const std::exception& caught) {
    error = caught.what();
    return error.c_str();
  }
}

template <class Op>
mx::array operation(int kind, int way, mx::Shape shape, std::vector<mx::array> inputs) {
  return {std::move(shape), mx::float32, std::make_shared<Op>(mx::to_stream({}), Kind(kind), Way(way)),
          std::move(inputs)};
}

}  // namespace

// What native.py calls. `outputs` are the channels of the results.

extern "C" int mlxlava_way(int kind, int count, int height, int width, int inputs, int outputs) {
  return choose(Kind(kind), count, height, width, inputs, outputs);
}

extern "C" const char* mlxlava_weigh(int kind, int way, const mx::array* weight, mx::array* out) {
  return guarded(out, [&] {
    int inputs = weight->shape(kind == UP ? 0 : 3), outputs = weight->shape(kind == UP ? 3 : 0);
    int side = side_of(Kind(kind)), block = way == ALL_BEFORE ? side : kind == DOWN ? 2 : 1;
    size_t size = 0;
    if (way == ALL_AFTER) size = size_t(inputs) * panels(side * side * outputs) * PANEL;
    else with_form(Kind(kind), Way(way), [&](auto form) {
      size = weighed_size<decltype(form)>(block * block * inputs, outputs) * (kind == UP ? 4 : 1);
    });
    return operation<Weigh>(kind, way, {int(size)}, {*weight});
  });
}

extern "C" const char* mlxlava_convolve(int kind, int way, const mx::array* x, const mx::array* weighed, int outputs,
                                        const mx::array* bias, mx::array* out) {
  return guarded(out, [&] {
    int count = x->shape(0), height = x->shape(1), width = x->shape(2);
    if (kind == DOWN) height /= 2, width /= 2;
    if (kind == UP) height *= 2, width *= 2;
    std::vector<mx::array> inputs{mx::contiguous(*x), *weighed};
    if (kind == GROW) height *= 2, width *= 2, outputs /= 4, inputs.push_back(mx::contiguous(*bias));
    return operation<Convolve>(kind, way, {count, height, width, outputs}, std::move(inputs));
  });
}

extern "C" const char* mlxlava_learn(int kind, int way, const mx::array* x, const mx::array* y, mx::array* out) {
  return guarded(out, [&] {
    int side = side_of(Kind(kind));
    return operation<Learn>(kind, way, {y->shape(3), side, side, x->shape(3)},
                            {mx::contiguous(*x), mx::contiguous(*y)});
  });
}
