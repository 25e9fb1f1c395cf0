// Convolutions for MLX's CPU back end, as operations of MLX's own kind; native.py builds and loads this.
//
// Tiles of neighbouring results take fewer products than taps (Winograd 1980; for nets: Lavin & Gray 2016):
// with the transforms `input`, `filter` and `output` from polynomials through a few points (Toom 1963, Cook 1966;
// B^T, G and A^T of Lavin & Gray), along both
// sides of a tile,
//
//     results = output ((filter taps filter^T) * (input seen input^T)) output^T
//
// and the gradient with respect to the taps is
//
//     filter^T ((output^T results output) * (input seen input^T)) filter
//
// What is multiplied are, for each number of a tile, matrices of one row a tile. All is done for so many
// tiles at a time that the matrices stay in the processor's cache: the transforms cost little there.
//
// Few channels leave little to save. Then there is one plain product: of patches with all taps where few channels
// are seen (im2col), or of pixels with all taps, whose results are added up, where few are made (col2im).
//
// Feature maps are (N, H, W, C), weights (O, side, side, I) with any strides, all float32.

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
  float input[points][points]{}, filter[points][taps]{}, output[results][points]{};

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
        input[i][d] = polynomial[d];
        if (d < taps) filter[i][d] = infinite ? d == taps - 1 : power / scale;
        if (d < results) output[d][i] = infinite ? d == results - 1 : power;
        power *= infinite ? 0 : at[i];
      }
    }
  }
};

enum Which { INPUT, FILTER, OUTPUT };

template <class F, Which which, bool transposed>
struct Side {
  static constexpr F form{};
  static constexpr int tall = which == OUTPUT ? F::results : F::points;
  static constexpr int wide = which == FILTER ? F::taps : F::points;
  static constexpr int out = transposed ? wide : tall, in = transposed ? tall : wide;

  static constexpr float at(int i, int j) {
    int row = transposed ? j : i, column = transposed ? i : j;
    return which == INPUT ? form.input[row][column]
         : which == FILTER ? form.filter[row][column]
                          : form.output[row][column];
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

// How results see feature maps: result (y, x) sees blocks of `block` · `block` pixels, the first of them at pixel
// (y * step + top, x * step + left), one for each tap, `step` pixels apart. What lies outside is empty.
struct FeatureMaps {
  const float* data;
  int height, width, channels, block, step, top, left;

  int depth() const { return block * block * channels; }
};

// Results, every `step` pixels of feature maps that begin at `data`. With a bias they are activated; then a result is a
// square of pixels, each of a quarter of its channels (pixel shuffle), and `step` is 2.
struct Results {
  float* data;
  int height, width, channels, step;
  const float* bias = nullptr;

  int columns() const { return panels(channels) * PANEL; }

  // Of one of the pixels that a result is.
  int depth() const { return bias ? channels / 4 : channels; }

  float* pixel(int image, int y, int x) const {
    return data + ((long(image) * height * step + y * step) * width * step + x * step) * depth();
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
    int image, top, left;  // of the tile's results
  };

  Place place(int index) const {
    return {index / (down * across), index / across % down * F::results, index % across * F::results};
  }

  // As many as keep their matrices in the cache.
  int block(int count, int depth, int columns) const {
    long fit = BLOCK / (points * long(depth + columns));
    return std::min<long>(long(count) * down * across, std::max<long>(fit / ROWS, 8) * ROWS);
  }

  // What tile `index` of all feature maps sees, times `input` on both sides: row `row` of points matrices.
  void see(const FeatureMaps& x, int index, float* to, long point, int row) const {
    auto [image, top, left] = place(index);
    int side = (F::points - 1) * x.step + x.block;
    top = top * x.step + x.top, left = left * x.step + x.left;
    const float* from = x.data + long(image) * x.height * x.width * x.channels;
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
        Side<F, INPUT, false>::apply(seen, out);
        for (int i = 0; i < F::points; i++)
          for (int j = 0; j < F::points; j++)
            store(to + (i * F::points + j) * point + y * wide + c, out[i][j], wide - c);
      }
  }
};

// What `transform_filter` makes of taps, in floats.
template <class F>
size_t transformed_size(int depth, int columns) {
  return size_t(F::points) * F::points * depth * panels(columns) * PANEL;
}

// Taps times `filter` on both sides, each of points matrices as panels.
template <class F>
void transform_filter(const Taps& taps, int block, int channels, int columns, float* to) {
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
        Side<F, FILTER, false>::apply(seen, out);
        float* at = to + (long(panel) * depth + k) * PANEL + half;
        for (int i = 0; i < F::points; i++)
          for (int j = 0; j < F::points; j++) store(at + (i * F::points + j) * point, out[i][j]);
      }
}

