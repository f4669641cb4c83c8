// A small way to make nodes, and to bring a tree to a new state without losing focus, selection or open menus.

const SVG = "http://www.w3.org/2000/svg";
const IN_SVG = new Set([
  "svg",
  "path",
  "rect",
  "circle",
  "g",
  "text",
  "tspan",
  "title",
  "defs",
  "marker",
  "line",
  "polyline",
]);

/** A node. `props`: attributes; `on` is {event: handler}; what is null, undefined or false is left out. */
export function h(tag, props, ...kids) {
  const node = IN_SVG.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (name === "on") listen(node, value);
    else if (name === "value") node.value = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  add(node, kids);
  return node;
}

function add(node, kids) {
  for (const kid of kids) {
    if (Array.isArray(kid)) add(node, kid);
    else if (kid instanceof Node) node.append(kid);
    else if (kid !== null && kid !== undefined && kid !== false) node.append(String(kid));
  }
}

function listen(node, handlers) {
  node._on = { ...(node._on || {}), ...handlers };
  node._listens = node._listens || new Set();
  for (const type of Object.keys(handlers)) {
    if (node._listens.has(type)) continue;
    node._listens.add(type);
    node.addEventListener(type, (event) => node._on[type] && node._on[type](event));
  }
}

/** `old` becomes like `fresh`, node by node: `data-key` tells which child is which. */
export function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || old.dataset?.key !== fresh.dataset?.key) {
    old.replaceWith(fresh);
    return fresh;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return old;
  }
  if (old.dataset?.keep !== undefined) return old; // whoever made it looks after it
  for (const { name } of [...old.attributes])
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  old._on = fresh._on;
  if (fresh._on) listen(old, fresh._on);
  if (old.matches("input, select, textarea")) return old; // what somebody types stays
  const named = new Map([...old.children].filter((c) => c.dataset?.key).map((c) => [c.dataset.key, c]));
  let at = old.firstChild;
  for (const kid of [...fresh.childNodes]) {
    const key = kid.dataset?.key;
    const same = key ? named.get(key) : at;
    if (same && same !== at) old.insertBefore(same, at);
    if (same) at = morph(same, kid).nextSibling;
    else old.insertBefore(kid, at);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
  return old;
}

/** A table; `columns`: [heading, is a number]; on a phone its rows fold into cards. */
export function table(caption, columns, rows, empty) {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  const head = columns.map(([name, num]) => h("th", { scope: "col", class: num && "num" }, name));
  const body = rows.map(({ key, cells }) =>
    h(
      "tr",
      { "data-key": key },
      cells.map((cell, n) => h("td", { class: columns[n][1] && "num", "data-label": columns[n][0] }, cell)),
    ),
  );
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "fold" },
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, head)),
      h("tbody", {}, body),
    ),
  );
}

/** A list of terms and their meanings; what is empty is left out. */
export function facts(...pairs) {
  return h(
    "dl",
    { class: "facts" },
    pairs
      .filter(([, v]) => v !== null && v !== undefined && v !== "")
      .map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]),
  );
}

let toldCount = 0;
/** Says what was done, or what went wrong, where everybody hears of it. */
export function tell(words, bad = false) {
  const box = document.getElementById("told");
  const note = h(
    "div",
    { class: bad && "bad", "data-key": `told-${++toldCount}` },
    h("span", {}, words),
    h("button", { type: "button", class: "quiet", "aria-label": "Dismiss", on: { click: () => note.remove() } }, "×"),
  );
  box.append(note);
  while (box.children.length > 4) box.firstChild.remove();
  if (!bad) setTimeout(() => note.remove(), 8000);
}
