// Calls to the console's own process. The session is a cookie that no script can read; actions carry the page's token.

export const base = document.documentElement.dataset.base;
let csrf = "";
let lost = () => {};

/** What a call was answered with when it was not what was asked for. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `the console answered ${status}`);
    this.status = status;
    this.code = body.code || "";
    this.field = body.field || "";
    this.allowed = body.allowed;
  }

  get words() {
    return this.field ? `${this.field}: ${this.message}` : this.message;
  }
}

export function useSession(session) {
  csrf = session ? session.csrf : "";
}
export function onSessionLost(handler) {
  lost = handler;
}

async function call(method, path, body, signal) {
  let answer;
  try {
    answer = await fetch(`${base}/api/${path}`, {
      method,
      signal,
      credentials: "same-origin",
      cache: "no-store",
      headers: method === "GET" ? {} : { "content-type": "application/json", "x-rushgate-csrf": csrf },
      body: method === "GET" ? undefined : JSON.stringify(body ?? {}),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "the console's process cannot be reached" });
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const told = await answer.json().catch(() => ({}));
  if (answer.status === 401 && path !== "login") lost();
  throw new Problem(answer.status, told);
}

export const get = (path, signal) => call("GET", path, undefined, signal);
export const post = (path, body) => call("POST", path, body);
