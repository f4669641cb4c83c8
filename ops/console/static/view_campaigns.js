// All campaigns.
import { h, morph } from "./dom.js";
import { count, plural } from "./format.js";
import { awayNote, campaignButtons, countdown, stale, statePill, stockBar, stockKey } from "./parts.js";
import { define } from "./campaign_forms.js";

const SKUS_SHOWN = 6;
const ORDER = ["recovering", "opening", "open", "paused", "draft", "closed"];

export function campaigns() {
  const list = h("div", {});
  const el = h(
    "div",
    {},
    h(
      "div",
      { class: "head" },
      h("h1", {}, "Campaigns"),
      h("span", { class: "push" }),
      h("button", { type: "button", class: "main", on: { click: define } }, "New campaign"),
    ),
    list,
  );

  function show(picture) {
    if (!picture) return;
    const fresh = h(
      "div",
      {},
      awayNote(picture, "ledger", "store"),
      picture.campaigns.length
        ? [
            stockKey(),
            h(
              "div",
              { class: `stack ${stale(picture, "ledger", "store") || ""}` },
              [...picture.campaigns].sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state)).map(campaignCard),
            ),
          ]
        : h(
            "p",
            { class: "empty" },
            "There is no campaign yet. Define one here, or with ",
            h("code", {}, "rushgate campaign apply FILE"),
            ".",
          ),
    );
    list.firstChild ? morph(list.firstChild, fresh) : list.append(fresh);
  }
  return { el, title: "Campaigns", show };
}

function campaignCard(c) {
  return h(
    "section",
    { class: "card campaign", "data-key": `c-${c.campaign}`, "aria-label": c.campaign },
    h(
      "div",
      { class: "row" },
      h("h2", {}, h("a", { href: `#/campaigns/${c.campaign}` }, c.campaign)),
      statePill(c.state),
      countdown(c),
      h("span", { class: "push" }),
      c.skus && campaignButtons(c),
    ),
    c.why && h("p", { class: "note bad" }, c.why),
    c.skus && [
      c.skus.slice(0, SKUS_SHOWN).map((s) => skuLine(c, s)),
      c.skus.length > SKUS_SHOWN &&
        h(
          "p",
          { class: "dim small" },
          h("a", { href: `#/campaigns/${c.campaign}` }, `and ${c.skus.length + c.skus_more - SKUS_SHOWN} more SKUs`),
        ),
    ],
  );
}

function skuLine(c, s) {
  const units =
    s.left === undefined
      ? `${plural(s.first, "unit")} ${c.state === "draft" ? "to come on sale" : c.state === "closed" ? "at first" : "at first; what is left is not known here"}`
      : `${count(s.left)} left · ${count(s.held)} held · ${count(s.sold)} sold of ${count(s.allocation)}`;
  return h(
    "div",
    { class: "sku", "data-key": `s-${s.sku}` },
    h(
      "div",
      { class: "line" },
      h("span", {}, h("b", {}, s.sku), s.name !== s.sku && h("span", { class: "dim" }, ` ${s.name}`)),
      h("span", { class: "dim" }, units),
    ),
    s.left !== undefined && stockBar(s),
  );
}
