// A 3×3 convolution for browsers without a fast GPU, as WebAssembly with 128-bit vectors.
//
//     clang --target=wasm32 -O3 -msimd128 -nostdlib -Wl,--no-entry -Wl,--export=convolve \
//       -Wl,--export=__heap_base -Wl,--strip-all -o convolution.wasm convolution.c
//
// Feature maps are (height + 2, width + 2, channels) with a border of zeros, so no tap leaves them. A row and its
// border are computed in one go; what is computed for the border is dropped.

#include <wasm_simd128.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

// Sums for `pixels` neighbours and 4 * `vectors` channels, which all stay in registers.
ALWAYS_INLINE void sum_block(const int vectors, const int pixels, const float *x, const float *weights,
                             const float *bias, int stride, int inputs, v128_t *sums) {
  for (int n = 0; n < pixels * vectors; n++) sums[n] = wasm_v128_load(bias + 4 * (n % vectors));
  for (int tap = 0; tap < 9; tap++) {
    const float *from = x + (tap / 3 * stride + tap % 3) * inputs;
    for (int i = 0; i < inputs; i++, weights += 4 * vectors) {
      for (int p = 0; p < pixels; p++) {
        const v128_t value = wasm_v128_load32_splat(from + p * inputs + i);
        for (int v = 0; v < vectors; v++) {
          const v128_t product = wasm_f32x4_mul(value, wasm_v128_load(weights + 4 * v));
          sums[p * vectors + v] = wasm_f32x4_add(sums[p * vectors + v], product);
        }
      }
    }
  }
}

ALWAYS_INLINE v128_t leaky_relu(v128_t x) {
  return wasm_f32x4_max(x, wasm_f32x4_mul(x, wasm_f32x4_splat(0.2f)));
}

// The last convolution: y is (height, width, 4), without a border.
ALWAYS_INLINE void convolve_to_colours(const float *x, const float *weights, const float *bias, float *y,
                                       int height, int width, int inputs) {
  const int stride = width + 2;
  for (int at = 0; at < height * stride; at += 8) {
    v128_t sums[8];
    sum_block(1, 8, x + at * inputs, weights, bias, stride, inputs, sums);
    for (int p = 0; p < 8; p++) {
      const int row = (at + p) / stride, column = (at + p) % stride;
      if (column < width && row < height) wasm_v128_store(y + 4 * (row * width + column), sums[p]);
    }
  }
}

// x is (height + 2, width + 2, inputs). Weights are (outputs / 8, 3, 3, inputs, 8), or (3, 3, inputs, 4) for 4 outputs:
// then the result is y (height, width, 4). Else leaky ReLU follows. Without shuffle, y is (height + 2, width + 2,
// outputs). With it, a pixel shuffle follows, and y is (2 height + 2, 2 width + 2, outputs / 4). Channels are multiples
// of 8. Up to 9 pixels are read beyond the end of x.
void convolve(const float *x, const float *weights, const float *bias, float *y, int height, int width, int inputs,
              int outputs, int shuffle) {
  if (outputs == 4) {
    convolve_to_colours(x, weights, bias, y, height, width, inputs);
    return;
  }
  const int stride = width + 2, channels = shuffle ? outputs / 4 : outputs;
  for (int first = 0; first < outputs; first += 8, weights += 72 * inputs) {
    const int phase = first / channels, channel = first % channels;
    for (int at = 0; at < height * stride; at += 4) {
      v128_t sums[8];
      sum_block(2, 4, x + at * inputs, weights, bias + first, stride, inputs, sums);
      for (int p = 0; p < 4; p++) {
        const int row = (at + p) / stride, column = (at + p) % stride;
        if (column >= width || row >= height) continue;
        const int to = shuffle ? (2 * row + phase / 2 + 1) * 2 * (width + 1) + 2 * column + phase % 2 + 1
                               : (row + 1) * stride + column + 1;
        wasm_v128_store(y + to * channels + channel, leaky_relu(sums[2 * p]));
        wasm_v128_store(y + to * channels + channel + 4, leaky_relu(sums[2 * p + 1]));
      }
    }
  }
}
