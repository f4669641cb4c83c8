// What an operator fills in: a new campaign, or changes of one.
import { h } from "./dom.js";
import { post } from "./api.js";
import { ask, field } from "./dialog.js";
import { words } from "./format.js";

const local = (text) => {
  const at = new Date(text);
  return new Date(at - at.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
};
const moment = (input) => new Date(input.value).toISOString();
export const numberInput = (name, value, more) =>
  h("input", { name, type: "number", min: 1, step: 1, inputmode: "numeric", value: value ?? "", ...more });

function limitFields(limits) {
  return h(
    "div",
    { class: "fields" },
    [
      ["buyer", "Per buyer"],
      ["buyer_sku", "Per buyer and SKU"],
      ["ip", "Per IP"],
      ["device", "Per device"],
    ].map(([name, label]) => field(label, numberInput(`limit_${name}`, limits[name], { placeholder: "no limit" }))),
  );
}

function limitsOf(form) {
  const found = {};
  for (const name of ["buyer", "buyer_sku", "ip", "device"])
    if (form.elements[`limit_${name}`].value) found[name] = Number(form.elements[`limit_${name}`].value);
  return found;
}

export function change(one, load) {
  const opens = h("input", { name: "opens_at", type: "datetime-local", required: true, value: local(one.opens_at) });
  const closes = h("input", {
    name: "closes_at",
    type: "datetime-local",
    required: true,
    value: local(one.closes_at),
  });
  return ask({
    title: `Change ${one.campaign}`,
    verb: "Change",
    body: h(
      "p",
      {},
      one.state === "draft"
        ? "A draft can be changed as you like; its SKUs by applying a file."
        : "Window, limits and time to pay change at once, for orders from now on.",
    ),
    fields: [
      h(
        "div",
        { class: "fields" },
        field("Opens (your time)", opens),
        field("Closes (your time)", closes),
        field("Time to pay, s", numberInput("pay_within_s", one.pay_within_s, { required: true })),
      ),
      h("h3", {}, "Limits, units"),
      limitFields(one.limits),
    ],
    work: async (form) => {
      const spec = {
        ...one.definition,
        // The fields know no seconds: what was not touched stays as it is.
        opens_at: opens.value === local(one.opens_at) ? one.opens_at : moment(opens),
        closes_at: closes.value === local(one.closes_at) ? one.closes_at : moment(closes),
        pay_within_s: Number(form.elements.pay_within_s.value),
        limits: limitsOf(form),
      };
      await post(`campaigns/${one.campaign}?version=${one.version}`, spec);
      await load();
      return `${one.campaign} is changed.`;
    },
  });
}

export function define() {
  const start = new Date(Date.now() + 5 * 60000),
    end = new Date(Date.now() + 125 * 60000);
  const rows = h("div", { class: "stack" });
  let n = 0;
  const addRow = () => {
    n += 1;
    const row = h(
      "div",
      { class: "fields", role: "group", "aria-label": `SKU ${n}` },
      field("SKU", h("input", { name: "sku", required: true, maxlength: 64, autocomplete: "off" })),
      field("Name", h("input", { name: "sku_name", maxlength: 200 })),
      field("Units", numberInput("stock", "", { required: true, min: 0 })),
      field("Price, minor units", numberInput("price", "", { required: true, min: 0 })),
    );
    rows.append(row);
    return row;
  };
  addRow();
  const more = h(
    "button",
    { type: "button", on: { click: () => addRow().querySelector("input").focus() } },
    "Another SKU",
  );
  const fields = [
    h(
      "div",
      { class: "fields" },
      field(
        "Name",
        h("input", { name: "campaign", required: true, maxlength: 64, autocomplete: "off" }),
        "a-z, 0-9, _ and -",
      ),
      field(
        "Order type",
        h(
          "select",
          { name: "order_type" },
          ["goods", "virtual", "reserve_at_payment"].map((t) => h("option", { value: t }, words(t))),
        ),
      ),
      field(
        "Opens (your time)",
        h("input", { name: "opens_at", type: "datetime-local", required: true, value: local(start) }),
      ),
      field(
        "Closes (your time)",
        h("input", { name: "closes_at", type: "datetime-local", required: true, value: local(end) }),
      ),
      field(
        "Currency",
        h("input", { name: "currency", required: true, pattern: "[A-Z]{3}", value: "CNY", maxlength: 3 }),
      ),
      field("Time to pay, s", numberInput("pay_within_s", 900, { required: true })),
      field("Spread, shards", numberInput("spread", 1, { required: true })),
    ),
    h("h3", {}, "Limits, units"),
    limitFields({}),
    h("h3", {}, "What is sold"),
    rows,
    more,
  ];
  return ask({
    title: "New campaign",
    verb: "Define as a draft",
    fields,
    body: h(
      "p",
      {},
      "Nothing is sold before you open it. Discounts, channels and delivery times: ",
      h("code", {}, "rushgate campaign apply FILE"),
      ".",
    ),
    work: async (form) => {
      const e = form.elements,
        each = (name) => [...form.querySelectorAll(`[name=${name}]`)].map((i) => i.value);
      const [skus, names, stocks, prices] = ["sku", "sku_name", "stock", "price"].map(each);
      const spec = {
        order_type: e.order_type.value,
        opens_at: moment(e.opens_at),
        closes_at: moment(e.closes_at),
        currency: e.currency.value,
        pay_within_s: Number(e.pay_within_s.value),
        spread: Number(e.spread.value),
        limits: limitsOf(form),
        skus: skus.map((sku, k) => ({
          sku,
          name: names[k] || sku,
          stock: Number(stocks[k]),
          price: Number(prices[k]),
        })),
      };
      const told = await post(`campaigns/${encodeURIComponent(e.campaign.value)}`, spec);
      location.hash = `#/campaigns/${told.campaign}`;
      return `${told.campaign} is a draft: open it when all is right.`;
    },
  });
}
