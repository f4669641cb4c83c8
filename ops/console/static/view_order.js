// One order: where it stands, what may be done, its money, and its way drawn over its flow.
import { facts, h, morph, table } from "./dom.js";
import { get, post, Problem } from "./api.js";
import { ask, field } from "./dialog.js";
import { count, money, ms, plural, seconds, when, words } from "./format.js";
import { flowPicture } from "./flow.js";
import { statePill } from "./parts.js";

const DANGER = new Set(["cancel", "lost", "too_late", "provision_failed"]);
const SAYS = {
  cancel: "The order is cancelled. What was paid goes back to the buyer, and its units go on sale again.",
  suspend: "The warehouse is told not to pick it, until it is resumed.",
  resume: "It goes on from where it was suspended.",
  lost: "The goods are gone or broken: the buyer gets the money back, and no units come back on sale.",
};
const EVERY_MS = 2000;

export function order(id) {
  let story = null,
    wrong = "",
    asked = 0,
    leaving = false;
  const place = h("div", {}, h("p", { class: "empty" }, "Loading …"));
  const el = h("div", {}, place);

  async function load() {
    asked = Date.now();
    try {
      story = await get(`orders/${id}`);
      wrong = "";
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      wrong = problem.words;
    }
    if (!leaving) draw();
  }

  function draw() {
    const fresh = h(
      "div",
      {},
      head(id, story),
      wrong &&
        h(
          "p",
          { class: "note bad" },
          story ? `${wrong}; what is shown is ${seconds((Date.now() - asked) / 1000)} old or more.` : wrong,
        ),
      story && h("div", { class: `stack ${wrong ? "stale" : ""}` }, body(id, story, load, el.clientWidth || 800)),
    );
    morph(place.firstChild, fresh);
  }
  const resized = () => story && draw();
  window.addEventListener("resize", resized);
  load();
  return {
    el,
    title: `Order ${id.slice(0, 8)}`,
    show: () => {
      if (Date.now() - asked > EVERY_MS && !document.hidden) load();
    },
    leave: () => {
      leaving = true;
      window.removeEventListener("resize", resized);
    },
  };
}

function head(id, story) {
  return h(
    "div",
    { class: "head" },
    h("h1", {}, "Order ", h("span", { class: "mono" }, id)),
    story && statePill(story.order.state),
    story && h("span", { class: "dim" }, story.name),
  );
}

function body(id, story, load, width) {
  const o = story.order,
    currency = o.currency;
  const doable = story.buttons.filter((step) => step !== "refund");
  const others = Object.entries(story.allowed)
    .filter(([actor]) => actor !== "operator")
    .map(([actor, steps]) => `${actor}: ${steps.map(words).join(", ")}`);
  return [
    story.note && h("p", { class: "note" }, story.note),
    h(
      "section",
      { class: "card" },
      h(
        "div",
        { class: "head" },
        h("h2", {}, "What may be done now"),
        h("span", { class: "push" }),
        story.ended && h("span", { class: "pill good" }, "at an end"),
      ),
      h(
        "div",
        { class: "buttons" },
        doable.map((step) =>
          h(
            "button",
            {
              type: "button",
              "data-key": step,
              class: DANGER.has(step) ? "danger" : null,
              on: { click: () => move(id, step, load) },
            },
            words(step),
          ),
        ),
        story.buttons.includes("refund") &&
          h("button", { type: "button", "data-key": "refund", on: { click: () => refund(id, story, load) } }, "refund"),
        !story.buttons.length && h("span", { class: "dim" }, "Nothing by an operator."),
      ),
      others.length > 0 && h("p", { class: "dim small", style: null }, `Others may: ${others.join("; ")}`),
    ),
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Its way"),
      h(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "Flow of the order" },
        flowPicture(story.drawing, width - 40),
      ),
    ),
    h(
      "div",
      { class: "grid" },
      h(
        "section",
        { class: "card" },
        h("h2", {}, "Order"),
        facts(
          ["Campaign", h("a", { href: `#/campaigns/${o.campaign}` }, o.campaign)],
          ["Type", words(story.order_type)],
          ["Channel", o.channel],
          ["Buyer", h("a", { href: `#/search?${new URLSearchParams({ q: o.buyer_id })}` }, o.buyer_id)],
          ["From", [story.client_ip, story.device_id].filter(Boolean).join(", ")],
          ["Request key", story.request_key && h("span", { class: "mono" }, story.request_key)],
          ["Accepted", when(o.accepted_at, true)],
          ["Pay by", when(o.pay_by)],
          ["Timer", story.timer_at && when(story.timer_at)],
          ["Ship to", o.ship_to && Object.values(o.ship_to).filter(Boolean).join(", ")],
          ["Hold in the store", story.hold],
          ["Number", story.seq && `${count(story.seq)} of epoch ${story.epoch}, version ${o.version}`],
        ),
      ),
      h(
        "section",
        { class: "card" },
        h("h2", {}, "Items and money"),
        table(
          "Items",
          [["SKU"], ["Units", 1], ["Price", 1], ["Costs", 1]],
          o.items.map((i) => ({
            key: i.sku,
            cells: [i.sku, count(i.quantity), money(i.price, currency), money(i.price * i.quantity, currency)],
          })),
          "",
        ),
        facts(
          ["Discount", o.discount ? money(o.discount, currency) : null],
          ["To pay", h("b", {}, money(o.amount, currency))],
          ...balance(story),
        ),
        payments(story),
        refunds(id, story, load),
      ),
    ),
    h(
      "div",
      { class: "grid" },
      h(
        "section",
        { class: "card" },
        h("h2", {}, "Step by step"),
        story.steps?.length
          ? h("ol", { class: "steps" }, story.steps.map(stepLine))
          : h("p", { class: "dim" }, "The ledger does not have it yet."),
      ),
      h("section", { class: "card" }, h("h2", {}, "Messages"), messagesOf(id, story)),
    ),
  ];
}

