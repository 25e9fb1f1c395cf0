// Draws the pictures that the server sends, and sends it what the viewer asks for (screens/web.py).

import { HELP, KEYS } from "./keys.js";

const find = (id) => document.getElementById(id);

const SMOOTH = 768; // pixels up to which a picture is doubled before the browser scales it
const OCTAVE = 3; // this many steps of the speed slider double the speed
const SILENCE = 5000; // ms without a message after which a connection counts as lost
const STILL = 5000; // ms between pictures for those who want no motion
const FADE = 3500; // ms after which the controls fade

let socket = null;
let delay = 500; // ms until the next attempt to connect
let retry = 0; // its timer
let away = false; // whether the last attempt failed
let heard = 0; // when the last message came
let status = null;
let received = 0; // pictures that came over this connection
let waiting = null; // the latest picture, if it is not drawn yet
let drawing = false;
let endRest = () => {};
let still = matchMedia("(prefers-reduced-motion: reduce)").matches;

// --- the connection ---

function connect() {
  clearTimeout(retry);
  socket = new WebSocket(new URL("live", location.href.replace(/^http/, "ws")));
  socket.binaryType = "arraybuffer";
  received = 0;
  heard = performance.now();
  socket.onopen = watch;
  socket.onmessage = ({ data }) => {
    heard = performance.now();
    delay = 500;
    if (typeof data === "string") {
      tell(JSON.parse(data));
    } else {
      received += 1;
      waiting = data;
      if (!drawing) draw();
    }
  };
  socket.onclose = ({ code }) => lost(code === 1013 ? "Too many viewers." : "The lamp is out of reach.");
}

function lost(why) {
  socket.onclose = socket.onmessage = socket.onopen = null;
  socket.close();
  socket = null;
  away = true;
  note(`${why} Trying again …`);
  retry = setTimeout(connect, delay * (0.75 + Math.random() / 2)); // so that not all viewers try at the same moment
  delay = Math.min(2 * delay, 8000);
}

function reconnect() {
  if (socket === null) connect();
}

function ask(request) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(request));
}

/** Tell the server whether this page wants pictures. */
function watch() {
  ask({ watching: !document.hidden });
}

// A broken line, or a phone that sleeps, does not close the connection.
setInterval(() => {
  if (socket !== null && performance.now() - heard > SILENCE) lost("The lamp is out of reach.");
}, 1000);

addEventListener("online", reconnect);
document.addEventListener("visibilitychange", () => {
  watch();
  if (!document.hidden) reconnect();
});

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

async function draw() {
  drawing = true;
  while (waiting !== null) {
    const data = waiting;
    waiting = null;
    const type = new Uint8Array(data, 0, 1)[0] === 0xff ? "image/jpeg" : "image/webp";
    try {
      const picture = await createImageBitmap(new Blob([data], { type }));
      // In the background there are no animation frames, so the server is told nothing and sends no more.
      await new Promise(requestAnimationFrame);
      paint(picture);
      picture.close();
    } catch (error) {
      console.error(error); // one bad picture; the next is on its way
    }
    ask({ drawn: received });
    if (still) await rest();
  }
  drawing = false;
}

/** For viewers who want no motion: one picture every few seconds, until they press play. */
async function rest() {
  ask({ watching: false });
  await new Promise((resolve) => {
    endRest = resolve;
    setTimeout(resolve, STILL);
  });
  waiting = null; // an old picture, which was on its way already
  watch();
}

function paint(picture) {
  const { width, height } = picture;
  const before = shape;
  enlargeLamp(picture, width, height, SMOOTH);
  fit(width, height);
  if (shape !== before) paintRoom();
}

