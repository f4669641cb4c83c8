// The live feed: one connection per page; it comes again by itself, and what was seen last stays.
import { base } from "./api.js";

const KEEP = 300;
const SILENT_MS = 15000; // without a picture the feed's connection is dead, whatever the browser knows of it
export const live = { picture: null, points: [], gotAt: 0, connected: false };
const watchers = new Set();
let source = null;
let retry = 0;
let closed = () => {};
let heard = 0; // when the feed was begun, or last told anything
let skew = 0; // the console's clock less ours, ms

/** The console's time now, ms. */
export const now = () => Date.now() + skew;

export function watch(handler) {
  watchers.add(handler);
  return () => watchers.delete(handler);
}

function changed() {
  for (const handler of [...watchers]) handler(live.picture);
}

export function connect(onClosed) {
  disconnect();
  clearTimeout(retry);
  closed = onClosed;
  heard = Date.now();
  source = new EventSource(`${base}/api/live`);
  source.addEventListener("history", (event) => {
    live.points = JSON.parse(event.data).points;
  });
  source.addEventListener("picture", (event) => {
    const picture = JSON.parse(event.data);
    live.picture = picture;
    live.gotAt = heard = Date.now();
    live.connected = true;
    skew = picture.at - live.gotAt;
    const last = live.points.at(-1);
    if (picture.point && (!last || last.at < picture.point.at))
      live.points = [...live.points, picture.point].slice(-KEEP);
    changed();
  });
  source.addEventListener("over", () => {
    disconnect();
    onClosed();
  });
  source.onerror = () => {
    live.connected = false;
    changed();
    if (source && source.readyState === EventSource.CLOSED) {
      disconnect();
      clearTimeout(retry);
      retry = setTimeout(onClosed, 1500);
    }
  };
}

export function disconnect() {
  if (source) source.close();
  source = null;
  live.connected = false;
}

// The page's own second: countdowns go on, and what is old shows its age, also without a feed.
setInterval(() => {
  // A machine that slept, or a way that is cut without a word, closes nothing: a new connection is tried.
  if (source && source.readyState !== EventSource.CLOSED && Date.now() - heard > SILENT_MS) connect(closed);
  changed();
}, 1000);
