// One campaign, shard by shard.
import { facts, h, morph, table, tell } from "./dom.js";
import { get, post, Problem } from "./api.js";
import { ask, field } from "./dialog.js";
import { count, money, plural, rate, seconds, when, words } from "./format.js";
import { now } from "./live.js";
import { campaignButtons, countdown, statePill, stockBar, stockKey } from "./parts.js";
import { change } from "./campaign_forms.js";

export function campaign(name) {
  let one = null,
    gone = "",
    audit = null,
    auditing = false,
    leaving = false;
  const place = h("div", {}, h("p", { class: "empty" }, "Loading …"));
  const el = h("div", {}, place);

  async function load() {
    try {
      one = await get(`campaigns/${encodeURIComponent(name)}`);
      gone = "";
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      gone = problem.words;
    }
    if (!leaving) draw();
  }

  async function judge() {
    auditing = true;
    draw();
    try {
      audit = await get(`campaigns/${encodeURIComponent(name)}/audit`);
      tell(audit.ok ? `The audit of ${name} is ok.` : `The audit of ${name} is NOT ok.`, !audit.ok);
    } catch (problem) {
      tell(problem.words || problem.message, true);
    }
    auditing = false;
    if (!leaving) draw();
  }

  function draw() {
    const fresh = h(
      "div",
      {},
      head(name, one, load),
      gone &&
        h(
          "p",
          { class: "note bad" },
          one ? `${gone}; what is shown is ${seconds((now() - one.read_at) / 1000)} old.` : gone,
        ),
      one?.store_why &&
        h(
          "p",
          { class: "note bad" },
          `The store cannot be read: ${one.store_why}. ${one.units_at ? `The units are ${seconds((now() - one.units_at) / 1000)} old.` : "Its units are not known now."}`,
        ),
      one?.skus && h("div", { class: gone || one.store_why ? "stale" : null }, body(one, audit, auditing, judge, load)),
    );
    morph(place.firstChild, fresh);
  }

  let loading = false;
  async function show(picture) {
    if (!picture || loading || document.hidden) return;
    const seen = picture.campaigns.find((c) => c.campaign === name);
    if (one && (one.read_at > now() - 900 || (one.state === "closed" && seen?.version === one.version))) return draw();
    loading = true;
    await load();
    loading = false;
  }
  load();
  return {
    el,
    title: name,
    show,
    leave: () => {
      leaving = true;
    },
  };
}

function head(name, one, load) {
  return h(
    "div",
    { class: "head" },
    h("h1", {}, name),
    one && statePill(one.state),
    one?.skus && countdown(one),
    h("span", { class: "push" }),
    one?.state === "draft" &&
      h("button", { type: "button", "data-key": "edit", on: { click: () => change(one, load) } }, "Change"),
    one &&
      ["open", "paused"].includes(one.state) &&
      h("button", { type: "button", "data-key": "edit", on: { click: () => change(one, load) } }, "Window and limits"),
    one?.skus && campaignButtons(one, load),
  );
}

function waitingRoom(room, load) {
  const mode = room.mode === "auto" ? "finds its rate by itself" : "admits at the rate that was set";
  return h(
    "section",
    { class: "card" },
    h(
      "div",
      { class: "head" },
      h("h2", {}, "Waiting room"),
      h("span", { class: "pill" }, room.phase),
      h("span", { class: "push" }),
      h("button", { type: "button", "data-key": "rate", on: { click: () => admit(room, load) } }, "Change the rate"),
    ),
    facts(
      ["Waiting", count(room.waiting)],
      ["Admitted", `${count(room.admitted)} of ${count(room.joined)}; ${count(room.lapsed)} let their time pass`],
      ["Rate", `${rate(room.rate)} /s; it ${mode}`],
      ["Drawn by lot", room.drawn === null ? "not yet" : `${count(room.drawn)}, seed ${room.seed}`],
    ),
  );
}

function admit(room, load) {
  const mode = h(
    "select",
    { name: "mode" },
    h("option", { value: "auto" }, "finds it by itself"),
    h("option", { value: "fixed", selected: room.mode === "fixed" }, "fixed"),
  );
  const each = h("input", {
    name: "rate",
    type: "number",
    min: 0,
    max: 100000,
    step: 1,
    inputmode: "numeric",
    value: room.mode === "fixed" ? room.rate : "",
  });
  return ask({
    title: `Admission to ${room.campaign}`,
    verb: "Change the rate",
    body: h(
      "p",
      {},
      "So many buyers a second are let in from the line, from the next second on. 0 lets nobody in: the line stands.",
    ),
    fields: h("div", { class: "fields" }, field("Rate", mode), field("Buyers a second", each, "of a fixed rate")),
    work: async () => {
      // An empty field is no number; as one it would be 0, and the line would stand.
      if (mode.value === "fixed" && each.value === "")
        throw new Error("Buyers a second: say how many; 0 lets nobody in");
      const told = await post(
        `campaigns/${room.campaign}/room`,
        mode.value === "fixed" ? { mode: "fixed", rate: Number(each.value) } : { mode: "auto" },
      );
      await load();
      return `The waiting room of ${told.campaign} ${told.mode === "auto" ? "finds its rate by itself" : `admits ${rate(told.rate)} a second`}.`;
    },
  });
}

