// What every page of a lamp has in common: the picture and what is beside it, texts, keys, controls that fade.

export const find = (id) => document.getElementById(id);

const SMOOTH = 768; // pixels up to which a picture is doubled before the browser scales it
const FADE = 3500; // ms after which the controls fade
const OCTAVE = 3; // this many steps of the speed slider double the speed

// --- the picture ---

/**
 * Enlarge by doubling. The browser's linear filter alone turns the pixels of a small picture into diamonds. Quality
 * "high" would leave dark and light rims at hard edges, in Chromium a cubic filter that rings.
 */
function enlarger(canvas) {
  const steps = [];
  return (picture, width, height, until) => {
    let from = picture;
    for (let step = 0, first = true; first || Math.max(width, height) < until; step += 1) {
      if (!first) [width, height] = [2 * width, 2 * height];
      first = false;
      const last = Math.max(width, height) >= until;
      const to = last ? canvas : (steps[step] ??= document.createElement("canvas"));
      if (to.width !== width || to.height !== height) [to.width, to.height] = [width, height];
      const context = to.getContext("2d", { alpha: false });
      context.imageSmoothingQuality = "low";
      context.drawImage(from, 0, 0, width, height);
      from = to;
    }
  };
}

const enlargeLamp = enlarger(find("lamp"));
let sides = null; // the colours beside the picture, if they are known

/** Show a picture: anything that a canvas can draw. */
export function show(picture) {
  const { width, height } = picture;
  const before = shape;
  enlargeLamp(picture, width, height, SMOOTH);
  fit(width, height);
  if (shape !== before) paintRoom();
}

/** Take the colours of the picture's sides (left, right, top, bottom) for the space beside it. */
export function setSides(colours) {
  if (String(colours) === String(sides)) return;
  sides = colours;
  paintRoom();
  colourGround();
}

/** Fill the space beside the picture with the colours of its edge, which the style sheet stretches. */
function paintRoom() {
  if (sides === null) return;
  const canvas = find("room");
  const length = canvas.width; // as many as each side has colours
  const [left, right, top, bottom] = sides;
  const isBeside = innerWidth / innerHeight > shape;
  const pixels = new ImageData(length, length);
  for (let y = 0; y < length; y += 1) {
    for (let x = 0; x < length; x += 1) {
      const colour = isBeside ? (2 * x < length ? left : right)[y] : (2 * y < length ? top : bottom)[x];
      pixels.data.set([...colour, 255], 4 * (length * y + x));
    }
  }
  canvas.getContext("2d", { alpha: false }).putImageData(pixels, 0, 0);
}

/** The mean colour of the edge is for what no canvas covers: the ground, and a phone's own bars. */
function colourGround() {
  const colours = sides.flat();
  const mean = [0, 1, 2].map((channel) => {
    return Math.round(colours.reduce((sum, colour) => sum + colour[channel], 0) / colours.length);
  });
  const ground = `rgb(${mean.join(", ")})`;
  document.querySelector("meta[name=theme-color]").content = ground;
  document.documentElement.style.setProperty("--ground", ground);
}

let shape = 1; // width over height of the picture
let chosen = null; // whether it fills the screen, once the viewer has chosen

function fit(width, height) {
  shape = width / height;
  // A tall screen is filled, which cuts off the room beside the lamp. A wide one would cut off the lamp.
  const screen = innerWidth / innerHeight;
  const fills = chosen ?? (screen < shape && screen > shape / 2);
  document.body.classList.toggle("fill", fills);
  find("fill").setAttribute("aria-pressed", fills);
}

addEventListener("resize", () => {
  fit(shape, 1);
  paintRoom();
});

/** Fill the screen with the picture, or show the whole picture. */
export function toggleFill() {
  chosen = !document.body.classList.contains("fill");
  fit(shape, 1);
}

export function toggleFullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen?.().catch(() => note("This browser refuses full screen."));
}

find("fill").onclick = toggleFill;
find("full").onclick = toggleFullScreen;
find("full").hidden = !document.fullscreenEnabled; // iPhones
document.onfullscreenchange = () => find("full").setAttribute("aria-pressed", !!document.fullscreenElement);

// --- texts ---

/** Tell the viewer something, above the picture; nothing to take it away. */
export function note(text) {
  if (find("note").textContent !== text) find("note").textContent = text;
}

/** Set the text of an element only if it changes, because screen readers may read out each change. */
export function write(id, text) {
  if (find(id).textContent !== text) find(id).textContent = text;
}

