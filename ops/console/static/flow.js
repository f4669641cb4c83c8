// An order's way drawn over its flow: across where there is room, down where there is not.
import { h } from "./dom.js";
import { seconds, ms, words } from "./format.js";

const BOX = { w: 124, h: 40 };
const WIDE = { x: 172, y: 92 },
  TALL = { x: 150, y: 84 };

/** The flow as one picture. `room`: width to draw in, px. */
export function flowPicture(drawing, room) {
  const across = room >= 760;
  const step = across ? WIDE : TALL;
  const at = new Map(
    drawing.places.map((p) => {
      const [a, b] = across ? [p.column, p.row] : [p.row, p.column];
      return [p.state, { x: 10 + a * step.x, y: 46 + b * step.y, ...p }];
    }),
  );
  const wide = Math.max(...[...at.values()].map((p) => p.x)) + BOX.w + 34;
  const high = Math.max(...[...at.values()].map((p) => p.y)) + BOX.h + 14;
  const seen = new Set(drawing.visited);
  const lines = drawing.moves.map((move) => edge(move, at, across));
  const boxes = drawing.places.map((p) => {
    const here = at.get(p.state);
    const kind = [p.state === drawing.now ? "now" : seen.has(p.state) ? "seen" : "unseen", p.end && "end"]
      .filter(Boolean)
      .join(" ");
    return h(
      "g",
      { class: kind },
      h("title", {}, p.name),
      h("rect", { class: "box", x: here.x, y: here.y, width: BOX.w, height: BOX.h, rx: 8 }),
      h("text", { x: here.x + BOX.w / 2, y: here.y + BOX.h / 2 + 4.5, "text-anchor": "middle" }, words(p.state)),
    );
  });
  const made = drawing.moves.flatMap((m) => m.made.map((one) => ({ ...one, to: m.to }))).sort((a, b) => a.n - b.n);
  const told = made.map((one) => `${one.n}: ${words(one.action)}, ${words(one.to)}`).join("; ");
  return h(
    "svg",
    {
      class: "flow",
      viewBox: `0 0 ${wide} ${high}`,
      role: "img",
      width: wide,
      height: high,
      "aria-label": `The order's way over its flow, now ${words(drawing.now)}. ${told || "No move yet."}`,
    },
    lines.map((l) => l.under),
    lines.map((l) => l.over),
    boxes,
    lines.map((l) => l.top),
  );
}

function edge(move, at, across) {
  const a = at.get(move.from),
    b = at.get(move.to);
  const { path, middle, tip, angle, told } = route(a, b, across);
  const did = move.made.length > 0;
  const head = h("path", {
    class: did ? "tip on" : "tip",
    d: "M0 0L-9 -4.5L-9 4.5Z",
    transform: `translate(${tip.x} ${tip.y}) rotate(${angle})`,
  });
  const line = h(
    "path",
    { class: did ? "did" : "may", d: path },
    h("title", {}, `${words(move.from)} → ${words(move.to)}: ${move.actions.map(words).join(", ")}`),
  );
  if (!did) return { under: [line, head], over: null, top: null };
  const waited = move.made.at(-1).waited_ms;
  const time = waited >= 1000 ? seconds(waited / 1000) : ms(waited);
  const numbers = move.made.map((m) => m.n).join(",");
  return {
    under: null,
    over: [line, head],
    top: h(
      "g",
      {},
      h("circle", { class: "badge", cx: middle.x, cy: middle.y, r: 9 }),
      h("text", { x: middle.x, y: middle.y + 4, "text-anchor": "middle" }, numbers),
      h("text", { class: "time", x: middle.x + told.x, y: middle.y + told.y, "text-anchor": told.anchor }, time),
    ),
  };
}

/** The way of an arrow from box to box: straight to a neighbour, else a bow that leaves the line between free. */
function route(a, b, across) {
  const ca = { x: a.x + BOX.w / 2, y: a.y + BOX.h / 2 },
    cb = { x: b.x + BOX.w / 2, y: b.y + BOX.h / 2 };
  const dx = Math.sign(cb.x - ca.x),
    dy = Math.sign(cb.y - ca.y);
  const sameRow = ca.y === cb.y,
    sameColumn = ca.x === cb.x;
  const step = across ? WIDE : TALL;
  const near = sameRow ? Math.abs(cb.x - ca.x) <= step.x : sameColumn ? Math.abs(cb.y - ca.y) <= step.y : false;
  let from, to, c1, c2;
  let told = { x: 0, y: -13, anchor: "middle" }; // where the time stands, beside the number
  if (sameRow && near) {
    const shift = dx < 0 ? 11 : -9; // there and back are two lines
    if (dx < 0) told = { x: 0, y: 22, anchor: "middle" };
    from = { x: ca.x + (dx * BOX.w) / 2, y: ca.y + shift };
    to = { x: cb.x - (dx * BOX.w) / 2, y: cb.y + shift };
    c1 = from;
    c2 = to;
  } else if (sameColumn && near) {
    const shift = dy < 0 ? 14 : -14;
    told = dy < 0 ? { x: 13, y: 4, anchor: "start" } : { x: -13, y: 4, anchor: "end" };
    from = { x: ca.x + shift, y: ca.y + (dy * BOX.h) / 2 };
    to = { x: cb.x + shift, y: cb.y - (dy * BOX.h) / 2 };
    c1 = from;
    c2 = to;
  } else if (sameRow) {
    const bow = 26 + Math.abs(cb.x - ca.x) * 0.06;
    from = { x: ca.x + dx * 30, y: ca.y - BOX.h / 2 };
    to = { x: cb.x - dx * 30, y: cb.y - BOX.h / 2 };
    c1 = { x: from.x, y: from.y - bow };
    c2 = { x: to.x, y: to.y - bow };
  } else if (sameColumn) {
    const bow = 30 + Math.abs(cb.y - ca.y) * 0.06;
    from = { x: ca.x + BOX.w / 2, y: ca.y + dy * 8 };
    to = { x: cb.x + BOX.w / 2, y: cb.y - dy * 8 };
    c1 = { x: from.x + bow, y: from.y };
    c2 = { x: to.x + bow, y: to.y };
  } else {
    const shift = dy < 0 ? 14 : -6;
    from = { x: ca.x + dx * 24 + shift, y: ca.y + (dy * BOX.h) / 2 };
    to = { x: cb.x - dx * 24 + shift, y: cb.y - (dy * BOX.h) / 2 };
    const half = (to.y - from.y) / 2;
    c1 = { x: from.x, y: from.y + half };
    c2 = { x: to.x, y: to.y - half };
  }
  const middle = { x: (from.x + 3 * c1.x + 3 * c2.x + to.x) / 8, y: (from.y + 3 * c1.y + 3 * c2.y + to.y) / 8 };
  const end = c2.x === to.x && c2.y === to.y ? from : c2;
  const angle = (Math.atan2(to.y - end.y, to.x - end.x) * 180) / Math.PI;
  return {
    path: `M${from.x} ${from.y}C${c1.x} ${c1.y} ${c2.x} ${c2.y} ${to.x} ${to.y}`,
    middle,
    tip: to,
    angle,
    told,
  };
}
