// The random numbers of mlxlava.load(...): MLX's Threefry counters (Salmon 2011), and its inverse error function.

const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];
const HIGHEST = Math.fround(1 - 2 ** -24); // the largest float32 below one

/** The key of a step of a seed's lamp: two words of 32 bits (rollout/roll.py). */
export function keyOf(seed, step) {
  const key = ((BigInt(seed) + 1n) * 0x9e3779b97f4a7c15n + BigInt(step)) & 0xffffffffffffffffn;
  return [Number(key >> 32n), Number(key & 0xffffffffn)];
}

/** Threefry with two words of 32 bits and 20 rounds. */
function threefry([first, second], x, y) {
  const keys = [first, second, first ^ second ^ 0x1bd11bda];
  x = (x + first) | 0;
  y = (y + second) | 0;
  for (let i = 0; i < 5; i += 1) {
    for (const rotation of ROTATIONS[i % 2]) {
      x = (x + y) | 0;
      y = ((y << rotation) | (y >>> (32 - rotation))) ^ x;
    }
    x = (x + keys[(i + 1) % 3]) | 0;
    y = (y + keys[(i + 2) % 3] + i + 1) | 0;
  }
  return [x >>> 0, y >>> 0];
}

/** Random words of 32 bits, as many as asked for. */
function words(key, count) {
  const found = new Uint32Array(count);
  const half = count >> 1;
  const odd = count & 1;
  for (let i = 0; i < half; i += 1) [found[i], found[half + odd + i]] = threefry(key, i, half + odd + i);
  if (odd) [found[half]] = threefry(key, half, 0);
  return found;
}

// Polynomials of the inverse error function in log(1 - x²), for arguments near one and for the others.
const NEAR_ONE = [
  3.03697567e-10, 2.93243101e-8, 1.22150334e-6, 2.84108955e-5, 3.93552968e-4, 3.02698812e-3, 4.83185798e-3,
  -2.64646143e-1, 8.40016484e-1,
].map(Math.fround);
const OTHERS = [
  5.43877832e-9, 1.43285448e-7, 1.22774793e-6, 1.12963626e-7, -5.6153076e-5, -1.47697632e-4, 2.31468678e-3,
  1.15392581e-2, -2.32015476e-1, 8.86226892e-1,
].map(Math.fround);

/** The inverse error function. Each line is rounded to float32 once, as MLX's fused operations are. */
function erfinv(x) {
  const log = Math.fround(Math.log(Math.fround(1 - x * x)));
  const polynomial = Math.abs(log) > 6.125 ? NEAR_ONE : OTHERS;
  let sum = polynomial[0];
  for (let i = 1; i < polynomial.length; i += 1) sum = Math.fround(sum * log + polynomial[i]);
  return Math.fround(x * sum);
}

/** Normal numbers: those of mx.random.normal with this key. */
export function normal(key, count) {
  const found = words(key, count);
  const numbers = new Float32Array(count);
  for (let i = 0; i < count; i += 1) {
    const uniform = Math.min(Math.fround(Math.fround(found[i]) / 2 ** 32), HIGHEST);
    numbers[i] = Math.fround(Math.SQRT2) * erfinv(Math.fround(2 * uniform - HIGHEST));
  }
  return numbers;
}
