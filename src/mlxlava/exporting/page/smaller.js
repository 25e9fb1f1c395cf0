// A lamp that draws pictures of half the height and width, for machines that are too slow for whole ones.

/** Means of blocks of 2×2 pixels: (height, width, 3) → (height / 2, width / 2, 3). */
function halve(values, [height, width]) {
  if (values.length === 3) return values; // one colour for all pixels
  const halved = new Float32Array(values.length / 4);
  for (let i = 0; i < halved.length; i += 1) {
    const [pixel, channel] = [Math.floor(i / 3), i % 3];
    const [y, x] = [Math.floor(pixel / (width / 2)), pixel % (width / 2)];
    const at = (row, column) => values[((2 * y + row) * width + 2 * x + column) * 3 + channel];
    halved[i] = (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4;
  }
  return halved;
}

/** The mean of the four phases before a pixel shuffle, which come one after the other. */
function meanOfPhases(values) {
  const size = values.length / 4;
  return Float32Array.from({ length: size }, (_, i) => {
    return (values[i] + values[i + size] + values[i + 2 * size] + values[i + 3 * size]) / 4;
  });
}

// What taps -1, 0 and 1 of whole pixels, averaged over two neighbours, are as taps of pixels twice as large.
const FOLD = [[0.5, 0, 0], [0.5, 1, 0.5], [0, 0, 0.5]];

/** The 3×3 kernels (outputs, 3, 3, inputs) for pixels twice as large. */
function fold(values, inputs) {
  const folded = new Float32Array(values.length);
  for (let o = 0; o < values.length / (9 * inputs); o += 1) {
    for (let tap = 0; tap < 81; tap += 1) {
      const [to, from] = [Math.floor(tap / 9), tap % 9];
      const share = FOLD[Math.floor(to / 3)][Math.floor(from / 3)] * FOLD[to % 3][from % 3];
      for (let i = 0; i < inputs && share !== 0; i += 1) {
        folded[(o * 9 + to) * inputs + i] += share * values[(o * 9 + from) * inputs + i];
      }
    }
  }
  return folded;
}

/**
 * The same lamp at half the size. Its last features are the means of the whole lamp's before the activation, which is
 * not quite the mean after it: on lamps of 256×128, frames are 0.3 of 255 levels from halved whole ones, and 0.5 where
 * the lamp has grown.
 */
export function smaller({ about, arrays }) {
  // A lamp that has grown ends with its upsampling network.
  const grown = about.upsamplerUps !== null;
  const prefix = grown ? "upsampler." : "";
  const last = `${prefix}up${(grown ? about.upsamplerUps : about.ups) - 1}`;
  const features = arrays[`${last}.bias`].length / 4;
  return {
    about: { ...about, size: about.size.map((side) => side / 2), lastIsFlat: true },
    arrays: {
      ...arrays,
      [`${last}.weight`]: meanOfPhases(arrays[`${last}.weight`]),
      [`${last}.bias`]: meanOfPhases(arrays[`${last}.bias`]),
      [`${prefix}out.weight`]: fold(arrays[`${prefix}out.weight`], features),
      [`${prefix}gate`]: halve(arrays[`${prefix}gate`], about.size),
      [`${prefix}background`]: halve(arrays[`${prefix}background`], about.size),
    },
  };
}
