// The numbers of the lamp, out of the page that holds them (exporting/web_page.py writes them).

/** All numbers that 16 bits can stand for, as IEEE 754 halves. */
function halves() {
  const table = new Float32Array(2 ** 16);
  for (let bits = 0; bits < 2 ** 16; bits += 1) {
    const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
    const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    table[bits] = bits & 0x8000 ? -size : size;
  }
  return table;
}

/** Decode base64. */
export function decodeBytes(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/**
 * Decode the numbers.
 * @param about The description: `arrays` has the type, shape and place of each array, `bytes` how long all are.
 * @param text The bytes in base64.
 * @returns The arrays by name, each a Float32Array.
 */
export function decodeArrays(about, text) {
  const { buffer, length } = decodeBytes(text);
  if (length !== about.bytes) throw new Error("it is damaged; get it again.");
  const table = halves();
  const arrays = {};
  for (const [name, { type, shape, offset }] of Object.entries(about.arrays)) {
    const count = shape.reduce((product, size) => product * size, 1);
    if (type === "float32") {
      arrays[name] = new Float32Array(buffer, offset, count);
      continue;
    }
    const bits = new Uint16Array(buffer, offset, count);
    const values = (arrays[name] = new Float32Array(count));
    for (let i = 0; i < count; i += 1) values[i] = table[bits[i]];
  }
  return arrays;
}
