// Who may order: channels and their keys, and who is blocked.
import { h, morph, table } from "./dom.js";
import { get, post, Problem } from "./api.js";
import { ask, field } from "./dialog.js";
import { plural, seconds, when, words } from "./format.js";
import { live, now } from "./live.js";
import { awayNote } from "./parts.js";

const EVERY_MS = 5000;

export function access() {
  let found = null,
    wrong = "",
    asked = 0;
  const place = h("div", {}, h("p", { class: "empty" }, "Loading …"));
  const el = h("div", {}, h("div", { class: "head" }, h("h1", {}, "Access")), place);

  async function load() {
    asked = Date.now();
    try {
      found = await get("access");
      wrong = "";
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      wrong = problem.words;
    }
    draw();
  }

  function draw() {
    morph(
      place.firstChild,
      h(
        "div",
        { class: "stack" },
        awayNote(live.picture, "ledger"),
        wrong && h("p", { class: "note bad" }, found ? `${wrong}; what is shown is from before.` : wrong),
        found &&
          h(
            "section",
            { class: `card ${wrong ? "stale" : ""}` },
            h(
              "div",
              { class: "head" },
              h("h2", {}, "Blocked"),
              h("span", { class: "push" }),
              h("button", { type: "button", class: "main", on: { click: () => block(load) } }, "Block"),
            ),
            blocks(found, load),
          ),
        found &&
          h(
            "section",
            { class: `card ${wrong ? "stale" : ""}` },
            h("h2", {}, "Channels"),
            channels(found),
            h(
              "p",
              { class: "dim small" },
              "Keys are made, rotated and revoked by ",
              h("code", {}, "rushgate channel"),
              ", which shows a new key once; no key passes this page.",
            ),
          ),
      ),
    );
  }
  load();
  return {
    el,
    title: "Access",
    show: () => {
      if (Date.now() - asked > EVERY_MS && !document.hidden) load();
    },
  };
}

function blocks(found, load) {
  const rows = found.blocks.map((b) => ({
    key: `${b.kind} ${b.value}`,
    cells: [
      h("b", { class: "mono" }, b.value),
      b.kind,
      b.reason || "–",
      when(b.created_at),
      b.until_at ? when(b.until_at) : "for good",
      h(
        "button",
        { type: "button", "aria-label": `unblock ${b.value}`, on: { click: () => unblock(b, load) } },
        "Unblock",
      ),
    ],
  }));
  return [
    table("Blocks in force", [["Who"], ["Kind"], ["Why"], ["Since"], ["Until"], [""]], rows, "Nobody is blocked."),
    found.blocks_more > 0 && h("p", { class: "dim small" }, `and ${found.blocks_more} more: rushgate block list`),
  ];
}

function channels(found) {
  const added = found.channels.map((c) => ({
    key: c.channel,
    cells: [
      h("b", {}, c.channel),
      c.state === "active" ? h("span", { class: "pill good" }, "active") : h("span", { class: "pill bad" }, c.state),
      keys(c),
      c.campaigns ? c.campaigns.join(", ") || "none" : "all",
      Object.entries(c.rates)
        .map(([k, v]) => `${words(k)} ${v}`)
        .join(", ") || "as the settings say",
    ],
  }));
  const names = new Set(found.channels.map((c) => c.channel));
  const fixed = found.of_settings
    .filter((name) => !names.has(name))
    .map((name) => ({
      key: name,
      cells: [
        h("b", {}, name),
        h("span", { class: "pill good" }, "active"),
        "of the settings (RUSHGATE_CHANNEL_KEYS)",
        "all",
        "as the settings say",
      ],
    }));
  return table(
    "Channels",
    [["Channel"], ["State"], ["Keys"], ["Campaigns"], ["Rates"]],
    [...added, ...fixed],
    "No channel can send orders: add one with rushgate channel add.",
  );
}

function keys(channel) {
  const open = channel.keys.filter((k) => ["active", "expiring"].includes(k.state));
  const ending = open
    .filter((k) => k.expires_at)
    .map((k) => `${k.key_id} ends in ${seconds(Math.max(0, Date.parse(k.expires_at) - now()) / 1000)}`);
  return [
    plural(open.length, `${[...new Set(open.map((k) => k.kind))].join(" and ")} key`.trim()),
    ending.length > 0 && h("div", { class: "dim small" }, ending.join(", ")),
  ];
}

function block(load) {
  const kind = h(
    "select",
    { name: "kind" },
    h("option", { value: "buyer" }, "buyer"),
    h("option", { value: "ip" }, "address or network"),
  );
  const hours = h("input", {
    name: "hours",
    type: "number",
    min: 0.1,
    step: "any",
    inputmode: "decimal",
    placeholder: "for good",
  });
  return ask({
    title: "Block",
    verb: "Block",
    danger: true,
    body: h(
      "p",
      {},
      "New orders of theirs are refused within a second, on every gateway. Orders that were accepted go on.",
    ),
    fields: h(
      "div",
      { class: "fields" },
      field("Kind", kind),
      field(
        "Who",
        h("input", { name: "value", required: true, maxlength: 64, autocomplete: "off" }),
        "a buyer's id; 192.0.2.7 or 192.0.2.0/24",
      ),
      field("For so many hours", hours),
      field("Why", h("input", { name: "reason", maxlength: 200 }), "goes on record"),
    ),
    work: async (form) => {
      const e = form.elements,
        spec = { kind: kind.value, value: e.value.value.trim(), reason: e.reason.value };
      if (hours.value) spec.for_s = Number(hours.value) * 3600;
      const told = await post("access/block", spec);
      await load();
      return told.in_force
        ? `${told.value} is blocked.`
        : `${told.value} is blocked in the ledger; the gateways hear of it once the store is back.`;
    },
  });
}

function unblock(b, load) {
  return ask({
    title: `Unblock ${b.value}?`,
    verb: "Unblock",
    body: h("p", {}, "They may order again within a second."),
    work: async () => {
      await post("access/unblock", { kind: b.kind, value: b.value });
      await load();
      return `${b.value} may order again.`;
    },
  });
}