/** Fill the space beside the picture with the colours of its edge, which the style sheet stretches. */
function paintRoom() {
  if (status === null) return;
  const canvas = find("room");
  const length = canvas.width; // as many as each side has colours
  const [left, right, top, bottom] = status.sides;
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
function colourGround(sides) {
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

// --- texts ---

function note(text) {
  if (find("note").textContent !== text) find("note").textContent = text;
}

/** Set the text of an element only if it changes, because screen readers may read out each change. */
function write(id, text) {
  if (find(id).textContent !== text) find(id).textContent = text;
}

const playing = () => status !== null && !status.paused && !still;
const short = (value) => `${Number(value.toPrecision(2))}×`;

function tell(news) {
  const sides = String(status?.sides);
  status = news;
  if (String(status.sides) !== sides) {
    paintRoom();
    colourGround(status.sides);
  }
  if (away) note("");
  away = false;
  write("play-word", playing() ? "Pause" : "Play");
  find("play-sign").setAttribute("d", playing() ? "M4 2v12h3V2zm5 0v12h3V2z" : "M4 2v12l10-6z");
  showSpeed(status.speed);
  showNames(status.names, status.name);
  if (!seedIsEdited) find("seed").value = status.seed;
  const label = `Lava lamp ${status.name}, seed ${status.seed}, ${playing() ? "playing" : "paused"}`;
  if (find("lamp").getAttribute("aria-label") !== label) find("lamp").setAttribute("aria-label", label);
  write("count", counts(status));
  write("moments", moments(status.moments));
}

function counts({ frame, seconds, viewers, caption }) {
  const [minutes, rest] = [Math.floor(seconds / 60), Math.floor(seconds % 60)];
  const time = `${minutes}:${String(rest).padStart(2, "0")}`;
  const about = caption ? `${caption} · ` : "";
  return `${about}Frame ${frame.toLocaleString("en")} at ${time} · ${viewers} ${viewers === 1 ? "viewer" : "viewers"}`;
}

function moments(values) {
  if (values === null) return "";
  const names = ["mean", "deviation", "skewness", "kurtosis"];
  const digits = (value) => (value === null ? "–" : value.toFixed(2).replace("-", "−"));
  return `State: ${names.map((name, index) => `${name} ${digits(values[index])}`).join(", ")}`;
}

function showSpeed(speed) {
  write("speed-word", short(speed));
  find("speed").setAttribute("aria-valuetext", `${Number(speed.toPrecision(2))} times`);
  if (!dragging) find("speed").value = Math.round(OCTAVE * Math.log2(speed));
}

function showNames(names, name) {
  const select = find("name");
  if ([...select.options].map((option) => option.value).join("\n") !== names.join("\n")) {
    select.replaceChildren(...names.map((one) => new Option(one, one)));
  }
  if (select.value !== name) select.value = name;
}

// --- the controls ---

let seedIsEdited = false;
let dragging = false;

function play() {
  const start = !playing();
  still = false;
  endRest();
  ask({ paused: !start });
}

function pace(steps) {
  const [slowest, fastest] = status.speeds;
  ask({ speed: Math.min(Math.max(2 ** (steps / OCTAVE), slowest), fastest) });
}

function faster(steps) {
  if (status !== null) pace(Math.round(OCTAVE * Math.log2(status.speed)) + steps);
}

function next() {
  if (status !== null) ask({ seed: (status.seed + 1) % 2 ** 31 });
}

function nextName() {
  if (status === null || status.names.length === 1) return;
  ask({ name: status.names[(status.names.indexOf(status.name) + 1) % status.names.length] });
}

function fill() {
  chosen = !document.body.classList.contains("fill");
  fit(shape, 1);
}

function full() {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen?.().catch(() => note("This browser refuses full screen."));
}

find("play").onclick = play;
find("next").onclick = next;
find("fill").onclick = fill;
find("full").onclick = full;
find("full").hidden = !document.fullscreenEnabled; // iPhones
document.onfullscreenchange = () => find("full").setAttribute("aria-pressed", !!document.fullscreenElement);

find("speed").oninput = () => {
  dragging = true;
  pace(Number(find("speed").value));
};
find("speed").onchange = () => {
  dragging = false;
};
find("name").onchange = () => ask({ name: find("name").value });
find("seed").oninput = () => {
  seedIsEdited = true;
};
find("seed").onchange = () => {
  seedIsEdited = false;
  if (find("seed").value !== "" && find("seed").validity.valid) ask({ seed: find("seed").valueAsNumber });
  else if (status !== null) find("seed").value = status.seed;
};

// A button that was clicked would take the space bar for itself. A click by keyboard has detail 0.
find("controls").onclick = (event) => {
  if (event.detail > 0) event.target.closest("button")?.blur();
};

// --- keys: the server makes keys.js from playback/keys.py ---

const actions = {
  pause: play,
  faster: () => faster(1),
  slower: () => faster(-1),
  true_speed: () => ask({ speed: 1 }),
  next_seed: next,
  next_name: nextName,
  full_screen: full,
  fill,
  help: () => (find("help").open ? find("help").close() : find("help").showModal()),
  leave: () => document.activeElement.blur(), // and let the controls fade
};

/** The first key of an action. */
const keyOf = (action) => Object.keys(KEYS).find((key) => KEYS[key] === action).replace(" ", "Space");

for (const control of document.querySelectorAll("[data-actions]")) {
  const keys = control.dataset.actions.split(" ").map(keyOf);
  control.setAttribute("aria-keyshortcuts", keys.join(" "));
  const label = control.querySelector("kbd");
  if (label !== null) label.textContent = keys[0].toLowerCase();
}

find("help").firstElementChild.replaceChildren(
  ...HELP.flatMap((row) => row.map((text, index) => {
    const cell = document.createElement(index === 0 ? "dt" : "dd");
    cell.textContent = text;
    return cell;
  })),
);

addEventListener("keydown", (event) => {
  wake();
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const action = KEYS[event.key === "Escape" ? "esc" : event.key.toLowerCase()];
  if (action === undefined) return;
  if (action === "leave") return actions.leave(); // the browser does more: it closes a dialog
  if (event.target.matches("input, select")) return;
  if (event.key === " " && event.target.matches("button")) return; // presses that button
  event.preventDefault();
  actions[action]();
});

let fading = 0;

function wake() {
  document.body.classList.remove("idle");
  clearTimeout(fading);
  fading = setTimeout(() => document.body.classList.add("idle"), FADE);
}

for (const kind of ["pointermove", "pointerdown", "focusin"]) addEventListener(kind, wake, { passive: true });

wake();
connect();