function stepLine(s) {
  const waited = s.waited_ms ? `after ${s.waited_ms >= 1000 ? seconds(s.waited_ms / 1000) : ms(s.waited_ms)}` : "";
  if (s.kind !== "move")
    return h(
      "li",
      { class: "delivery" },
      h(
        "div",
        { class: "line" },
        h("span", { class: "dim" }, `message ${s.what} delivered`),
        h(
          "span",
          { class: "waited" },
          when(s.at, true),
          ` ${waited}, in ${ms(s.worked_ms || 0)}${s.attempts > 1 ? `, attempt ${s.attempts}` : ""}`,
        ),
      ),
    );
  const way =
    s.from_state === s.to_state
      ? `stays ${words(s.to_state)}`
      : `${s.from_state ? `${words(s.from_state)} → ` : ""}${words(s.to_state)}`;
  return h(
    "li",
    {},
    h(
      "div",
      { class: "line" },
      h("b", {}, words(s.what)),
      h("span", {}, way),
      h("span", { class: "waited" }, when(s.at, true), waited && ` ${waited}`),
    ),
    h("div", { class: "dim small" }, `by ${s.actor}${s.reason ? `: ${words(s.reason)}` : ""}`),
  );
}

function balance(story) {
  if (!story.payments?.length && !story.refunds?.length) return [["Paid", "nothing yet"]];
  const currency = story.order.currency,
    sum = (list, states) =>
      (list || []).filter((r) => states.includes(r.state ?? r.status)).reduce((all, r) => all + r.amount, 0);
  const paid = sum(story.payments, ["paid"]),
    done = sum(story.refunds, ["done"]),
    onWay = sum(story.refunds, ["approved"]);
  return [
    ["Paid", money(paid, currency)],
    ["Refunded", done ? money(done, currency) : null],
    ["Refund on its way", onWay ? money(onWay, currency) : null],
    ["Left to refund", money(paid - done - onWay, currency)],
  ];
}

function payments(story) {
  if (!story.payments?.length) return null;
  return [
    h("h3", {}, "Payments"),
    table(
      "Payments",
      [["Number"], ["Status"], ["Amount", 1], ["Came"]],
      story.payments.map((p) => ({
        key: p.payment_no,
        cells: [h("span", { class: "mono" }, p.payment_no), p.status, money(p.amount, p.currency), when(p.at)],
      })),
      "",
    ),
  ];
}

