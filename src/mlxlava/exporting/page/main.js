// Plays the lamp that is inside this page: rolls its state and draws its frames, at its true speed, for ever.

import { HELP, KEYS } from "./keys.js";
import { moments, Rollout } from "./rollout.js";
import { ABOUT, CODE, SEED_COUNT, SPEEDS } from "./settings.js";
import { smaller } from "./smaller.js";
import {
  clock, describe, faster, find, note, setSides, show, showMoments, showPlaying, showSeed, showSpeed, useKeys, useSeed,
  useSpeed, write,
} from "./stage.js";
import { WasmDrawer } from "./wasm.js";
import { WebGlDrawer } from "./webgl.js";
import { decodeArrays, decodeBytes } from "./weights.js";

const FPS = 30; // frames a second, where the display shows as many
const PAUSE = 1000; // ms between two pictures after which the time between them does not count: the page was hidden
const STILL = 5000; // ms between pictures for those who want no motion
const NOTE = 6000; // ms that a note stays
const FACTS = 500; // ms between two looks at the state and at the picture's sides
const FAST = 20; // ms a frame below which no other way of drawing is tried
const SLOW = 12; // frames a second below which a smaller picture is drawn
const PATIENCE = 4; // looks at the facts in a row that must be as slow as that
const SMALLEST = 128; // pixels of height below which no picture is halved
const TOLERANCE = 2; // levels by which the picture's sides may change before what is beside it is painted anew
const COLOURS = 16; // along each side of the picture

const lamp = { about: ABOUT, arrays: {} };
let size = ABOUT.size; // of the picture that is drawn
let drawer = null;
let rollout = null;
let seconds = 0; // the lamp's time
let frames = 0; // that were drawn of this lamp
let speed = 1;
let paused = false;
let still = matchMedia("(prefers-reduced-motion: reduce)").matches;
let previous = null; // when the lamp's time was last moved on
let drawn = -Infinity; // when the last frame was drawn
let told = { at: -Infinity, frames: 0 }; // when facts were last shown, and how many frames there were
let slow = 0; // how many looks at the facts in a row found it slow
let sides = null;
let timer = 0;
let request = 0;

const playing = () => !paused && !still;

// --- drawing ---

/** Milliseconds that a frame takes. */
function measure(one) {
  const state = new Rollout(lamp, 0).state;
  const times = [0, 1, 2].map(() => {
    const start = performance.now();
    one.draw(state);
    one.read(); // waits for a graphics processor
    return performance.now() - start;
  });
  return Math.min(...times);
}

async function openWasm(drawn) {
  try {
    return await WasmDrawer.open(drawn, decodeBytes(CODE));
  } catch (error) {
    console.warn(error);
    return null;
  }
}

/**
 * Find the fastest way to draw in this browser; null if there is none.
 * @param how "webgl" or "wasm" to demand one of them; WebGL then also where the processor computes it.
 * @param half Whether to draw pictures of half the height and width.
 */
async function openDrawer(how, half = false) {
  const wanted = half ? smaller(lamp) : lamp;
  const webgl = how === "wasm" ? null : WebGlDrawer.open(wanted, how === "webgl");
  if (how === "webgl" || (webgl !== null && measure(webgl) < FAST)) return webgl;
  const wasm = await openWasm(wanted);
  if (webgl === null || wasm === null) return wasm ?? webgl;
  return measure(wasm) < measure(webgl) ? wasm : webgl;
}

/** Draw with another drawer from now on. */
function use(one, half) {
  drawer = one;
  size = half ? ABOUT.size.map((side) => side / 2) : ABOUT.size;
  // A graphics processor may be taken away, for example when a laptop sleeps.
  drawer.canvas.addEventListener("webglcontextlost", async () => {
    const other = await openDrawer("wasm", half);
    if (other !== null) use(other, half);
  });
}

const mayBeHalved = () => ABOUT.size[0] >= SMALLEST;

/** After some seconds in which too few frames were drawn, draw smaller ones. */
async function watchRate(rate) {
  slow = playing() && rate < SLOW ? slow + 1 : 0;
  if (slow < PATIENCE || size !== ABOUT.size || !mayBeHalved() || setting("half") === "0") return;
  const half = await openDrawer(setting("draw"), true);
  if (half === null) return;
  use(half, true);
  if (setting("controls") === "0") return; // a wallpaper has no texts
  note("This machine is slow, so the picture is drawn at half its size.");
  setTimeout(() => note(""), NOTE);
}

function draw() {
  const state = rollout.stateAt(seconds);
  drawer.draw(state);
  show(drawer.canvas);
  frames += 1;
  if (performance.now() - told.at > FACTS) tell(state);
}

/** The colours along the four sides of the picture, from the top or from the left on. */
function sidesOf(pixels, height, width) {
  const line = (length, pixelAt) =>
    Array.from({ length: COLOURS }, (_, i) => {
      const first = Math.floor((i * length) / COLOURS);
      const end = Math.max(first + 1, Math.floor(((i + 1) * length) / COLOURS));
      return [0, 1, 2].map((channel) => {
        let sum = 0;
        for (let at = first; at < end; at += 1) sum += pixels[4 * pixelAt(at) + channel];
        return Math.round(sum / (end - first));
      });
    });
  return [
    line(height, (y) => y * width),
    line(height, (y) => y * width + width - 1),
    line(width, (x) => x),
    line(width, (x) => (height - 1) * width + x),
  ];
}

