// The endless roll-out: the state step (models/state_step.py) in plain numbers, and the state at any time.

import { keyOf, normal } from "./random.js";

/** x @ matrix, for a matrix (inputs, outputs). Sums are of 64 bits. */
function times(x, matrix) {
  const sums = new Float64Array(matrix.length / x.length);
  for (let i = 0, at = 0; i < x.length; i += 1) {
    const value = x[i];
    for (let o = 0; o < sums.length; o += 1, at += 1) sums[o] += value * matrix[at];
  }
  return new Float32Array(sums);
}

/** A dense layer: weights are (outputs, inputs). */
function dense(x, weight, bias) {
  const sums = new Float32Array(bias.length);
  for (let o = 0, at = 0; o < sums.length; o += 1) {
    let sum = bias[o];
    for (let i = 0; i < x.length; i += 1, at += 1) sum += x[i] * weight[at];
    sums[o] = sum;
  }
  return sums;
}

/** The state step: a state (Z) → the state a share of a learned step later. It keeps N(0, I). */
export class StateStep {
  constructor({ about, arrays }) {
    this.size = about.stateSize;
    this.noiseAngle = about.noiseAngle;
    this.arrays = arrays;
    this.couplings = about.couplings;
    this.hidden = about.hidden;
  }

  advance(state, noise, share) {
    let x = state;
    for (let c = 0; c < this.couplings; c += 1) {
      x = times(x, this.arrays[`change${c}`]);
      this.rotateHalf(x, c, share);
    }
    x = times(x, this.arrays[`change${this.couplings}`]);
    const angles = this.noiseAngle;
    if (angles === null) return x;
    return x.map((value, i) => {
      const angle = share * angles[i % angles.length];
      return Math.cos(angle) * value + Math.sin(angle) * noise[i];
    });
  }

  /** Rotate pairs of one half of x, in place, by angles that a small network computes from the other half. */
  rotateHalf(x, coupling, share) {
    const pairs = this.size >> 2;
    let y = x.subarray(2 * pairs);
    const layer = (name) => [this.arrays[`${coupling}.${name}.weight`], this.arrays[`${coupling}.${name}.bias`]];
    for (let i = 0; i < this.hidden; i += 1) y = dense(y, ...layer(`hidden${i}`)).map(Math.tanh);
    dense(y, ...layer("angles")).forEach((angle, i) => {
      const [cos, sin] = [Math.cos(share * angle), Math.sin(share * angle)];
      const [first, second] = [x[i], x[pairs + i]];
      x[i] = first * cos - second * sin;
      x[pairs + i] = first * sin + second * cos;
    });
  }
}

/** A lamp that is rolled from a seed, without end (rollout/roll.py). Its states depend only on seed and time. */
export class Rollout {
  constructor(lamp, seed) {
    this.dynamics = new StateStep(lamp);
    this.seed = seed;
    this.rate = lamp.about.stepFps;
    this.state = normal(keyOf(seed, -1), this.dynamics.size);
    this.norm = Math.hypot(...this.state);
    this.step = 0;
    this.noise = this.newNoise();
  }

  /** The state at a time of the lamp, in seconds. Times must not decrease. */
  stateAt(seconds) {
    let whole = Math.floor(seconds * this.rate);
    let share = seconds * this.rate - whole;
    // A time that is a learned step's but for rounding needs no state in between.
    if (share > 1 - 1e-6) [whole, share] = [whole + 1, 0];
    while (this.step < whole) this.takeStep();
    return share < 1e-6 ? this.state : this.advance(share);
  }

  takeStep() {
    this.state = this.advance(1);
    this.step += 1;
    this.noise = this.newNoise();
  }

  newNoise() {
    return normal(keyOf(this.seed, this.step), this.dynamics.size);
  }

  advance(share) {
    const state = this.dynamics.advance(this.state, this.noise, share);
    if (this.dynamics.noiseAngle !== null) return state;
    // The step keeps norms, but rounding would shrink a state in a million steps.
    const factor = this.norm / Math.hypot(...state);
    return state.map((value) => value * factor);
  }
}

/** Mean, standard deviation, skewness and kurtosis of numbers. */
export function moments(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const power = (n) => values.reduce((sum, value) => sum + (value - mean) ** n, 0) / values.length;
  const deviation = Math.sqrt(power(2));
  return [mean, deviation, power(3) / deviation ** 3, power(4) / deviation ** 4];
}
