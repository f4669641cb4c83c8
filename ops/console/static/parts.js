// Pieces that several views show: what is away, a campaign's state, bars of stock, buttons of a campaign.
import { h } from "./dom.js";
import { post } from "./api.js";
import { ask, field } from "./dialog.js";
import { count, plural, seconds, windowOf } from "./format.js";
import { live, now } from "./live.js";

const NAMES = {
  store: "The store",
  ledger: "The ledger",
  metrics: "The metrics of the gateways",
  signs: "The list of processes",
};
const STATES = { open: "good", paused: "warn", draft: "", opening: "warn", closed: "", recovering: "bad" };

/** Which of these parts are away now, for a card that shows what they tell. */
export function away(picture, ...names) {
  return names.filter((name) => picture && !picture.parts[name].ok);
}

/** A line that says what cannot be seen now and how old the rest is; nothing if all is there. */
export function awayNote(picture, ...names) {
  const lines = away(picture, ...names).map((name) => {
    const { why, at } = picture.parts[name];
    const age = at ? `what is shown is ${seconds((now() - at) / 1000)} old` : "there is nothing to show yet";
    return h("p", { class: "note bad" }, `${NAMES[name]} cannot be read: ${why}; ${age}.`);
  });
  return lines.length ? h("div", {}, lines) : null;
}

export const stale = (picture, ...names) => (away(picture, ...names).length || !live.connected ? "stale" : null);

export function statePill(state) {
  return h("span", { class: `pill ${STATES[state] || ""}` }, state);
}

/** left, held and sold of an allocation, as one bar. */
export function stockBar(sku) {
  const all = Math.max(1, sku.allocation ?? sku.first);
  const parts =
    sku.left === undefined
      ? [["left", sku.first]]
      : [
          ["sold", sku.sold],
          ["held", sku.held],
          ["left", sku.left],
        ];
  let x = 0;
  return h(
    "svg",
    { class: "bar", viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" },
    parts.map(([kind, units]) => {
      const width = Math.max(0, Math.min(100 - x, (100 * units) / all));
      const rect = h("rect", { class: kind, x: x.toFixed(2), y: 0, width: width.toFixed(2), height: 12 });
      x += width;
      return rect;
    }),
  );
}

export const stockKey = () =>
  h(
    "p",
    { class: "key" },
    ["sold", "held", "left"].map((kind) => h("span", {}, h("i", { class: kind }), kind)),
  );

export function loadBar(share) {
  const width = Math.round(100 * Math.min(1, Math.max(0, share || 0)));
  return h(
    "svg",
    {
      class: "bar load",
      viewBox: "0 0 100 8",
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": `busy ${width} %`,
    },
    h("rect", { class: width > 85 ? "hot" : "", x: 0, y: 0, width, height: 8 }),
  );
}

export function countdown(campaign) {
  return campaign.opens_at && campaign.state !== "closed"
    ? h("span", { class: "dim small" }, windowOf(campaign, now()))
    : null;
}

const TURNS = {
  open: (c) =>
    c.state === "paused"
      ? {
          title: `Open ${c.campaign} again?`,
          verb: "Open",
          body: ["Orders are taken again from this moment, within the campaign's window."],
        }
      : {
          title: `Open ${c.campaign}?`,
          verb: "Open",
          body: [
            `Its stock is installed in the store, once: ${plural(
              c.skus.reduce((sum, s) => sum + s.first, 0),
              "unit",
            )} of ${plural(c.skus.length + (c.skus_more || 0), "SKU")}.`,
            `Orders are taken within its window (${windowOf(c, now())}).`,
            "From then on its SKUs, prices and order type cannot change; stock changes by restock alone.",
          ],
        },
  pause: (c) => ({
    title: `Pause ${c.campaign}?`,
    verb: "Pause",
    body: [
      "No order is taken from this moment: buyers are told that the campaign is paused.",
      "Accepted orders go on: they can be paid, cancelled and shipped. Open it again at any time.",
    ],
  }),
  close: (c) => ({
    title: `Close ${c.campaign} for good?`,
    verb: "Close for good",
    danger: true,
    body: [
      "No order is ever taken again: a closed campaign cannot be opened.",
      `What is left${c.left !== undefined ? ` (${plural(c.left, "unit")} now)` : ""} is withdrawn from the store. Accepted orders go on.`,
    ],
  }),
};
const ALLOWED = { draft: ["open"], opening: ["open"], open: ["pause", "close"], paused: ["open", "close"] };

/** The buttons that a campaign's state allows. */
export function campaignButtons(campaign, done) {
  const turns = ALLOWED[campaign.state] || [];
  const buttons = turns.map((turn) =>
    h(
      "button",
      {
        type: "button",
        class: turn === "close" ? "danger" : turn === "open" ? "main" : null,
        "data-key": turn,
        "aria-label": `${turn} ${campaign.campaign}`,
        on: { click: () => turnCampaign(campaign, turn, done) },
      },
      { open: campaign.state === "paused" ? "Open again" : "Open", pause: "Pause", close: "Close" }[turn],
    ),
  );
  if (turns.includes("close")) {
    buttons.splice(
      1,
      0,
      h(
        "button",
        {
          type: "button",
          "data-key": "restock",
          "aria-label": `restock ${campaign.campaign}`,
          on: { click: () => restock(campaign, done) },
        },
        "Restock",
      ),
    );
  }
  return h("div", { class: "buttons" }, buttons);
}

function turnCampaign(campaign, turn, done) {
  const { title, verb, body, danger } = TURNS[turn](campaign);
  return ask({
    title,
    verb,
    danger,
    body: body.map((line) => h("p", {}, line)),
    work: async () => {
      const now = await post(`campaigns/${campaign.campaign}/${turn}`);
      if (done) await done();
      return `${now.campaign} is ${now.state}.`;
    },
  });
}

function restock(campaign, done) {
  const sku = h(
    "select",
    { name: "sku", required: true },
    campaign.skus.map((s) => h("option", { value: s.sku }, s.sku)),
  );
  const units = h("input", { name: "units", type: "number", step: 1, required: true, inputmode: "numeric" });
  const says = h("p", { class: "dim", role: "status" });
  const id = `console-${[...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("")}`;
  const tellWhat = () => {
    const one = campaign.skus.find((s) => s.sku === sku.value),
      n = Number(units.value);
    if (!n || !one) says.textContent = "";
    else if (n > 0)
      says.textContent = `${plural(n, "unit")} of ${one.sku} come on sale${one.left === undefined ? "" : `: some ${count(one.left + n)} left then`}, shared out over the campaign's shards.`;
    else says.textContent = `${plural(-n, "unsold unit")} of ${one.sku} are withdrawn, if so many are left.`;
  };
  for (const node of [sku, units]) node.addEventListener("input", tellWhat);
  return ask({
    title: `Restock ${campaign.campaign}`,
    verb: "Change the stock",
    body: h(
      "p",
      {},
      "Units are added, or with a minus withdrawn. Sent twice by a bad connection, it still counts once.",
    ),
    fields: [h("div", { class: "fields" }, field("SKU", sku), field("Units", units, "e.g. 500, or -20")), says],
    work: async () => {
      const told = await post(`campaigns/${campaign.campaign}/restock`, {
        id,
        sku: sku.value,
        units: Number(units.value),
      });
      if (done) await done();
      return `${told.units > 0 ? "+" : ""}${count(told.units)} units of ${told.sku} in ${campaign.campaign}.`;
    },
  });
}
