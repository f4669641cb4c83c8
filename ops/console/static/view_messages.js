// The outbox and the dead letters: what waits, what nobody could deliver, and what becomes of it.
import { h, morph, table } from "./dom.js";
import { get, post, Problem } from "./api.js";
import { ask, field } from "./dialog.js";
import { count, plural, when } from "./format.js";
import { live } from "./live.js";
import { awayNote } from "./parts.js";

export function messages(kind, params) {
  const dead = kind === "dead";
  const topic = h("select", { name: "topic", on: { change: go } }, h("option", { value: "" }, "All topics"));
  const order = h("input", {
    name: "order",
    value: params.get("order") || "",
    maxlength: 36,
    placeholder: "any order",
    autocomplete: "off",
    spellcheck: "false",
  });
  const place = h("div", {}, h("p", { class: "empty" }, "Loading …"));
  const el = h(
    "div",
    {},
    h("div", { class: "head" }, h("h1", {}, "Messages")),
    h(
      "div",
      { class: "tabs" },
      [
        ["outbox", "Outbox"],
        ["dead", "Dead letters"],
      ].map(([to, name]) => h("a", { href: `#/${to}`, "aria-current": to === kind && "page" }, name)),
    ),
    h(
      "form",
      {
        class: "search",
        on: {
          submit: (event) => {
            event.preventDefault();
            go();
          },
        },
      },
      field("Order id", order),
      field("Topic", topic),
      h("button", { type: "submit" }, "Filter"),
    ),
    place,
  );
  let found = null,
    wrong = "",
    asked = 0;
  // What was filtered by, and is shown; what somebody types is none of it before it is sent.
  const wanted = params.get("topic") || "",
    only = (params.get("order") || "").trim();

  function go() {
    const query = new URLSearchParams();
    if (topic.value) query.set("topic", topic.value);
    if (order.value.trim()) query.set("order", order.value.trim());
    location.hash = `#/${kind}${query.size ? `?${query}` : ""}`;
  }

  async function load() {
    asked = Date.now();
    try {
      found = await get(`${kind}?${new URLSearchParams({ topic: wanted, order: only })}`);
      wrong = "";
      if (topic.options.length === 1) {
        for (const name of found.topics) topic.append(h("option", { value: name }, name));
        topic.value = wanted;
      }
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      wrong = problem.words;
    }
    draw();
  }

  const chosen = () => (only || wanted ? { order: only, topic: wanted } : { all: true });
  const which = () =>
    [wanted && `of the topic ${wanted}`, only && `of order ${only}`].filter(Boolean).join(" ") || "all there are";

  function act(action, body, words) {
    const says = {
      replay: dead
        ? [
            "Put back?",
            "They are put back: messages into the outbox, orders into the intake, with all their attempts before them.",
            "Put back",
          ]
        : [
            "Try now?",
            "What waits after a failed attempt is due now. What is due already, or with a relay, needs no help.",
            "Try now",
          ],
      drop: [
        "Give up for good?",
        "Messages are gone, nothing of them stays. Orders stay on record as given up, and their units go on sale again. This cannot be undone.",
        "Give up for good",
      ],
    }[action];
    return ask({
      title: says[0],
      verb: says[2],
      danger: action === "drop",
      body: [h("p", {}, says[1]), h("p", {}, "It is about ", h("b", {}, words), ".")],
      work: async () => {
        const done = await post(`${kind}/${action}`, body);
        await load();
        const parts = [plural(done.messages, "message"), dead && plural(done.orders, "order")]
          .filter(Boolean)
          .join(" and ");
        const stays = done.stays.length ? ` ${done.stays.length} stay: ${done.stays[0]}` : "";
        return dead
          ? `${parts} ${action === "drop" ? "given up" : "put back"}.${stays}`
          : `${parts} made due now, ${count(done.due)} due already, ${count(done.taken)} with a relay.`;
      },
    });
  }

  function draw() {
    const rows = (found?.rows || []).map((r) => ({
      key: `${r.order_id}${r.entry || ""}-${r.topic}-${r.version ?? ""}`,
      cells: [
        r.order_id
          ? h("a", { class: "mono", href: `#/orders/${r.order_id}` }, r.order_id)
          : h("span", { class: "mono" }, r.entry),
        r.topic,
        when(r.at),
        r.stands ||
          (r.dead_at ? [`dead since `, when(r.dead_at), `, ${plural(r.attempts, "attempt")}: ${r.reason}`] : r.reason),
        r.order_id &&
          h(
            "button",
            {
              type: "button",
              "aria-label": `${dead ? "put back" : "try now"} ${r.topic} of ${r.order_id}`,
              on: {
                click: () => act("replay", { order: r.order_id, topic: r.topic }, `${r.topic} of order ${r.order_id}`),
              },
            },
            dead ? "Put back" : "Try now",
          ),
      ],
    }));
    const bar =
      rows.length > 0 &&
      h(
        "div",
        { class: "buttons", "data-key": "bar" },
        h(
          "button",
          {
            type: "button",
            class: dead ? "main" : null,
            on: { click: () => act("replay", chosen(), which()) },
          },
          dead ? "Put all of these back" : "Try all of these now",
        ),
        dead &&
          h(
            "button",
            { type: "button", class: "danger", on: { click: () => act("drop", chosen(), which()) } },
            "Give all of these up",
          ),
      );
    const fresh = h(
      "div",
      {},
      awayNote(live.picture, "ledger"),
      wrong && h("p", { class: "note bad" }, found ? `${wrong}; what is shown is from before.` : wrong),
      found &&
        h(
          "section",
          { class: `card stack ${wrong ? "stale" : ""}` },
          bar,
          table(
            dead ? "Dead letters" : "Messages that wait",
            [["Order"], ["Topic"], ["Came to be"], [dead ? "Why" : "How it stands"], [""]],
            rows,
            dead
              ? "Nothing is dead: every message was delivered or waits, every accepted order is in the ledger or on its way."
              : "Nothing waits.",
          ),
          found.more &&
            h("p", { class: "dim small" }, `The oldest ${rows.length} are shown; the buttons above are about all.`),
        ),
    );
    morph(place.firstChild, fresh);
  }

  load();
  return {
    el,
    title: dead ? "Dead letters" : "Outbox",
    show: () => {
      if (Date.now() - asked > 2500 && !document.hidden) load();
    },
  };
}
