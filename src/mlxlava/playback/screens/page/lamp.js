// Draws the pictures that the server sends, and sends it what the viewer asks for (screens/web.py).

import { HELP, KEYS } from "./keys.js";
import {
  clock, describe, faster, find, note, setSides, show, showMoments, showPlaying, showSeed, showSpeed, useKeys, useSeed,
  useSpeed, write,
} from "./stage.js";

const SILENCE = 5000; // ms without a message after which a connection counts as lost
const STILL = 5000; // ms between pictures for those who want no motion

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
      show(picture);
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

// --- what the server says ---

const playing = () => status !== null && !status.paused && !still;

function tell(news) {
  status = news;
  setSides(status.sides);
  if (away) note("");
  away = false;
  showPlaying(playing());
  showSpeed(status.speed);
  showNames(status.names, status.name);
  showSeed(status.seed);
  describe(status.name, status.seed, playing());
  write("count", counts(status));
  if (status.moments === null) write("moments", "");
  else showMoments(status.moments);
}

function counts({ frame, seconds, viewers, caption }) {
  const about = caption ? `${caption} · ` : "";
  const people = `${viewers} ${viewers === 1 ? "viewer" : "viewers"}`;
  return `${about}Frame ${frame.toLocaleString("en")} at ${clock(seconds)} · ${people}`;
}

function showNames(names, name) {
  const select = find("name");
  if ([...select.options].map((option) => option.value).join("\n") !== names.join("\n")) {
    select.replaceChildren(...names.map((one) => new Option(one, one)));
  }
  if (select.value !== name) select.value = name;
}

// --- the controls ---

function play() {
  const start = !playing();
  still = false;
  endRest();
  ask({ paused: !start });
}

function pace(steps) {
  if (status !== null) ask({ speed: faster(status.speed, steps, status.speeds) });
}

function next() {
  if (status !== null) ask({ seed: (status.seed + 1) % 2 ** 31 });
}

function nextName() {
  if (status === null || status.names.length === 1) return;
  ask({ name: status.names[(status.names.indexOf(status.name) + 1) % status.names.length] });
}

find("play").onclick = play;
find("next").onclick = next;
find("name").onchange = () => ask({ name: find("name").value });
useSpeed((speed) => ask({ speed }), () => status?.speeds ?? [1, 1]);
useSeed((seed) => ask({ seed }), () => status?.seed ?? 0);

// The server makes keys.js from playback/keys.py.
useKeys(KEYS, HELP, {
  pause: play,
  faster: () => pace(1),
  slower: () => pace(-1),
  true_speed: () => ask({ speed: 1 }),
  next_seed: next,
  next_name: nextName,
});

connect();
