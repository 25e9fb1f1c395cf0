// Draws frames on the graphics processor, with WebGL 2.
//
// One run of a shader computes four pixels, since they share the weights, which are most of what has to be fetched. So a
// feature map is a texture of four layers, one for each of the four. Pixel x = 8 b + 2 layer + c of a row is at column
// 2 b + c: the four pixels are two apart, so that a pixel shuffle gives them the same phase. A texel has four channels;
// the rows of the next four channels lie below.

const VERTEX = `#version 300 es
void main() {
  // One triangle that covers everything.
  gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0, 1);
}`;

const HEAD = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
precision highp sampler2DArray;

/* Number i in a texture of numbers, which is 1024 wide. */
vec4 at(sampler2D numbers, int i) {
  return texelFetch(numbers, ivec2(i & 1023, i >> 10), 0);
}

mat4 matrix_at(sampler2D numbers, int i) {
  return mat4(at(numbers, i), at(numbers, i + 1), at(numbers, i + 2), at(numbers, i + 3));
}

/* Where a feature map has the pixel (x, y). */
ivec3 texel(int x, int y) {
  return ivec3((x >> 3) * 2 + (x & 1), y, (x >> 1) & 3);
}
`;

const FOUR_PIXELS = `${HEAD}
layout(location = 0) out vec4 pixel0;
layout(location = 1) out vec4 pixel1;
layout(location = 2) out vec4 pixel2;
layout(location = 3) out vec4 pixel3;
uniform sampler2D weights;
uniform int inputs, height, width, outputs;
`;

// The state is a row of texels; weights are (pixels, outputs, inputs, 4), then biases.
const DENSE = `${FOUR_PIXELS}
uniform sampler2D state;

vec4 feature(int x, int y, int group) {
  if (x >= width) return vec4(0);
  int block = (y * width + x) * outputs + group;
  vec4 sum = at(weights, height * width * outputs * inputs * 4 + block);
  for (int i = 0; i < inputs; i++) {
    sum += matrix_at(weights, (block * inputs + i) * 4) * texelFetch(state, ivec2(i, 0), 0);
  }
  return max(sum, 0.2 * sum);
}

void main() {
  ivec2 place = ivec2(gl_FragCoord.xy);
  int x = (place.x >> 1) * 8 + (place.x & 1), y = place.y % height, group = place.y / height;
  pixel0 = feature(x, y, group);
  pixel1 = feature(x + 2, y, group);
  pixel2 = feature(x + 4, y, group);
  pixel3 = feature(x + 6, y, group);
}`;

// A 3×3 convolution. Weights are (phases, outputs, 3, 3, inputs, 4), then biases. With shuffle, the result is twice as
// high and wide; height and width are those of the source.
const CONVOLVE = `${FOUR_PIXELS}
uniform highp sampler2DArray source;
uniform int shuffle;
uniform float slope; /* of the activation below zero; 1 for none */

void main() {
  ivec2 place = ivec2(gl_FragCoord.xy);
  int rows = shuffle == 1 ? 2 * height : height;
  int group = place.y / rows, y = place.y % rows;
  int block = group, x = (place.x >> 1) * 8 + (place.x & 1), apart = 2;
  if (shuffle == 1) {
    block += (2 * (y & 1) + (place.x & 1)) * outputs;
    y >>= 1;
    x >>= 1;
    apart = 1;
  }
  int blocks = (shuffle == 1 ? 4 : 1) * outputs;
  vec4 bias = at(weights, blocks * 36 * inputs + block);
  vec4 sum0 = bias, sum1 = bias, sum2 = bias, sum3 = bias;
  for (int tap = 0; tap < 9; tap++) {
    int row = y + tap / 3 - 1;
    if (row < 0 || row >= height) continue;
    int first = x + tap % 3 - 1;
    ivec4 columns = first + apart * ivec4(0, 1, 2, 3);
    vec4 inside = vec4(greaterThanEqual(columns, ivec4(0))) * vec4(lessThan(columns, ivec4(width)));
    columns = clamp(columns, 0, width - 1);
    ivec3 from0 = texel(columns.x, row), from1 = texel(columns.y, row);
    ivec3 from2 = texel(columns.z, row), from3 = texel(columns.w, row);
    int number = (block * 9 + tap) * inputs * 4;
    for (int i = 0; i < inputs; i++, number += 4) {
      mat4 matrix = matrix_at(weights, number);
      sum0 += matrix * (texelFetch(source, from0, 0) * inside.x);
      sum1 += matrix * (texelFetch(source, from1, 0) * inside.y);
      sum2 += matrix * (texelFetch(source, from2, 0) * inside.z);
      sum3 += matrix * (texelFetch(source, from3, 0) * inside.w);
      from0.y += height;
      from1.y += height;
      from2.y += height;
      from3.y += height;
    }
  }
  pixel0 = max(sum0, slope * sum0);
  pixel1 = max(sum1, slope * sum1);
  pixel2 = max(sum2, slope * sum2);
  pixel3 = max(sum3, slope * sum3);
}`;

const COLOUR_AT = `
uniform highp sampler2DArray source;
uniform sampler2D gate, background;
uniform int one_colour; /* gate, background and centre are the same for all pixels */