// --- texts ---

/** Show how the lamp is, and take over the colours of the picture's sides. */
function tell(state) {
  const now = performance.now();
  const rate = (1000 * (frames - told.frames)) / (now - told.at);
  const often = rate >= 1 ? `, ${Math.round(rate)} a second` : "";
  const how = drawer.name + (size === ABOUT.size ? "" : " at half size");
  write("count", `Frame ${frames.toLocaleString("en")} at ${clock(seconds)}${often} · drawn by ${how}`);
  if (rate > 0) watchRate(rate);
  told = { at: now, frames };
  showMoments(moments(state));
  const found = sidesOf(drawer.read(), ...size);
  const changed = sides === null || found.flat(2).some((value, i) => Math.abs(value - sides.flat(2)[i]) > TOLERANCE);
  if (changed) setSides((sides = found));
}

/** Show what the viewer has asked for. */
function tellWishes() {
  showPlaying(playing());
  showSpeed(speed);
  showSeed(rollout.seed);
  describe(ABOUT.name, rollout.seed, playing());
}

// --- time ---

/** A picture is due: move the lamp's time on by what has passed on the wall clock, and draw. */
function tick(now) {
  request = 0;
  const passed = previous === null ? 0 : now - previous;
  if (playing() && now - drawn < 1000 / FPS - 4) return schedule();
  previous = now;
  if (playing() && passed < PAUSE) seconds += (passed / 1000) * speed;
  drawn = now;
  draw();
  schedule();
}

function schedule() {
  if (playing() && request === 0) request = requestAnimationFrame(tick);
}

/** Draw once, soon, even in a pause. */
function drawSoon() {
  if (request === 0) request = requestAnimationFrame(tick);
}

/** For viewers who want no motion: another picture every few seconds, until they press play. */
function rest() {
  if (!still) return;
  if (!document.hidden && !paused) {
    seconds += (STILL / 1000) * speed;
    drawSoon();
  }
  timer = setTimeout(rest, STILL);
}

// --- the screen stays on while the lamp plays ---

let lock = null;

async function keepAwake() {
  const wanted = playing() && !document.hidden;
  try {
    if (wanted && lock === null && navigator.wakeLock !== undefined) {
      lock = await navigator.wakeLock.request("screen");
      lock.addEventListener("release", () => (lock = null));
    } else if (!wanted && lock !== null) {
      await lock.release();
    }
  } catch {
    lock = null; // refused, for example where the battery is low
  }
}

// --- the controls ---

function play() {
  paused = playing();
  still = false;
  clearTimeout(timer);
  previous = null;
  changed();
}

function setSpeed(value) {
  speed = value;
  changed();
}

function setSeed(seed) {
  rollout = new Rollout(lamp, seed);
  [seconds, frames, previous] = [0, 0, null];
  told = { at: -Infinity, frames: 0 };
  drawSoon();
  changed();
}

function changed() {
  tellWishes();
  schedule();
  keepAwake();
}

find("play").onclick = play;
find("next").onclick = () => setSeed((rollout.seed + 1) % SEED_COUNT);
find("which").remove(); // there is one lamp in a page
useSpeed(setSpeed, () => SPEEDS);
useSeed(setSeed, () => rollout.seed);
useKeys(KEYS, HELP, {
  pause: play,
  faster: () => setSpeed(faster(speed, 1, SPEEDS)),
  slower: () => setSpeed(faster(speed, -1, SPEEDS)),
  true_speed: () => setSpeed(1),
  next_seed: find("next").onclick,
});

document.addEventListener("visibilitychange", keepAwake);

// --- the settings in the address: #seed=7&speed=2&controls=0&half=1&draw=wasm ---

/** A setting in the address, or null. */
function setting(name) {
  return new URLSearchParams(location.hash.slice(1)).get(name);
}

/** A number in the address, or null if there is none within the limits. */
function numberIn(name, [least, most]) {
  const text = setting(name);
  const value = Number(text);
  return text === null || text === "" || !(value >= least && value <= most) ? null : value;
}

function readAddress() {
  speed = numberIn("speed", SPEEDS) ?? speed;
  document.body.classList.toggle("bare", setting("controls") === "0");
  const seed = Math.floor(numberIn("seed", [0, SEED_COUNT - 1]) ?? rollout?.seed ?? 0);
  if (seed === rollout?.seed) changed();
  else setSeed(seed);
}

addEventListener("hashchange", readAddress);

// --- begin ---

async function begin() {
  lamp.arrays = decodeArrays(ABOUT, find("numbers").textContent);
  find("numbers").remove(); // five megabytes of text
  const half = setting("half") === "1" && mayBeHalved();
  const found = await openDrawer(setting("draw"), half);
  if (found === null) {
    find("controls").hidden = true;
    note("This browser has neither WebGL 2 nor WebAssembly with SIMD, so it cannot draw the lamp.");
    return;
  }
  use(found, half);
  readAddress();
  if (still) timer = setTimeout(rest, STILL);
}

const ready = begin().catch((error) => {
  find("controls").hidden = true;
  note(`This page cannot play its lamp: ${error.message}`);
});

// For pages that embed this one, and for tests.
globalThis.mlxlava = { about: ABOUT, moments, openDrawer, rollout: (seed) => new Rollout(lamp, seed), ready };
