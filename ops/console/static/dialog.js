// Dialogs: modal ones of the browser, so focus stays inside, Escape closes, and focus goes back where it was.
import { h, tell } from "./dom.js";
import { Problem } from "./api.js";

let number = 0;

/**
 * Asks before something is done, does it, and says what came of it. `body`: what will happen; `fields`: nodes to fill in;
 * `work(form)` does it and returns the words to tell; what goes wrong is said in the dialog, which then stays.
 */
export function ask({ title, body, fields, verb, danger = false, work }) {
  const id = `dialog-${++number}`;
  const error = h("p", { class: "error", role: "alert" });
  const cancel = h("button", { type: "button", on: { click: () => dialog.close() } }, "Cancel");
  const go = h("button", { type: "submit", class: danger ? "main danger" : "main" }, verb);
  const form = h(
    "form",
    { method: "dialog", on: { submit } },
    body,
    fields,
    error,
    h("div", { class: "buttons" }, cancel, go),
  );
  const dialog = h("dialog", { "aria-labelledby": id }, h("h2", { id }, title), form);
  const before = document.activeElement;

  async function submit(event) {
    event.preventDefault();
    if (go.disabled) return;
    go.disabled = true;
    error.textContent = "";
    try {
      const words = await work(form);
      dialog.close();
      if (words) tell(words);
    } catch (problem) {
      error.textContent = problem instanceof Problem ? problem.words : String(problem.message || problem);
      go.disabled = false;
      go.focus();
    }
  }

  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (before && before.isConnected && !before.disabled) before.focus();
      else if ([null, document.body].includes(document.activeElement)) document.getElementById("main").focus();
      resolve();
    });
    document.body.append(dialog);
    dialog.showModal();
    const first = dialog.querySelector("input, select, textarea");
    if (first)
      first.focus(); // in a form one begins to type; elsewhere Enter must not do what cannot be undone
    else cancel.focus();
  });
}

/** A labelled field. */
export function field(label, input, hint) {
  return h("label", { class: "field" }, label, input, hint && h("span", { class: "hint" }, hint));
}