ivec2 own(ivec2 place) {
  return one_colour == 1 ? ivec2(0) : place;
}

vec4 colour_at(ivec2 place) {
  vec4 x = texelFetch(source, texel(place.x, place.y), 0);
  x = texelFetch(background, own(place), 0) + texelFetch(gate, own(place), 0) * x;
  return 1.0 / (1.0 + exp(-x));
}
`;

// The difference of a small picture from the centre, as a feature map for the upsampling network.
const DIFFERENCE = `${FOUR_PIXELS}${COLOUR_AT}
uniform sampler2D centre;

vec4 difference(int x, int y) {
  ivec2 place = ivec2(min(x, width - 1), y);
  return colour_at(place) - texelFetch(centre, own(place), 0);
}

void main() {
  ivec2 place = ivec2(gl_FragCoord.xy);
  int x = (place.x >> 1) * 8 + (place.x & 1);
  pixel0 = difference(x, place.y);
  pixel1 = difference(x + 2, place.y);
  pixel2 = difference(x + 4, place.y);
  pixel3 = difference(x + 6, place.y);
}`;

const COLOUR = `${HEAD}${COLOUR_AT}
uniform int height;
out vec4 colour;

void main() {
  // Rows run from the top down; WebGL's from the bottom up.
  ivec2 place = ivec2(int(gl_FragCoord.x), height - 1 - int(gl_FragCoord.y));
  colour = vec4(colour_at(place).rgb, 1);
}`;

const LEAKY_SLOPE = 0.2;

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
    this.state = this.texture(gl.RGBA32F, ceil4(about.stateSize), 1, null);
    this.passes = [this.dense(about.stateSize, ...about.base)];
    const grown = about.upsamplerUps !== null;
    const [height, width] = this.convolutions("", about.base, about.ups, !grown && about.lastIsFlat);
    if (grown) {
      const channels = arrays["upsampler.in.bias"].length;
      this.passes.push(
        this.difference(height, width),
        this.convolution("upsampler.in", height, width, 3, channels, false, LEAKY_SLOPE),
      );
      this.convolutions("upsampler.", [height, width, channels], about.upsamplerUps, about.lastIsFlat);
    }
    this.passes.push(this.colour(grown ? "upsampler." : ""));
    this.draw(new Float32Array(about.stateSize));
    if (gl.getError() !== gl.NO_ERROR) throw new Error("WebGL cannot draw this lamp.");
  }

  /** Add the passes from a feature map to colours; returns these colours' height and width. */
  convolutions(prefix, [height, width, channels], ups, lastIsFlat) {
    for (let i = 0; i < ups; i += 1) {
      const name = `${prefix}up${i}`;
      const shuffle = !(lastIsFlat && i === ups - 1);
      const outputs = this.arrays[`${name}.bias`].length / (shuffle ? 4 : 1);
      this.passes.push(this.convolution(name, height, width, channels, outputs, shuffle, LEAKY_SLOPE));
      if (shuffle) [height, width] = [2 * height, 2 * width];
      channels = outputs;
    }
    this.passes.push(this.convolution(`${prefix}out`, height, width, channels, 3, false, 1));
    return [height, width];
  }

  texture(format, width, height, numbers, layers = 0) {
    const gl = this.gl;
    if (Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
      throw new Error("A texture would be too large for this WebGL.");
    }
    const kind = layers ? gl.TEXTURE_2D_ARRAY : gl.TEXTURE_2D;
    const texture = gl.createTexture();
    gl.bindTexture(kind, texture);
    if (layers) gl.texStorage3D(kind, 1, format, width, height, layers);
    else gl.texStorage2D(kind, 1, format, width, height);
    gl.texParameteri(kind, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(kind, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    if (numbers !== null) gl.texSubImage2D(kind, 0, 0, 0, width, height, gl.RGBA, gl.FLOAT, numbers);
    return { kind, texture, width, height };
  }

  /** Numbers, four a texel, in a texture 1024 wide. */
  numbers(values) {
    const rows = Math.ceil(values.length / 4096);
    const padded = new Float32Array(4096 * rows);
    padded.set(values);
    return this.texture(this.gl.RGBA32F, 1024, rows, padded);
  }

  program(fragment, sources, uniforms) {
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
    const place = (name) => gl.getUniformLocation(program, name);
    Object.entries(uniforms).forEach(([name, value]) => gl.uniform1i(place(name), value));
    Object.keys(sources).forEach((name, unit) => gl.uniform1i(place(name), unit));
    return { program, place, sources: Object.values(sources) };
  }

  /** A pass that draws a feature map of its own, four pixels at once. */
  pass(fragment, sources, uniforms, height, width, channels) {
    const gl = this.gl;
    const program = this.program(fragment, sources, uniforms);
    const to = this.texture(this.format, 2 * Math.ceil(width / 8), height * ceil4(channels), null, 4);
    const frame = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
    const places = [0, 1, 2, 3].map((layer) => gl.COLOR_ATTACHMENT0 + layer);
    places.forEach((place, layer) => gl.framebufferTextureLayer(gl.FRAMEBUFFER, place, to.texture, 0, layer));
    gl.drawBuffers(places);
    if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) {
      throw new Error("This WebGL cannot draw into float textures.");
    }
    this.last = to;
    return { ...program, frame, to };
  }

  dense(stateSize, height, width, channels) {
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
    const sources = { state: this.state, weights: this.numbers(values) };
    return this.pass(DENSE, sources, { inputs, height, width, outputs }, height, width, channels);
  }

  convolution(name, height, width, channels, outputs, shuffle, slope) {
    const [weight, bias] = [this.arrays[`${name}.weight`], this.arrays[`${name}.bias`]];
    const [inputs, groups] = [4 * ceil4(channels), ceil4(outputs)]; // filled up to blocks of four
    const blocks = (shuffle ? 4 : 1) * groups;
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
    const sources = { source: this.last, weights: this.numbers(values) };
    const uniforms = { inputs: inputs / 4, height, width, outputs: groups, shuffle: Number(shuffle) };
    const larger = shuffle ? 2 : 1;
    const pass = this.pass(CONVOLVE, sources, uniforms, larger * height, larger * width, outputs);
    this.gl.uniform1f(pass.place("slope"), slope);
    return pass;
  }

  /** Colours (height, width, 3) in a texture, or one colour for all pixels. */
  coloured(name, height, width) {
    const values = this.arrays[name];
    const pixels = new Float32Array((values.length / 3) * 4);
    values.forEach((value, i) => (pixels[Math.floor(i / 3) * 4 + (i % 3)] = value));
    const one = values.length === 3;
    return this.texture(this.gl.RGBA32F, one ? 1 : width, one ? 1 : height, pixels);
  }

  /** The pass from a small picture's last feature map to the first one of the upsampling network. */
  difference(height, width) {
    const [gate, background, centre] = ["gate", "background", "upsampler.centre"].map((name) =>
      this.coloured(name, height, width),
    );
    const uniforms = { width, one_colour: Number(this.arrays.gate.length === 3) };
    return this.pass(DIFFERENCE, { source: this.last, gate, background, centre }, uniforms, height, width, 3);
  }

  /** The pass that turns the last feature map into colours on the canvas. */
  colour(prefix) {
    const [height, width] = [this.height, this.width];
    const [gate, background] = [`${prefix}gate`, `${prefix}background`].map((name) =>
      this.coloured(name, height, width),
    );
    const uniforms = { height, one_colour: Number(this.arrays[`${prefix}gate`].length === 3) };
    const program = this.program(COLOUR, { source: this.last, gate, background }, uniforms);
    return { ...program, frame: null, to: { width, height } };
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
      sources.forEach(({ kind, texture }, unit) => {
        gl.activeTexture(gl.TEXTURE0 + unit);
        gl.bindTexture(kind, texture);
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
