// Draws frames on the processor: WebAssembly with vectors (convolution.c) for convolutions, JavaScript for the rest.

const LEAKY_SLOPE = 0.2;
const SLACK = 16; // pixels that may be read beyond the end of a feature map

/** One colour's numbers for all pixels, where there are no others. */
const spread = (values, pixels) =>
  values.length > 3 ? values : Float32Array.from({ length: 3 * pixels }, (_, i) => values[i % 3]);

const up8 = (count) => Math.ceil(count / 8) * 8;

/** Draws a lamp's frames. `await WasmDrawer.open(lamp)` makes one; it fails in a browser without SIMD. */
export class WasmDrawer {
  static async open(lamp, code) {
    const { instance } = await WebAssembly.instantiate(code);
    return new WasmDrawer(lamp, instance.exports);
  }

  name = "WebAssembly";

  constructor({ about, arrays }, { memory, convolve, __heap_base: heap }) {
    [this.height, this.width] = about.size;
    [this.arrays, this.memory, this.convolve] = [arrays, memory, convolve];
    this.end = heap.value;
    this.grid = { height: about.base[0], width: about.base[1], channels: about.base[2] };
    this.base = this.featureMap(...about.base);
    const grown = about.upsamplerUps !== null;
    const drawn = this.picture("", this.base, about.base, about.ups, !grown && about.lastIsFlat);
    this.pictures = [drawn];
    if (grown) this.pictures.push(this.upsampled(drawn, about.upsamplerUps, about.lastIsFlat));
    this.pixels = new Uint8ClampedArray(4 * this.height * this.width).fill(255);
    this.canvas = document.createElement("canvas");
    [this.canvas.width, this.canvas.height] = [this.width, this.height];
    this.context = this.canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  }

  /** The convolutions from a feature map to a picture, and what is done with their colours. */
  picture(prefix, from, [height, width, channels], ups, lastIsFlat) {
    const layers = [];
    for (let i = 0; i < ups; i += 1) {
      const shuffle = !(lastIsFlat && i === ups - 1);
      const outputs = this.arrays[`${prefix}up${i}.bias`].length / (shuffle ? 4 : 1);
      const layer = this.layer(`${prefix}up${i}`, from, channels, outputs, shuffle, height, width);
      if (shuffle) [height, width] = [2 * height, 2 * width];
      channels = outputs;
      from = layer.to = this.featureMap(height, width, channels);
      layers.push(layer);
    }
    const last = this.layer(`${prefix}out`, from, channels, 3, false, height, width, 4);
    last.to = this.allocate(4 * height * width);
    layers.push(last);
    const [gate, background] = ["gate", "background"].map((name) =>
      spread(this.arrays[prefix + name], height * width),
    );
    return { layers, colours: last.to, gate, background, height, width };
  }

  /** The picture that the upsampling network makes of a small one. */
  upsampled(small, ups, lastIsFlat) {
    const { height, width } = small;
    small.centre = spread(this.arrays["upsampler.centre"], height * width);
    small.difference = this.featureMap(height, width, 3);
    const channels = this.arrays["upsampler.in.bias"].length;
    const first = this.layer("upsampler.in", small.difference, 3, channels, false, height, width);
    first.to = this.featureMap(height, width, channels);
    const picture = this.picture("upsampler.", first.to, [height, width, channels], ups, lastIsFlat);
    picture.layers.unshift(first);
    return picture;
  }

  /** Room for floats in the module's memory; returns its address. */
  allocate(count) {
    const address = (this.end + 15) & ~15;
    this.end = address + 4 * count;
    const missing = this.end - this.memory.buffer.byteLength;
    if (missing > 0) this.memory.grow(Math.ceil(missing / 2 ** 16));
    return address;
  }

  floats(address, count) {
    return new Float32Array(this.memory.buffer, address, count);
  }

  /** A feature map with a border of zeros. Channels are filled up to a multiple of 8. */
  featureMap(height, width, channels) {
    return this.allocate(((height + 2) * (width + 2) + SLACK) * up8(channels));
  }