function refunds(id, story, load) {
  if (!story.refunds?.length) return null;
  const decide = (r, decision, verb) =>
    h(
      "button",
      {
        type: "button",
        "aria-label": `${decision} ${r.refund_no}`,
        on: {
          click: () =>
            ask({
              title: `${verb} ${r.refund_no}?`,
              verb,
              danger: decision === "reject",
              body: h(
                "p",
                {},
                {
                  approve: "The payment centre is asked to pay it back.",
                  reject: "The buyer hears that it was rejected.",
                  confirm: "The centre has paid back and never said so: it is taken as done, at your word.",
                }[decision],
              ),
              work: async () => {
                const done = await post(`orders/${id}/refunds/${r.refund_no}/${decision}`);
                await load();
                return `Refund ${done.refund_no}: ${done.state}.`;
              },
            }),
        },
      },
      verb,
    );
  return [
    h("h3", {}, "Refunds"),
    table(
      "Refunds",
      [["Number"], ["State"], ["Amount", 1], ["Why"], [""]],
      story.refunds.map((r) => ({
        key: r.refund_no,
        cells: [
          h("span", { class: "mono" }, r.refund_no),
          r.state,
          money(r.amount, r.currency),
          words(r.reason || ""),
          h(
            "div",
            { class: "buttons" },
            r.state === "requested" && [decide(r, "approve", "Approve"), decide(r, "reject", "Reject")],
            r.state === "approved" && decide(r, "confirm", "Confirm"),
          ),
        ],
      })),
      "",
    ),
  ];
}

function messagesOf(id, story) {
  const waiting = (story.waiting || []).map((w) => ({
    key: `w${w.topic}${w.version}`,
    cells: [w.topic, "waits", story.stands[`${w.topic} ${w.version}`]],
  }));
  const dead = (story.dead || []).map((d) => ({
    key: `d${d.topic}${d.version}`,
    cells: [d.topic, h("span", { class: "pill bad" }, "dead"), `${plural(d.attempts, "attempt")}: ${d.reason}`],
  }));
  return [
    table("Messages", [["Topic"], [""], ["How it stands"]], [...dead, ...waiting], "Nothing waits, nothing is dead."),
    dead.length > 0 && h("p", {}, h("a", { href: `#/dead?order=${id}` }, "To its dead letters")),
    waiting.length > 0 && h("p", {}, h("a", { href: `#/outbox?order=${id}` }, "To its messages in the outbox")),
    story.repairs?.length > 0 && [
      h("h3", {}, "Repairs of its hold"),
      story.repairs.map((r) => h("p", { class: "small" }, when(r.at), ` ${r.what}: ${r.why}`)),
    ],
  ];
}

function move(id, step, load) {
  return ask({
    title: `${words(step)[0].toUpperCase()}${words(step).slice(1)}?`,
    verb: words(step),
    danger: DANGER.has(step),
    body: [
      h(
        "p",
        {},
        SAYS[step] ||
          "The order makes this step of its flow, by an operator; partners and buyer hear of it as the flow says.",
      ),
      h("p", { class: "dim mono small" }, id),
    ],
    work: async () => {
      const done = await post(`orders/${id}/actions/${step}`);
      await load();
      return `The order is ${words(done.state)}.`;
    },
  });
}

function refund(id, story, load) {
  const amount = h("input", { name: "amount", type: "number", min: 1, step: 1, inputmode: "numeric" });
  return ask({
    title: "Refund",
    verb: "Refund",
    danger: true,
    body: h(
      "p",
      {},
      "Money goes back: the payment centre is asked for it at once. The order itself goes on; to stop it, cancel it.",
    ),
    fields: h(
      "div",
      { class: "fields" },
      field("Amount, minor units", amount, `of ${story.order.currency}; empty: all that is left`),
      field("Reason", h("input", { name: "reason", maxlength: 200 }), "goes on record"),
    ),
    work: async (form) => {
      const done = await post(`orders/${id}/refunds`, {
        ...(amount.value ? { amount: Number(amount.value) } : {}),
        reason: form.elements.reason.value,
      });
      await load();
      return done.repeated
        ? "It was asked for before: nothing more is paid back."
        : `Refund ${done.refund_no}: ${done.state}.`;
    },
  });
}
