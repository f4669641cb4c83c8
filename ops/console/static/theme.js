// Before anything is drawn: the colours that were chosen here last. Nothing else is kept in the browser.
(() => {
  let chosen = "auto";
  try {
    chosen = localStorage.getItem("rushgate-theme") || "auto";
  } catch {
    /* kept nowhere, then */
  }
  document.documentElement.dataset.theme = chosen;
})();
