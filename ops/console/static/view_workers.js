// Which processes live, what they do, how many there shall be, and what the tuning advice is.
import { h, morph, table } from "./dom.js";
import { get, post } from "./api.js";
import { ask, field } from "./dialog.js";
import { count, plural, rate, seconds } from "./format.js";
import { live, now } from "./live.js";
import { awayNote, loadBar, stale } from "./parts.js";

const WORK = {
  gateway: "takes orders over HTTP",
  ledger: "writes accepted orders into the ledger",
  expiry: "does what time brings about",
  relay: "carries messages to the store and to partners",
  reconcile: "audits all the time, mends, raises alerts",
  console: "shows this page",
};
const WITHOUT = {
  ledger: "accepted orders stay in the store and are not written into the ledger",
  expiry: "unpaid orders keep their units, and nothing is completed by time",
  relay: "messages wait: units do not come back, partners hear nothing",
  reconcile: "nothing is audited or mended, and a store that is started anew stays shut",
};

export function workers() {
  let stack = null,
    asking = false;
  const place = h("div", {}),
    result = h("div", { "aria-live": "polite" }, tuning(null));

  async function load() {
    try {
      stack = await get("workers");
    } catch (problem) {
      stack = { children: [], why: problem.message };
    }
    show(live.picture);
  }

  const number = (name, placeholder) =>
    h("input", { name, type: "number", min: 1, step: "any", inputmode: "decimal", placeholder });
  const form = h(
    "form",
    {
      class: "fields",
      on: {
        submit: (event) => {
          event.preventDefault();
          tune();
        },
      },
    },
    field("Orders a second", number("rate", "as they come now")),
    field("A spike of orders on top", number("spike", "none")),
    field("To be cleared in, s", number("clear_in", "60")),
    h("button", { type: "submit", class: "low" }, "What is needed?"),
  );
  const el = h(
    "div",
    {},
    h("div", { class: "head" }, h("h1", {}, "Workers")),
    place,
    h("section", { class: "card after" }, h("h2", {}, "Tuning advice"), form, result),
  );

  async function tune() {
    if (asking) return;
    asking = true;
    result.replaceChildren(h("p", { class: "empty" }, "Measuring for three seconds …"));
    let advice;
    try {
      advice = await get(`tune?${new URLSearchParams([...new FormData(form)].filter(([, v]) => v))}`);
    } catch (problem) {
      advice = { error: problem.words || problem.message };
    }
    asking = false;
    result.replaceChildren(tuning(advice));
  }

  function scale(kind, target) {
    const fewer = target < running(stack, kind);
    return ask({
      title: `Run ${count(target)} ${kind} ${target === 1 ? "process" : "processes"}?`,
      verb: target === 0 ? `Stop all ${kind}` : "Scale",
      danger: target === 0,
      body: [
        h("p", {}, `Now ${running(stack, kind)} run on this machine; a ${kind} process ${WORK[kind]}.`),
        h(
          "p",
          {},
          fewer
            ? "The last ones started finish what they have in hand and stop; nothing is lost by it."
            : "It starts at once; more than the machine has cores for makes all slower.",
        ),
        target === 0 && h("p", { class: "note bad" }, `Without one ${WITHOUT[kind]}.`),
      ],
      work: async () => {
        stack = await post("workers/scale", { kind, count: target });
        show(live.picture);
        return `${kind}: ${running(stack, kind)} run.`;
      },
    });
  }

  function show(picture) {
    if (!picture) return;
    const rows = picture.workers.map((w) => ({
      key: w.id,
      cells: [
        h("b", {}, w.kind),
        h("span", { class: "mono" }, `${w.host} · ${w.pid}`),
        w.reads,
        `${rate(w.rate)} /s`,
        w.lag_orders ? `${count(w.lag_orders)}${w.lag_s ? `, ${seconds(w.lag_s)}` : ""}` : "–",
        h("span", {}, loadBar(w.busy)),
        `${Math.round(100 * (w.busy || 0))} %`,
        seconds(Math.max(0, (now() - w.seen_at) / 1000)),
      ],
    }));
    const fresh = h(
      "div",
      { class: "stack" },
      awayNote(picture, "signs"),
      stack && !stack.why && scaling(stack, picture, scale),
      h(
        "section",
        { class: `card ${stale(picture, "signs") || ""}` },
        h("h2", {}, "Who works on what"),
        table(
          "Living processes",
          [
            ["Kind"],
            ["Host · process"],
            ["Works on"],
            ["Does", 1],
            ["Behind by", 1],
            ["Busy"],
            ["", 1],
            ["Last sign", 1],
          ],
          rows,
          "No process has given a sign of life in the last 5 seconds.",
        ),
      ),
      stack?.why &&
        h(
          "p",
          { class: "dim small" },
          "Nothing can be scaled from here: no ",
          h("code", {}, "rushgate up"),
          " runs on this console's machine. Elsewhere the system that runs the processes scales them.",
        ),
    );
    place.firstChild ? morph(place.firstChild, fresh) : place.append(fresh);
  }
  load();
  return { el, title: "Workers", show };
}

