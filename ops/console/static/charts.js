// The charts: plotly, loaded when the first one is shown. Each is drawn in a place of fixed height, so nothing moves.
import { h } from "./dom.js";

const address = document.documentElement.dataset.charts;
let loading = null;

function library() {
  if (!address)
    return Promise.reject(
      new Error("the chart library is not installed (pip install '.[console]' in the project's folder)"),
    );
  loading ??= new Promise((resolve, reject) => {
    const script = h("script", { src: address });
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      loading = null;
      reject(new Error("the chart library could not be loaded"));
    };
    document.head.append(script);
  });
  return loading;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const LINES = ["--left", "--held", "--sold", "--bad", "--dim", "--accent", "--warn", "--good"];
const DASHES = ["solid", "dash", "dot", "dashdot"];

/** A chart. `draw(lines, unit)` shows lines [{name, x, y, colour?, fill?}]; `words` is what it says to who cannot see it. */
export function chart(title) {
  const place = h(
    "div",
    { class: "chart off", role: "img", "aria-label": title, "data-keep": "" },
    "Loading the chart …",
  );
  let plot = null,
    failed = false,
    last = null;
  library()
    .then((plotly) => {
      plot = plotly;
      place.classList.remove("off");
      place.textContent = "";
      if (last) draw(...last);
    })
    .catch((error) => {
      failed = true;
      place.textContent = `No chart: ${error.message}. The figures above are live.`;
    });

  function draw(lines, unit, words) {
    last = [lines, unit, words];
    place.setAttribute("aria-label", `${title}. ${words}`);
    if (!plot || failed || document.hidden || !place.isConnected) return;
    const text = colour("--dim"),
      line = colour("--line");
    const axis = {
      gridcolor: line,
      linecolor: line,
      zeroline: false,
      tickfont: { color: text, size: 11 },
      fixedrange: true,
    };
    const traces = lines.map((one, n) => ({
      x: one.x,
      y: one.y,
      name: one.name,
      mode: "lines",
      connectgaps: false,
      hovertemplate: `%{y:,.4~g} ${unit}`,
      line: {
        color: colour(one.colour || LINES[n % LINES.length]),
        width: 2,
        dash: DASHES[Math.floor(n / 2) % DASHES.length],
      },
    }));
    // With little or nothing to show, whole numbers all the same, and a line at the bottom.
    const most = Math.max(0, ...lines.flatMap((one) => one.y.map((y) => y ?? 0)));
    const upTo = most < 4 ? { range: [0, 4], dtick: 1 } : { rangemode: "tozero", nticks: 5 };
    const layout = {
      margin: { l: 44, r: 8, t: 4, b: lines.length > 1 ? 52 : 26 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      height: 230,
      font: { color: text, family: "system-ui, sans-serif", size: 12 },
      showlegend: lines.length > 1,
      hovermode: "x unified",
      legend: { orientation: "h", y: -0.16, x: 0, yanchor: "top" },
      dragmode: false,
      hoverlabel: { bgcolor: colour("--card"), bordercolor: line, font: { color: colour("--text") } },
      xaxis: { ...axis, type: "date", nticks: 5, tickformat: "%H:%M:%S" },
      yaxis: { ...axis, ...upTo, tickformat: "~s" },
    };
    plot.react(place, traces, layout, { displayModeBar: false, responsive: true });
  }
  return { place, draw };
}