function body(one, audit, auditing, judge, load) {
  const limits =
    [
      ...Object.entries(one.limits).map(([k, v]) => `${v} per ${words(k)}`),
      ...Object.entries(one.definition?.channel_shares || {}).map(([k, v]) => `${count(v)} by channel ${k}`),
    ].join(", ") || "none";
  const rates =
    one.definition &&
    (Object.entries(one.definition.rates || {})
      .map(([k, v]) => `${v} per ${words(k)}`)
      .join(", ") ||
      "as the settings say");
  const rows = one.skus.map((s) => ({
    key: s.sku,
    cells: [
      [h("b", {}, s.sku), s.name !== s.sku && h("div", { class: "dim small" }, s.name)],
      money(s.price, one.currency),
      ...["left", "held", "sold", "allocation"].map((p) => count(s[p])),
      s.left === undefined ? "" : stockBar(s),
    ],
  }));
  const shards = one.shards.flatMap((shard) =>
    Object.entries(shard.units).map(([sku, u], n) => ({
      key: `${shard.shard}-${sku}`,
      cells: [
        n ? "" : String(shard.shard),
        sku,
        count(u.left),
        count(u.held),
        count(u.sold),
        count(u.allocation),
        n ? "" : count(shard.accepted),
        n ? "" : count(shard.intake),
      ],
    })),
  );
  return [
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Stock"),
      one.skus.some((s) => s.left !== undefined) && stockKey(),
      table(
        "Stock of each SKU",
        [["SKU"], ["Price", 1], ["Left", 1], ["Held", 1], ["Sold", 1], ["Allocation", 1], [""]],
        rows,
        "No SKU.",
      ),
      one.in_service === false &&
        ["open", "paused"].includes(one.state) &&
        !one.store_why &&
        h(
          "p",
          { class: "note bad" },
          "The store does not hold this campaign as the ledger has it: it is out of service until it is rebuilt.",
        ),
    ),
    one.room && waitingRoom(one.room, load),
    h(
      "div",
      { class: "grid" },
      h(
        "section",
        { class: "card" },
        h("h2", {}, "Definition"),
        facts(
          ["Window", [when(one.opens_at), " to ", when(one.closes_at)]],
          ["Order type", words(one.order_type)],
          ["Time to pay", seconds(one.pay_within_s)],
          ["Limits (units)", limits],
          ["Rates", rates],
          ["Admission", one.definition && words(one.definition.admission || "open")],
          ["Channels", one.channels ? one.channels.join(", ") : "all"],
          ["Spread", plural(one.spread, "shard")],
          ["Version, epoch", `${one.version}, ${one.epoch}`],
          ["Accepted orders", one.accepted === undefined ? null : count(one.accepted)],
        ),
      ),
      h(
        "section",
        { class: "card" },
        h(
          "div",
          { class: "head" },
          h("h2", {}, "Audit"),
          h("span", { class: "push" }),
          h(
            "button",
            { type: "button", disabled: auditing || one.state === "draft", on: { click: judge } },
            auditing ? "Judging …" : "Judge the balance now",
          ),
        ),
        auditResult(audit),
      ),
    ),
    one.shards.length
      ? h(
          "section",
          { class: "card" },
          h("h2", {}, "Shard by shard"),
          table(
            "Units on each shard",
            [
              ["Shard"],
              ["SKU"],
              ["Left", 1],
              ["Held", 1],
              ["Sold", 1],
              ["Allocation", 1],
              ["Accepted", 1],
              ["Waiting", 1],
            ],
            shards,
            "",
          ),
        )
      : null,
  ];
}

function auditResult(audit) {
  if (!audit)
    return h(
      "p",
      { class: "dim" },
      "The reconcile worker audits all the time and raises an alert when something is wrong. This judges store, intake and ledger now.",
    );
  const wrong = ["oversold", "lost", "phantom", "duplicated", "over_limit"]
    .filter((k) => audit[k])
    .map((k) => `${words(k)} ${count(audit[k])}`);
  return h(
    "div",
    {},
    h(
      "p",
      {},
      h("span", { class: `pill ${audit.ok ? "good" : "bad"}` }, audit.ok ? "ok" : "not ok"),
      ` ${count(audit.accepted)} accepted, ${count(audit.persisted)} in the ledger, ${count(audit.in_flight)} on their way, ${count(audit.unsold)} units unsold`,
    ),
    wrong.length > 0 && h("p", { class: "note bad" }, wrong.join(", ")),
    audit.gap > 0 && h("p", {}, `${count(audit.gap)} orders were lost by the store before a rebuild.`),
    audit.findings.slice(0, 20).map((f) => h("p", { class: "small mono" }, f)),
  );
}