const running = (stack, kind) => stack.children.filter((c) => c.kind === kind && c.state !== "stopping").length;

function scaling(stack, picture, scale) {
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "Processes of this machine’s stack"),
    h(
      "div",
      { class: "grid" },
      Object.entries(stack.least).map(([kind, least]) => {
        const n = running(stack, kind);
        const restarts = stack.children.filter((c) => c.kind === kind).reduce((sum, c) => sum + c.restarts, 0);
        return h(
          "div",
          { class: "buttons scale", "data-key": kind, role: "group", "aria-label": kind },
          h(
            "button",
            {
              type: "button",
              class: "square",
              "aria-label": `one ${kind} less`,
              disabled: n <= least,
              on: { click: () => scale(kind, n - 1) },
            },
            "−",
          ),
          h("b", { class: "num", "aria-live": "polite" }, count(n)),
          h(
            "button",
            {
              type: "button",
              class: "square",
              "aria-label": `one ${kind} more`,
              disabled: n >= stack.most,
              on: { click: () => scale(kind, n + 1) },
            },
            "+",
          ),
          h(
            "span",
            {},
            h("b", {}, kind),
            h("div", { class: "dim small" }, WORK[kind], restarts > 0 && `; started again ${plural(restarts, "time")}`),
          ),
        );
      }),
    ),
  );
}

function tuning(advice) {
  if (!advice)
    return h(
      "p",
      { class: "dim" },
      "How many processes of each kind hold a rate and clear a spike, reckoned with what is measured for three seconds. ",
      h("code", {}, "rushgate tune"),
      " can also add a process, measure, and remove it.",
    );
  if (advice.error) return h("p", { class: "note bad" }, advice.error);
  const { target } = advice,
    more = new Map(advice.one_more.map((step) => [step.kind, step]));
  const rows = Object.entries(advice.processes).map(([kind, n]) => ({
    key: kind,
    cells: [
      h("b", {}, kind),
      count(advice.running[kind]),
      h("b", { class: n > advice.running[kind] ? "pill warn" : null }, count(n)),
      `${count(advice.assumptions[kind].per_second)} /s`,
      advice.origins[`${kind}.per_second`] || "assumed",
      more.has(kind) ? more.get(kind).why || `${rate(more.get(kind).adds)} /s more` : "",
    ],
  }));
  const wish = `To hold ${count(target.rate)} orders/s${target.spike ? ` and have a spike of ${count(target.spike)} more in the ledger within ${seconds(target.clear_in_s)}` : ""}`;
  const [bound] = advice.bounds;
  return h(
    "div",
    {},
    h(
      "p",
      {},
      h("span", { class: `pill ${advice.fits ? "good" : "bad"}` }, advice.fits ? "can be done" : "cannot be done"),
      ` ${wish}: ${count(advice.reached_per_s)} orders/s pass with the processes advised.`,
      target.spike > 0 &&
        advice.clear_s !== null &&
        ` The spike is in the ledger ${seconds(advice.clear_s)} after its first order.`,
    ),
    table(
      "Processes advised",
      [["Kind"], ["Now", 1], ["Advised", 1], ["One does", 1], ["As"], ["One more adds"]],
      rows,
      "",
    ),
    bound && h("p", {}, h("b", {}, "Next bottleneck: "), `${bound.what}, at ${count(bound.orders_per_s)} orders/s.`),
    advice.notes.map((note) => h("p", { class: "dim small" }, note)),
  );
}