template <class F>
void convolve(const FeatureMaps& x, const float* weights, int count, const Results& y) {
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
      auto [image, top, left] = tiles.place(start + t);
      int rows = std::min(F::results, y.height - top), across = std::min(F::results, y.width - left);
      for (int first = 0; first < columns; first += depth_of_pixel) {
        int quarter = first / depth_of_pixel;
        long corner = (quarter / 2 * long(y.width) * y.step + quarter % 2) * depth_of_pixel;
        for (int c = 0; c < depth_of_pixel; c += LANES) {
          Vector from[F::points][F::points], to[F::results][F::results];
          for (int i = 0; i < F::points; i++)
            for (int j = 0; j < F::points; j++)
              from[i][j] = load(made + (i * F::points + j) * of_made + long(t) * wide + first + c);
          Side<F, OUTPUT, false>::apply(from, to);
          for (int i = 0; i < rows; i++)
            for (int j = 0; j < across; j++) {
              Vector v = to[i][j];
              if (y.bias) {
                v += load(y.bias + first + c, depth_of_pixel - c);
                v = v > 0 ? v : SLOPE * v;
              }
              store(y.pixel(image, top + i, left + j) + corner + c, v, depth_of_pixel - c);
            }
        }
      }
    }
  }
}

// The gradient of `convolve` with respect to its taps, which are written to.
template <class F>
void weight_gradient(const FeatureMaps& x, const Results& y, int count, const Taps& taps) {
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
      auto [image, top, left] = tiles.place(start + t);
      for (int c = 0; c < wide; c += LANES) {
        Vector from[F::results][F::results]{}, to[F::points][F::points];
        for (int i = 0; i < F::results && top + i < y.height; i++)
          for (int j = 0; j < F::results && left + j < y.width; j++)
            if (c < columns) from[i][j] = load(y.pixel(image, top + i, left + j) + c, columns - c);
        Side<F, OUTPUT, true>::apply(from, to);
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
      Side<F, FILTER, true>::apply(from, to);
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
void spread(const FeatureMaps& x, int side, int step, const float* weights, int count, const Results& y) {
  int across = side * y.channels, columns = side * across, wide = panels(columns) * PANEL;
  int vectors = ceil_div(across, LANES), stripes = ceil_div(vectors * LANES, step * y.channels);
  int lines = std::max<long>(1, BLOCK / 4 / (long(x.width) * wide)), edged = (y.width + 2) * y.channels;
  float* made = matrix(1, long(lines) * x.width * wide + LANES);
  float* sums = matrix(2, long(y.height + 2) * edged + LANES);
  Vector last{};
  for (int l = 0; l < across - (vectors - 1) * LANES; l++) last[l] = 1;
  for (int image = 0; image < count; image++) {
    std::memset(sums, 0, sizeof(float) * (y.height + 2) * edged);
    const float* from = x.data + long(image) * x.height * x.width * x.channels;
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
      std::memcpy(y.pixel(image, row, 0), sums + (row + 1) * edged + y.channels,
                  sizeof(float) * y.width * y.channels);
  }
}

// --- operations ---

enum Kind { CONV4_STRIDE2, CONV4_TRANSPOSED, CONV3, CONV3_SHUFFLE };
enum Algorithm { WINOGRAD_2X2, WINOGRAD_4X4, IM2COL, COL2IM };  // tiles of 2·2 or 4·4 results; few channels

bool is_conv3(Kind kind) { return kind == CONV3 || kind == CONV3_SHUFFLE; }
int taps_of(Kind kind) { return is_conv3(kind) ? 3 : 2; }
int side_of(Kind kind) { return is_conv3(kind) ? 3 : 4; }
int step_of(Kind kind) { return is_conv3(kind) ? 1 : 2; }

// The algorithm that takes the least time, for feature maps with such results.
Algorithm choose(Kind kind, int count, int height, int width, int inputs, int outputs) {
  if ((kind == CONV4_TRANSPOSED || kind == CONV3) && outputs < std::min(FEW, inputs)) return COL2IM;
  if (kind != CONV4_TRANSPOSED && inputs < FEW) return IM2COL;
  auto cost = [&](int results) {
    int points = results + taps_of(kind) - 1;
    // To read weights takes as long as some rows of a product.
    return points * points * (ceil_div(height, results) * ceil_div(width, results) * count + 8);
  };
  return cost(4) < cost(2) ? WINOGRAD_4X4 : WINOGRAD_2X2;
}

template <class Act>
void with_form(Kind kind, Algorithm algorithm, Act act) {
  if (algorithm == IM2COL) act(Form<1, 1>());
  else if (is_conv3(kind) && algorithm == WINOGRAD_2X2) act(Form<2, 3>());
  else if (is_conv3(kind)) act(Form<4, 3>());
  else if (algorithm == WINOGRAD_2X2) act(Form<2, 2>());
  else act(Form<4, 2>());
}

// Tap (i, j) of each of the four pixels (p, q) of a square of CONV4_TRANSPOSED's results, which see a pixel later each.
Taps taps_of_pixel(Taps all, int p, int q) {
  return {all.data + (3 - p) * all.row + (3 - q) * all.column, -2 * all.row, -2 * all.column, 0, 0, all.in, all.out};
}

class Operation : public mx::UnaryPrimitive {
 public:
  Operation(mx::Stream stream, Kind kind, Algorithm algorithm)
      : UnaryPrimitive(stream), kind(kind), algorithm(algorithm) {}

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
    return kind == operation.kind && algorithm == operation.algorithm;
  }

 protected:
  using Work = std::function<void(const std::vector<mx::array>&, mx::array&)>;
  virtual Work work() const = 0;

  const Kind kind;
  const Algorithm algorithm;
};

FeatureMaps feature_maps(const mx::array& x, int block, int step, int top, int left) {
  return {x.data<float>(), x.shape(1), x.shape(2), x.shape(3), block, step, top, left};
}

Results results(const mx::array& y) {
  return {const_cast<float*>(y.data<float>()), y.shape(1), y.shape(2), y.shape(3), 1};
}

// Weight -> what `Convolve` takes.
class TransformFilter : public Operation {
  using Operation::Operation;

  const char* name() const override { return "TransformFilter"; }

  Work work() const override {
    return [kind = kind, algorithm = algorithm](const std::vector<mx::array>& given, mx::array& out) {
      const mx::array& weight = given[0];
      const auto& s = weight.strides();
      const float* data = weight.data<float>();
      float* to = out.data<float>();
      int side = side_of(kind), step = step_of(kind);
      if (kind == CONV4_TRANSPOSED) {
        Taps all{data, s[1], s[2], 0, 0, s[0], s[3]};
        int inputs = weight.shape(0), outputs = weight.shape(3);
        if (algorithm == COL2IM) return gather(all, side, inputs, outputs, to);
        for (int p = 0; p < 2; p++)
          for (int q = 0; q < 2; q++)
            with_form(kind, algorithm, [&](auto form) {
              transform_filter<decltype(form)>(taps_of_pixel(all, p, q), 1, inputs, outputs, to);
              to += transformed_size<decltype(form)>(inputs, outputs);
            });
        return;
      }
      int inputs = weight.shape(3), outputs = weight.shape(0);
      if (algorithm == COL2IM)  // seen from the other side, taps are turned about
        return gather({data + 2 * s[1] + 2 * s[2], -s[1], -s[2], 0, 0, s[3], s[0]}, side, inputs, outputs, to);
      Taps taps{data, step * s[1], step * s[2], s[1], s[2], s[3], s[0]};
      with_form(kind, algorithm, [&](auto form) {
        transform_filter<decltype(form)>(taps, algorithm == IM2COL ? side : step, inputs, outputs, to);
      });
    };
  }
};

// Feature maps, a transformed filter, of CONV3_SHUFFLE also the bias -> feature maps.
class Convolve : public Operation {
  using Operation::Operation;

  const char* name() const override { return "Convolve"; }

  Work work() const override {
    return [kind = kind, algorithm = algorithm](const std::vector<mx::array>& given, mx::array& out) {
      const mx::array& x = given[0];
      const float* weights = given[1].data<float>();
      int count = x.shape(0), side = side_of(kind), step = step_of(kind);
      Results y = results(out);
      if (kind == CONV3_SHUFFLE) y = {y.data, x.shape(1), x.shape(2), 4 * y.channels, 2, given[2].data<float>()};
      if (algorithm == COL2IM) return spread(feature_maps(x, 1, 1, 0, 0), side, step, weights, count, y);
      if (kind != CONV4_TRANSPOSED) {
        FeatureMaps seen = feature_maps(x, algorithm == IM2COL ? side : step, step, -1, -1);
        return with_form(kind, algorithm, [&](auto form) { convolve<decltype(form)>(seen, weights, count, y); });
      }
      for (int p = 0; p < 2; p++)
        for (int q = 0; q < 2; q++)
          with_form(kind, algorithm, [&](auto form) {
            Results of_pixel{y.pixel(0, p, q), x.shape(1), x.shape(2), y.channels, 2};
            convolve<decltype(form)>(feature_maps(x, 1, 1, p - 1, q - 1), weights, count, of_pixel);
            weights += transformed_size<decltype(form)>(x.shape(3), y.channels);
          });
    };
  }
};

// Feature maps of CONV4_STRIDE2 or CONV3, gradient with respect to their results -> with respect to the weight.
class WeightGradient : public Operation {
  using Operation::Operation;

  const char* name() const override { return "WeightGradient"; }

  Work work() const override {
    return [kind = kind, algorithm = algorithm](const std::vector<mx::array>& given, mx::array& out) {
      const mx::array &x = given[0], &y = given[1];
      const auto& s = out.strides();
      float* data = out.data<float>();
      int count = x.shape(0), side = side_of(kind), step = step_of(kind);
      if (algorithm == COL2IM)
        return weight_gradient<Form<1, 1>>(feature_maps(y, side, 1, -1, -1), results(x), count,
                                 {data + 2 * s[1] + 2 * s[2], 0, 0, -s[1], -s[2], s[0], s[3]});
      Taps taps{data, step * s[1], step * s[2], s[1], s[2], s[3], s[0]};
      FeatureMaps seen = feature_maps(x, algorithm == IM2COL ? side : step, step, -1, -1);
      with_form(kind, algorithm, [&](auto form) { weight_gradient<decltype(form)>(seen, results(y), count, taps); });
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
mx::array operation(int kind, int algorithm, mx::Shape shape, std::vector<mx::array> inputs) {
  return {std::move(shape), mx::float32, std::make_shared<Op>(mx::to_stream({}), Kind(kind), Algorithm(algorithm)),
          std::move(inputs)};
}

}  // namespace

// What native.py calls. `outputs` are the channels of the results.

extern "C" int mlxlava_algorithm(int kind, int count, int height, int width, int inputs, int outputs) {
  return choose(Kind(kind), count, height, width, inputs, outputs);
}

extern "C" const char* mlxlava_transform_filter(int kind, int algorithm, const mx::array* weight, mx::array* out) {
  return guarded(out, [&] {
    bool transposed = kind == CONV4_TRANSPOSED;
    int inputs = weight->shape(transposed ? 0 : 3), outputs = weight->shape(transposed ? 3 : 0);
    int side = side_of(Kind(kind)), block = algorithm == IM2COL ? side : kind == CONV4_STRIDE2 ? 2 : 1;
    size_t size = 0;
    if (algorithm == COL2IM) size = size_t(inputs) * panels(side * side * outputs) * PANEL;
    else with_form(Kind(kind), Algorithm(algorithm), [&](auto form) {
      size = transformed_size<decltype(form)>(block * block * inputs, outputs) * (kind == CONV4_TRANSPOSED ? 4 : 1);
    });
    return operation<TransformFilter>(kind, algorithm, {int(size)}, {*weight});
  });
}

extern "C" const char* mlxlava_convolve(int kind, int algorithm, const mx::array* x, const mx::array* filter,
                                        int outputs, const mx::array* bias, mx::array* out) {
  return guarded(out, [&] {
    int count = x->shape(0), height = x->shape(1), width = x->shape(2);
    if (kind == CONV4_STRIDE2) height /= 2, width /= 2;
    if (kind == CONV4_TRANSPOSED) height *= 2, width *= 2;
    std::vector<mx::array> inputs{mx::contiguous(*x), *filter};
    if (kind == CONV3_SHUFFLE) height *= 2, width *= 2, outputs /= 4, inputs.push_back(mx::contiguous(*bias));
    return operation<Convolve>(kind, algorithm, {count, height, width, outputs}, std::move(inputs));
  });
}

extern "C" const char* mlxlava_weight_gradient(int kind, int algorithm, const mx::array* x, const mx::array* y,
                                               mx::array* out) {
  return guarded(out, [&] {
    int side = side_of(Kind(kind));
    return operation<WeightGradient>(kind, algorithm, {y->shape(3), side, side, x->shape(3)},
                            {mx::contiguous(*x), mx::contiguous(*y)});
  });
}