/** Show whether the lamp plays. */
export function showPlaying(plays) {
  write("play-word", plays ? "Pause" : "Play");
  find("play-sign").setAttribute("d", plays ? "M4 2v12h3V2zm5 0v12h3V2z" : "M4 2v12l10-6z");
}

/** Name the picture for those who cannot see it. */
export function describe(name, seed, plays) {
  const label = `Lava lamp ${name}, seed ${seed}, ${plays ? "playing" : "paused"}`;
  if (find("lamp").getAttribute("aria-label") !== label) find("lamp").setAttribute("aria-label", label);
}

/** Minutes and seconds. */
export function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

/** The moments of the present state, in words. */
export function showMoments(values) {
  const names = ["mean", "deviation", "skewness", "kurtosis"];
  const digits = (value) => (value === null ? "–" : value.toFixed(2).replace("-", "−"));
  write("moments", `State: ${names.map((name, index) => `${name} ${digits(values[index])}`).join(", ")}`);
}

// --- the speed and the seed ---

let dragging = false;
let seedIsEdited = false;

const short = (value) => `${Number(value.toPrecision(2))}×`;

export function showSpeed(speed) {
  write("speed-word", short(speed));
  find("speed").setAttribute("aria-valuetext", `${Number(speed.toPrecision(2))} times`);
  if (!dragging) find("speed").value = Math.round(OCTAVE * Math.log2(speed));
}

export function showSeed(seed) {
  if (!seedIsEdited) find("seed").value = seed;
}

/** A speed some steps of the slider from another, within the limits. */
export function faster(speed, steps, [slowest, fastest]) {
  return Math.min(Math.max(2 ** (Math.round(OCTAVE * Math.log2(speed)) / OCTAVE + steps / OCTAVE), slowest), fastest);
}

/** Call `onSpeed` with each speed that the slider is moved to. */
export function useSpeed(onSpeed, limits) {
  find("speed").oninput = () => {
    dragging = true;
    onSpeed(faster(1, Number(find("speed").value), limits()));
  };
  find("speed").onchange = () => {
    dragging = false;
  };
}

/** Call `onSeed` with each seed that is typed; `current` gives the seed that plays. */
export function useSeed(onSeed, current) {
  find("seed").oninput = () => {
    seedIsEdited = true;
  };
  find("seed").onchange = () => {
    seedIsEdited = false;
    if (find("seed").value !== "" && find("seed").validity.valid) onSeed(find("seed").valueAsNumber);
    else find("seed").value = current();
  };
}

// A button that was clicked would take the space bar for itself. A click by keyboard has detail 0.
find("controls").onclick = (event) => {
  if (event.detail > 0) event.target.closest("button")?.blur();
};

// --- keys ---

/**
 * Listen to keys, and show them on the controls and in the help.
 * @param keys The action of each key, from playback/keys.py.
 * @param help Rows of the help text.
 * @param actions A function for each action.
 */
export function useKeys(keys, help, actions) {
  const all = {
    full_screen: toggleFullScreen,
    fill: toggleFill,
    help: () => (find("help").open ? find("help").close() : find("help").showModal()),
    leave: () => document.activeElement.blur(), // and let the controls fade
    ...actions,
  };

  /** The first key of an action. */
  const keyOf = (action) => Object.keys(keys).find((key) => keys[key] === action).replace(" ", "Space");

  for (const control of document.querySelectorAll("[data-actions]")) {
    const own = control.dataset.actions.split(" ").map(keyOf);
    control.setAttribute("aria-keyshortcuts", own.join(" "));
    const label = control.querySelector("kbd");
    if (label !== null) label.textContent = own[0].toLowerCase();
  }

  find("help").firstElementChild.replaceChildren(
    ...help.flatMap((row) => row.map((text, index) => {
      const cell = document.createElement(index === 0 ? "dt" : "dd");
      cell.textContent = text;
      return cell;
    })),
  );

  addEventListener("keydown", (event) => {
    wake();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const action = keys[event.key === "Escape" ? "esc" : event.key.toLowerCase()];
    if (action === undefined) return;
    if (action === "leave") return all.leave(); // the browser does more: it closes a dialog
    if (event.target.matches("input, select")) return;
    if (event.key === " " && event.target.matches("button")) return; // presses that button
    event.preventDefault();
    all[action]();
  });
}

let fading = 0;

function wake() {
  document.body.classList.remove("idle");
  clearTimeout(fading);
  fading = setTimeout(() => document.body.classList.add("idle"), FADE);
}

for (const kind of ["pointermove", "pointerdown", "focusin"]) addEventListener(kind, wake, { passive: true });

wake();
