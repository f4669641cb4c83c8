// Finding orders by what is at hand.
import { h, table } from "./dom.js";
import { get } from "./api.js";
import { field } from "./dialog.js";
import { money, plural, when } from "./format.js";
import { live } from "./live.js";
import { statePill } from "./parts.js";

export function search(params) {
  const text = h("input", {
    name: "q",
    type: "search",
    value: params.get("q") || "",
    required: true,
    maxlength: 64,
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "order id, buyer, request key or payment number",
  });
  const campaign = h(
    "select",
    { name: "campaign" },
    h("option", { value: "" }, "All campaigns"),
    (live.picture?.campaigns || []).map((c) =>
      h("option", { value: c.campaign, selected: c.campaign === params.get("campaign") }, c.campaign),
    ),
  );
  const place = h("div", { "aria-live": "polite" });
  const el = h(
    "div",
    {},
    h("div", { class: "head" }, h("h1", {}, "Search")),
    h(
      "form",
      { class: "search", role: "search", on: { submit } },
      field("What to look for", text),
      field("Campaign", campaign),
      h("button", { type: "submit", class: "main" }, "Search"),
    ),
    place,
  );

  function submit(event) {
    event.preventDefault();
    const query = new URLSearchParams({ q: text.value.trim() });
    if (campaign.value) query.set("campaign", campaign.value);
    if (location.hash === `#/search?${query}`) look();
    else location.hash = `#/search?${query}`;
  }

  async function look() {
    if (!params.get("q")) {
      place.replaceChildren(
        h(
          "p",
          { class: "empty" },
          "An order is found from the moment of its 202, whether the ledger has it yet or not.",
        ),
      );
      return;
    }
    place.replaceChildren(h("p", { class: "empty" }, "Looking …"));
    try {
      const told = await get(`search?${params}`);
      const ids = new Set(told.hits.flatMap((hit) => hit.orders.map((o) => o.order_id)));
      place.replaceChildren(...told.hits.filter((hit) => hit.orders.length || hit.why).map(group));
      if (!ids.size && !told.hits.some((hit) => hit.why))
        place.replaceChildren(
          h("p", { class: "empty" }, `Nothing is called “${told.q}”: no order, buyer, request key or payment number.`),
        );
      if (ids.size === 1 && told.hits[0].by === "order id") location.replace(`#/orders/${[...ids][0]}`);
    } catch (problem) {
      place.replaceChildren(h("p", { class: "note bad", role: "alert" }, problem.words || problem.message));
    }
  }
  look();
  if (!params.get("q")) setTimeout(() => text.focus());
  return { el, title: "Search", show: () => {} };
}

function group(hit) {
  const rows = hit.orders.map((o) => ({
    key: o.order_id,
    cells: [
      h("a", { class: "mono", href: `#/orders/${o.order_id}` }, o.order_id),
      o.campaign,
      o.buyer_id,
      statePill(o.state),
      money(o.amount, o.currency),
      when(o.accepted_at),
    ],
  }));
  return h(
    "section",
    { class: "card" },
    h("h2", {}, `By ${hit.by}: ${plural(rows.length, "order")}${hit.more ? " and more" : ""}`),
    hit.why && h("p", { class: "note" }, hit.why),
    rows.length > 0 &&
      table(
        `Orders by ${hit.by}`,
        [["Order"], ["Campaign"], ["Buyer"], ["State"], ["Amount", 1], ["Accepted"]],
        rows,
        "",
      ),
  );
}
