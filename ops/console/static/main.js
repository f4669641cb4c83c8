// The page: who is logged in, which view is shown, whether the feed lives.
import { h, tell } from "./dom.js";
import { get, onSessionLost, post, useSession } from "./api.js";
import { field } from "./dialog.js";
import { seconds } from "./format.js";
import { connect, disconnect, live, watch } from "./live.js";
import { overview } from "./view_overview.js";
import { campaign } from "./view_campaign.js";
import { campaigns } from "./view_campaigns.js";
import { workers } from "./view_workers.js";
import { messages } from "./view_messages.js";
import { access } from "./view_access.js";
import { search } from "./view_search.js";
import { order } from "./view_order.js";

const VIEWS = [
  ["overview", "Overview"],
  ["campaigns", "Campaigns"],
  ["workers", "Workers"],
  ["outbox", "Messages"],
  ["search", "Search"],
  ["access", "Access"],
];
const main = document.getElementById("main"),
  nav = document.getElementById("nav"),
  state = document.getElementById("state");
const logout = document.getElementById("logout"),
  theme = document.getElementById("theme");
let shown = null,
  session = null;

nav.append(
  h(
    "ul",
    {},
    VIEWS.map(([to, name]) =>
      h(
        "li",
        {},
        h("a", { href: `#/${to}`, id: `nav-${to}` }, h("span", {}, name), h("span", { class: "count", hidden: true })),
      ),
    ),
  ),
);

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // not one of our links
  }
}

function viewOf(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split("?");
  const [name, arg] = path.split("/").map(decoded),
    params = new URLSearchParams(query);
  if (name === "campaigns") return ["campaigns", arg ? campaign(arg) : campaigns()];
  if (name === "workers") return ["workers", workers()];
  if (name === "outbox" || name === "dead") return ["outbox", messages(name, params)];
  if (name === "access") return ["access", access()];
  if (name === "search") return ["search", search(params)];
  if (name === "orders" && arg) return ["search", order(arg)];
  return ["overview", overview()];
}

function route(focus = true) {
  if (!session) return;
  shown?.leave?.();
  const [place, view] = viewOf(location.hash);
  shown = view;
  document.title = `${view.title} · Rushgate console`;
  for (const [to] of VIEWS) {
    const link = document.getElementById(`nav-${to}`);
    if (to === place) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.replaceChildren(view.el);
  window.scrollTo(0, 0);
  if (focus) main.focus({ preventScroll: true });
  view.show(live.picture);
}

function showState() {
  const age = (Date.now() - live.gotAt) / 1000;
  const [kind, text] = !session
    ? ["", "not logged in"]
    : live.connected && age < 4
      ? ["good", "live"]
      : live.gotAt
        ? ["bad", `no connection, ${seconds(age)} old`]
        : ["warn", "connecting"];
  if (state.textContent !== text) {
    state.textContent = text;
    state.className = `pill ${kind}`;
  }
  // Its age changes each second: said once, not read out again and again.
  state.setAttribute("aria-live", kind === "bad" ? "off" : "polite");
}

watch((picture) => {
  showState();
  if (!session) return;
  if (picture) {
    const badge = document.querySelector("#nav-outbox .count"),
      dead = picture.outbox.dead_messages + picture.outbox.dead_orders;
    badge.hidden = !dead;
    badge.textContent = String(dead);
    badge.setAttribute("aria-label", `${dead} dead`);
    if (live.gotAt && Date.now() - live.gotAt > 4000) live.connected = false;
  }
  shown?.show(picture);
});

function logIn(why = "") {
  session = null;
  useSession(null);
  disconnect();
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close(); // it would lie over the login
  shown?.leave?.();
  shown = null;
  live.picture = null;
  live.points = [];
  live.gotAt = 0;
  nav.hidden = logout.hidden = true;
  document.body.classList.add("alone");
  const token = h("input", { type: "password", name: "token", required: true, autocomplete: "current-password" });
  const error = h("p", { class: "error", role: "alert" }, why),
    go = h("button", { type: "submit", class: "main" }, "Log in");
  const who = h("input", {
    class: "hidden",
    name: "username",
    autocomplete: "username",
    value: "operator",
    tabindex: -1,
    "aria-hidden": "true",
  });
  const form = h(
    "form",
    { on: { submit } },
    who,
    field("Admin token", token, "RUSHGATE_ADMIN_TOKEN; `rushgate up` prints it"),
    error,
    go,
  );
  main.replaceChildren(h("section", { class: "card login" }, h("h1", {}, "Rushgate console"), form));
  document.title = "Log in · Rushgate console";
  token.focus();
  showState();

  async function submit(event) {
    event.preventDefault();
    go.disabled = true;
    error.textContent = "";
    try {
      begin(await post("login", { token: token.value }), true);
    } catch (problem) {
      error.textContent = problem.words || problem.message;
      go.disabled = false;
      token.select();
    }
  }
}

function begin(told, focus) {
  session = told;
  useSession(told);
  document.body.classList.remove("alone");
  nav.hidden = logout.hidden = false;
  connect(check);
  route(focus);
}

/** The feed was refused or is over: is the session, or only the console's process away? */
async function check() {
  try {
    const told = await get("session");
    if (!told) logIn(session ? "Your session is over: log in again." : "");
    else if (session) {
      session = told;
      useSession(told);
      connect(check);
    } else begin(told, false);
  } catch (problem) {
    if (!session && !live.picture) logIn(problem.words || "");
    else setTimeout(check, 2000);
  }
}

document.querySelector(".skip").addEventListener("click", (event) => {
  // its address would be taken for a view's
  event.preventDefault();
  main.focus();
});
onSessionLost(() => {
  const was = session;
  logIn(was ? "Your session is over: log in again." : "");
});
window.addEventListener("hashchange", () => route());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) shown?.show(live.picture);
});
logout.addEventListener("click", async () => {
  try {
    await post("logout");
  } catch {
    /* the cookie may be over already */
  }
  logIn("You are logged out.");
  tell("You are logged out.");
});
theme.value = document.documentElement.dataset.theme;
theme.addEventListener("change", () => {
  document.documentElement.dataset.theme = theme.value;
  try {
    localStorage.setItem("rushgate-theme", theme.value);
  } catch {
    /* for this page only, then */
  }
  shown?.themed?.();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shown?.themed?.());
check();
