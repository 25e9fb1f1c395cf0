// Draws frames on the graphics processor, with WebGL 2. A feature map is a texture of four channels a pixel: rows
// y + height * group, where a group is four channels.

const VERTEX = `#version 300 es
void main() {
  // One triangle that covers everything.
  gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0, 1);
}`;

const HEAD = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
uniform sampler2D source;
uniform sampler2D weights;

/* Number at in a texture of numbers, which is 1024 wide. */
vec4 at(sampler2D numbers, int at) {
  return texelFetch(numbers, ivec2(at & 1023, at >> 10), 0);
}

vec4 leaky_relu(vec4 x) {
  return max(x, 0.2 * x);
}
`;

// The state is a row of texels; weights are (outputs / 4, inputs / 4, 4, 4), then biases.
const DENSE = `${HEAD}
uniform int inputs, height, width, outputs;
out vec4 features;
void main() {
  ivec2 place = ivec2(gl_FragCoord.xy);
  int block = ((place.y % height) * width + place.x) * outputs + place.y / height;
  vec4 sum = at(weights, height * width * outputs * inputs * 4 + block);
  for (int i = 0; i < inputs; i++) {
    vec4 value = texelFetch(source, ivec2(i, 0), 0);
    int from = (block * inputs + i) * 4;
    for (int k = 0; k < 4; k++) sum += value[k] * at(weights, from + k);
  }
  features = leaky_relu(sum);
}`;

const CONVOLVE = `
/* A 3×3 convolution at a pixel, for one block of four outputs. Weights are (blocks, 3, 3, inputs, 4), then biases. */
vec4 convolve(ivec2 pixel, ivec2 size, int block, int blocks, int inputs) {
  vec4 sum = at(weights, blocks * 36 * inputs + block);
  for (int tap = 0; tap < 9; tap++) {
    ivec2 from = pixel + ivec2(tap % 3 - 1, tap / 3 - 1);
    if (any(lessThan(from, ivec2(0))) || any(greaterThanEqual(from, size))) continue;
    int place = (block * 9 + tap) * inputs * 4;
    for (int i = 0; i < inputs; i++) {
      vec4 value = texelFetch(source, ivec2(from.x, from.y + i * size.y), 0);
      for (int k = 0; k < 4; k++, place++) sum += value[k] * at(weights, place);
    }
  }
  return sum;
}
`;

// With the pixel shuffle: which of the four phases a pixel takes depends on where it is.
const UP = `${HEAD}${CONVOLVE}
uniform int inputs, height, width, outputs;
out vec4 features;
void main() {
  ivec2 place = ivec2(gl_FragCoord.xy);
  int group = place.y / (2 * height);
  place.y %= 2 * height;
  int block = (2 * (place.y & 1) + (place.x & 1)) * outputs + group;
  features = leaky_relu(convolve(place >> 1, ivec2(width, height), block, 4 * outputs, inputs));
}`;

const OUT = `${HEAD}${CONVOLVE}
uniform sampler2D gate, background;
uniform int inputs, height, width;
uniform int one_colour; /* whether gate and background are the same for all pixels */
out vec4 colour;
void main() {
  // Rows run from the top down; WebGL's from the bottom up.
  ivec2 place = ivec2(int(gl_FragCoord.x), height - 1 - int(gl_FragCoord.y));
  vec4 x = convolve(place, ivec2(width, height), 0, 1, inputs);
  ivec2 own = one_colour == 1 ? ivec2(0) : place;
  x = texelFetch(background, own, 0) + texelFetch(gate, own, 0) * x;
  colour = vec4((1.0 / (1.0 + exp(-x))).rgb, 1);
}`;

const ceil4 = (count) => Math.ceil(count / 4);

/** Draws a lamp's frames. `open` returns null where there is no WebGL 2 that can draw into float textures. */
export class WebGlDrawer {
  /** `software` allows a WebGL that the browser computes on the processor, slowly. */
  static open(lamp, software) {
    const canvas = document.createElement("canvas");
    [canvas.height, canvas.width] = lamp.about.size;
    const gl = canvas.getContext("webgl2", {
      alpha: false, antialias: false, depth: false, failIfMajorPerformanceCaveat: !software,
      preserveDrawingBuffer: true, powerPreference: "low-power",
    });
    if (gl === null) return null;
    // Some phones draw into textures of 16 bits only. Sums are of 32 bits in any case.
    const exact = gl.getExtension("EXT_color_buffer_float") !== null;
    if (!exact && gl.getExtension("EXT_color_buffer_half_float") === null) return null;
    try {
      return new WebGlDrawer(lamp, canvas, gl, exact ? gl.RGBA32F : gl.RGBA16F);
    } catch (error) {
      console.warn(error);
      return null;
    }
  }

  name = "WebGL";

  constructor({ about, arrays }, canvas, gl, format) {
    [this.arrays, this.canvas, this.gl, this.format] = [arrays, canvas, gl, format];
    [this.height, this.width] = about.size;
    this.mostRows = gl.getParameter(gl.MAX_TEXTURE_SIZE);
    let [height, width, channels] = about.base;
    this.state = this.texture(gl.RGBA32F, ceil4(about.stateSize), 1, null);
    this.passes = [this.dense(about, height, width, channels)];
    for (let i = 0; i < about.ups; i += 1) {
      const outputs = arrays[`up${i}.bias`].length / 4;
      this.passes.push(this.up(`up${i}`, height, width, channels, outputs));
      [height, width, channels] = [2 * height, 2 * width, outputs];
    }
    this.passes.push(this.out(height, width, channels));
    this.draw(new Float32Array(about.stateSize));
    if (gl.getError() !== gl.NO_ERROR) throw new Error("WebGL cannot draw this lamp.");
  }

  texture(format, width, height, numbers) {
    const gl = this.gl;
    if (Math.max(width, height) > this.mostRows) throw new Error("A texture would be too large for this WebGL.");
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    if (numbers !== null) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, width, height, gl.RGBA, gl.FLOAT, numbers);
    return { texture, width, height };
  }

  /** Numbers, four a texel, in a texture 1024 wide. */
  numbers(values) {
    const rows = Math.ceil(values.length / 4096);
    const padded = new Float32Array(4096 * rows);
    padded.set(values);
    return this.texture(this.gl.RGBA32F, 1024, rows, padded);
  }

  program(fragment, sources, numbers) {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    Object.entries(numbers).forEach(([name, value]) => gl.uniform1i(gl.getUniformLocation(program, name), value));
    Object.keys(sources).forEach((name, unit) => gl.uniform1i(gl.getUniformLocation(program, name), unit));
    return { program, sources: Object.values(sources) };
  }

  /** A pass that draws into a feature map of its own. */
  pass(fragment, sources, numbers, width, height) {
    const gl = this.gl;
    const to = this.texture(this.format, width, height, null);
    const frame = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, to.texture, 0);
    if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) {
      throw new Error("This WebGL cannot draw into float textures.");
    }
    this.last = to;
    return { ...this.program(fragment, sources, numbers), frame, to };
  }

  dense({ stateSize }, height, width, channels) {
    const [weight, bias] = [this.arrays["dense.weight"], this.arrays["dense.bias"]];
    const [inputs, outputs] = [ceil4(stateSize), ceil4(channels)];
    const blocks = height * width * outputs;
    const values = new Float32Array(blocks * inputs * 16 + 4 * blocks);
    bias.forEach((value, o) => {
      const [pixel, channel] = [Math.floor(o / channels), o % channels];
      const [block, lane] = [pixel * outputs + (channel >> 2), channel & 3];
      for (let i = 0; i < stateSize; i += 1) {
        values[(block * inputs * 4 + i) * 4 + lane] = weight[o * stateSize + i];
      }
      values[blocks * inputs * 16 + 4 * block + lane] = value;
    });
    const sources = { source: this.state, weights: this.numbers(values) };
    return this.pass(DENSE, sources, { inputs, height, width, outputs }, width, height * outputs);
  }

  /** Weights of a convolution as (blocks, 3, 3, inputs, 4) and biases. Channels are filled up to blocks of four. */
  convolution(name, channels, outputs, phases) {
    const [weight, bias] = [this.arrays[`${name}.weight`], this.arrays[`${name}.bias`]];
    const [inputs, groups] = [4 * ceil4(channels), ceil4(outputs)];
    const blocks = phases * groups;
    const values = new Float32Array(blocks * 36 * inputs + 4 * blocks);
    bias.forEach((value, o) => {
      const channel = o % outputs;
      const [block, lane] = [Math.floor(o / outputs) * groups + (channel >> 2), channel & 3];
      for (let tap = 0; tap < 9; tap += 1) {
        for (let i = 0; i < channels; i += 1) {
          values[((block * 9 + tap) * inputs + i) * 4 + lane] = weight[(o * 9 + tap) * channels + i];
        }
      }
      values[blocks * 36 * inputs + 4 * block + lane] = value;
    });
    return this.numbers(values);
  }

  up(name, height, width, channels, outputs) {
    const sources = { source: this.last, weights: this.convolution(name, channels, outputs, 4) };
    const numbers = { inputs: ceil4(channels), height, width, outputs: ceil4(outputs) };
    return this.pass(UP, sources, numbers, 2 * width, 2 * height * ceil4(outputs));
  }

  out(height, width, channels) {
    const pictures = [this.arrays.gate, this.arrays.background].map((values) => {
      const pixels = new Float32Array((values.length / 3) * 4);
      values.forEach((value, i) => (pixels[Math.floor(i / 3) * 4 + (i % 3)] = value));
      const one = values.length === 3;
      return this.texture(this.gl.RGBA32F, one ? 1 : width, one ? 1 : height, pixels);
    });
    const sources = {
      source: this.last, weights: this.convolution("out", channels, 3, 1), gate: pictures[0], background: pictures[1],
    };
    const numbers = { inputs: ceil4(channels), height, width, one_colour: Number(this.arrays.gate.length === 3) };
    return { ...this.program(OUT, sources, numbers), frame: null, to: { width, height } };
  }

  /** Draw the frame of a state on `canvas`. */
  draw(state) {
    const gl = this.gl;
    const padded = new Float32Array(4 * this.state.width);
    padded.set(state);
    gl.bindTexture(gl.TEXTURE_2D, this.state.texture);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, this.state.width, 1, gl.RGBA, gl.FLOAT, padded);
    for (const { program, sources, frame, to } of this.passes) {
      gl.useProgram(program);
      gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
      gl.viewport(0, 0, to.width, to.height);
      sources.forEach(({ texture }, unit) => {
        gl.activeTexture(gl.TEXTURE0 + unit);
        gl.bindTexture(gl.TEXTURE_2D, texture);
      });
      gl.activeTexture(gl.TEXTURE0);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    }
  }

  /** The pixels of the last frame: red, green, blue and 255, rows from the top down. */
  read() {
    const row = 4 * this.width;
    const upsideDown = new Uint8Array(row * this.height);
    this.gl.readPixels(0, 0, this.width, this.height, this.gl.RGBA, this.gl.UNSIGNED_BYTE, upsideDown);
    const pixels = new Uint8ClampedArray(upsideDown.length);
    for (let y = 0; y < this.height; y += 1) {
      pixels.set(upsideDown.subarray(y * row, (y + 1) * row), (this.height - 1 - y) * row);
    }
    return pixels;
  }
}
