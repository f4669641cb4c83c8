// How things are written: numbers, money, durations, moments.
import { h } from "./dom.js";

const whole = new Intl.NumberFormat("en");
const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const count = (n) => (n === null || n === undefined ? "–" : whole.format(Math.round(n)));
export const rate = (n) =>
  n === null || n === undefined ? "–" : n >= 100 ? whole.format(Math.round(n)) : one.format(n);
export const words = (name) => name.replaceAll("_", " ");
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} ms`;
  if (value < 1000) return `${Math.round(value)} ms`;
  return seconds(value / 1000);
}

export function seconds(s) {
  if (s < 59.95) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
  s = Math.round(s);
  if (s < 3600) return `${Math.floor(s / 60)} m ${s % 60} s`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} m`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** An amount in minor units, as its currency is written. */
export function money(amount, currency) {
  try {
    const format = new Intl.NumberFormat("en", { style: "currency", currency, currencyDisplay: "code" });
    return format.format(amount / 10 ** format.resolvedOptions().maximumFractionDigits).replace(/\u00a0/g, " ");
  } catch {
    return `${count(amount)} minor units of ${currency}`;
  }
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-CA", { year: "numeric", month: "2-digit", day: "2-digit" });

/** A moment in the reader's own time; the tooltip has it in UTC. */
export function when(text, fine = false) {
  if (!text) return "–";
  const at = new Date(text);
  const date = day.format(at) === day.format(new Date()) ? "" : `${day.format(at)} `;
  const part = fine ? `.${String(at.getMilliseconds()).padStart(3, "0")}` : "";
  return h("time", { datetime: text, title: `${text} (UTC)` }, `${date}${clock.format(at)}${part}`);
}

/** Where a campaign's window stands at `now` (ms): opens in, closes in, over since. */
export function windowOf(campaign, now) {
  const opens = Date.parse(campaign.opens_at),
    closes = Date.parse(campaign.closes_at);
  if (now < opens) return `opens in ${seconds((opens - now) / 1000)}`;
  if (now < closes) return closes - now > 365 * 86400e3 ? "window open" : `closes in ${seconds((closes - now) / 1000)}`;
  return `window over for ${seconds((now - closes) / 1000)}`;
}
