// What goes on now: alerts in words, the figures, and five minutes of charts.
import { h, morph } from "./dom.js";
import { chart } from "./charts.js";
import { count, ms, plural, rate, seconds, words } from "./format.js";
import { live } from "./live.js";
import { awayNote, stale } from "./parts.js";

const LEVELS = { wrong: "Wrong", warning: "Look", note: "Note" };
const OUTCOMES = [
  ["accepted", "--good"],
  ["replayed", "--left"],
  ["sold_out", "--held"],
  ["refused", "--dim"],
  ["fault", "--bad"],
];

export function overview() {
  const figures = h("div", {});
  const charts = {
    orders: chart("Orders a second by outcome"),
    latency: chart("Latency of orders"),
    lag: chart("Orders that wait for the ledger"),
    left: chart("Units left by campaign"),
  };
  const card = (title, one) => h("section", { class: "card" }, h("h2", {}, title), one.place);
  const el = h(
    "div",
    {},
    h("div", { class: "head" }, h("h1", {}, "Overview")),
    figures,
    h(
      "div",
      { class: "grid", id: "charts" },
      card("Orders per second", charts.orders),
      card("Latency, ms", charts.latency),
      card("Waiting for the ledger, orders", charts.lag),
      card("Units left", charts.left),
    ),
  );
  let drawn = 0,
    notBefore = 0;

  function show(picture) {
    if (!picture) return;
    figures.firstChild ? morph(figures.firstChild, tiles(picture)) : figures.append(tiles(picture));
    el.querySelector("#charts").className = `grid ${live.connected ? "" : "stale"}`;
    // On a slow machine the charts are drawn more rarely, and everything else stays quick.
    const began = performance.now();
    if (drawn === live.points.at(-1)?.at || began < notBefore) return;
    drawn = live.points.at(-1)?.at;
    drawAll(charts, picture);
    const end = performance.now();
    notBefore = end + 8 * (end - began);
  }
  return { el, title: "Overview", show, themed: () => live.picture && drawAll(charts, live.picture) };
}

function drawAll(charts, picture) {
  const points = live.points,
    x = points.map((p) => new Date(p.at));
  const pick = (name) => points.map((p) => p[name]);
  charts.orders.draw(
    OUTCOMES.map(([name, colour]) => ({ name: words(name), colour, x, y: pick(name) })),
    "/s",
    `${rate(picture.rates.accepted)} accepted a second, ${rate(picture.rates.sold_out)} sold out, ${rate(picture.rates.fault)} faults`,
  );
  charts.latency.draw(
    [
      { name: "p99", colour: "--held", x, y: pick("p99") },
      { name: "p50", colour: "--left", x, y: pick("p50") },
    ],
    "ms",
    `p50 ${ms(picture.p50_ms)}, p99 ${ms(picture.p99_ms)}`,
  );
  charts.lag.draw(
    [{ name: "orders", colour: "--left", x, y: pick("lag") }],
    "orders",
    plural(picture.intake.orders, "order"),
  );
  const names = [...new Set(points.flatMap((p) => Object.keys(p.left)))].slice(-8);
  charts.left.draw(
    names.map((name) => ({ name, x, y: points.map((p) => p.left[name] ?? null) })),
    "units",
    names.map((name) => `${name}: ${count(points.at(-1)?.left[name])}`).join(", ") || "no campaign is open",
  );
}

function tiles(picture) {
  const { rates, intake, outbox } = picture;
  const open = picture.campaigns.filter((c) => ["open", "paused"].includes(c.state));
  const seen = open.filter((c) => c.left !== undefined).length;
  const left = open.reduce((sum, c) => sum + (c.left || 0), 0),
    all = open.reduce((sum, c) => sum + (c.allocation || 0), 0);
  const dead = outbox.dead_messages + outbox.dead_orders;
  const tile = (name, value, sub, parts) =>
    h(
      "div",
      { class: `tile ${stale(picture, ...parts) || ""}` },
      h("dt", {}, name),
      h("dd", {}, value),
      h("dd", { class: "sub" }, sub),
    );
  return h(
    "div",
    {},
    alertList(picture),
    awayNote(picture, "metrics", "signs"),
    h(
      "dl",
      { class: "tiles" },
      tile("Accepted", [rate(rates.accepted), h("small", {}, " /s")], `${rate(rates.replayed)} /s sent again`, [
        "metrics",
      ]),
      tile("Sold out", [rate(rates.sold_out), h("small", {}, " /s")], `${rate(rates.refused)} /s refused otherwise`, [
        "metrics",
      ]),
      tile("Faults", [rate(rates.fault), h("small", {}, " /s")], "answered 503, safe to repeat", ["metrics"]),
      tile("Latency p99", ms(picture.p99_ms), `p50 ${ms(picture.p50_ms)}`, ["metrics"]),
      tile(
        "For the ledger",
        count(intake.orders),
        intake.orders ? `oldest ${seconds(intake.oldest_s)}` : "nothing waits",
        ["store"],
      ),
      tile(
        "Units left",
        count(left),
        !open.length
          ? "no campaign is open"
          : seen < open.length
            ? `of ${count(all)}, in ${count(seen)} of ${plural(open.length, "campaign")}: each one's page has its own`
            : `of ${count(all)} in ${plural(open.length, "campaign")}`,
        ["store", "ledger"],
      ),
      tile(
        "Messages",
        count(outbox.waiting),
        dead ? h("a", { href: "#/dead" }, `${count(dead)} dead`) : "waiting, none dead",
        ["ledger"],
      ),
      tile("Processes", count(picture.workers.length), h("a", { href: "#/workers" }, "who works on what"), ["signs"]),
    ),
  );
}

function alertList(picture) {
  const alerts = picture.alerts.slice(0, 12);
  const items = alerts.map((a) =>
    h(
      "li",
      { class: `is-${a.level}`, "data-key": a.words.slice(0, 60) },
      h("b", {}, LEVELS[a.level]),
      h("a", { href: a.link }, a.words),
    ),
  );
  if (picture.alerts.length > alerts.length)
    items.push(h("li", {}, h("b", {}, "Note"), `and ${picture.alerts.length - alerts.length} more`));
  if (!items.length)
    items.push(
      h(
        "li",
        { class: "is-fine" },
        h("b", {}, "All well"),
        h("span", {}, "every kind of process is at work, nothing is dead, audits agree"),
      ),
    );
  return h("ul", { class: "alerts", "aria-label": "Alerts" }, items);
}