  /**
   * A convolution, its weights ordered for convolution.c. `outputs` are those after the pixel shuffle. `block` is 4 for
   * colours.
   */
  layer(name, from, channels, outputs, shuffle, height, width, block = 8) {
    const [weight, bias] = [this.arrays[`${name}.weight`], this.arrays[`${name}.bias`]];
    const inputs = up8(channels);
    const padded = block * Math.ceil(outputs / block);
    const all = (shuffle ? 4 : 1) * padded;
    const [weights, biases] = [this.allocate(all * 9 * inputs), this.allocate(all)];
    const [toWeights, toBiases] = [this.floats(weights, all * 9 * inputs), this.floats(biases, all)];
    for (let o = 0; o < bias.length; o += 1) {
      const place = Math.floor(o / outputs) * padded + (o % outputs);
      const first = Math.floor(place / block) * block * 9 * inputs + (place % block);
      toBiases[place] = bias[o];
      for (let tap = 0; tap < 9; tap += 1) {
        for (let i = 0; i < channels; i += 1) {
          toWeights[first + (tap * inputs + i) * block] = weight[(o * 9 + tap) * channels + i];
        }
      }
    }
    return { from, weights, biases, height, width, inputs, outputs: all, shuffle, to: 0 };
  }

  /** The first feature map, inside its border. */
  drawBase(state) {
    const { height, width, channels } = this.grid;
    const map = this.floats(this.base, (height + 2) * (width + 2) * up8(channels));
    const [weight, bias] = [this.arrays["dense.weight"], this.arrays["dense.bias"]];
    for (let o = 0; o < bias.length; o += 1) {
      let sum = bias[o];
      for (let i = 0, at = o * state.length; i < state.length; i += 1, at += 1) sum += state[i] * weight[at];
      const pixel = Math.floor(o / channels);
      const place = (Math.floor(pixel / width) + 1) * (width + 2) + (pixel % width) + 1;
      map[place * up8(channels) + (o % channels)] = Math.max(sum, LEAKY_SLOPE * sum);
    }
  }

  drawPixels({ gate, background, colours: address }) {
    const colours = this.floats(address, this.pixels.length);
    for (let pixel = 0, at = 0; pixel < this.pixels.length; pixel += 4) {
      for (let channel = 0; channel < 3; channel += 1, at += 1) {
        const x = background[at] + gate[at] * colours[pixel + channel];
        // The array rounds to the nearest byte.
        this.pixels[pixel + channel] = 255 / (1 + Math.exp(-x));
      }
    }
  }

  /** The difference of a small picture from the centre, as a feature map for the upsampling network. */
  drawDifference({ gate, background, centre, colours: address, difference, height, width }) {
    const colours = this.floats(address, 4 * height * width);
    const map = this.floats(difference, (height + 2) * (width + 2) * 8);
    for (let y = 0, at = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const to = ((y + 1) * (width + 2) + x + 1) * 8;
        for (let channel = 0; channel < 3; channel += 1, at += 1) {
          const value = background[at] + gate[at] * colours[4 * (y * width + x) + channel];
          map[to + channel] = 1 / (1 + Math.exp(-value)) - centre[at];
        }
      }
    }
  }

  /** Draw the frame of a state on `canvas`. */
  draw(state) {
    this.drawBase(state);
    for (const picture of this.pictures) {
      for (const one of picture.layers) {
        this.convolve(
          one.from, one.weights, one.biases, one.to, one.height, one.width, one.inputs, one.outputs,
          one.shuffle,
        );
      }
      if (picture.centre === undefined) this.drawPixels(picture);
      else this.drawDifference(picture);
    }
    this.context.putImageData(new ImageData(this.pixels, this.width, this.height), 0, 0);
  }

  /** The pixels of the last frame: red, green, blue and 255. */
  read() {
    return this.pixels;
  }
}
