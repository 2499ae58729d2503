// The state of the view. It is stored in the URL, so a view can be reloaded, bookmarked and shared.

const DEFAULTS = {
  tab: "runs",
  q: "",
  sort: "-started",
  runs: [],
  run: "", // of the tab "run"
  metrics: [],
  splits: [],
  x: "step",
  logx: false,
  logy: false,
  smooth: 0,
  group: false,
  value: "best", // of the tab "compare"
  sql: "",
};
const MOST_IN_ADDRESS = 300; // runs; URLs have a limited length

export const state = { ...DEFAULTS };
const listeners = [];

export const onChange = (listener) => listeners.push(listener);

/** Change the state; listeners get the set of changed keys. */
export function change(values) {
  const changed = new Set(Object.keys(values).filter((key) => different(state[key], values[key])));
  if (!changed.size) return;
  Object.assign(state, values);
  write();
  for (const listener of listeners) listener(changed);
}

const different = (a, b) => (Array.isArray(a) ? a !== b && a.join("\n") !== b.join("\n") : a !== b);

function write() {
  const parts = [];
  for (const [key, standard] of Object.entries(DEFAULTS)) {
    const value = state[key];
    if (!different(value, standard)) continue;
    const items = Array.isArray(value) ? value.slice(0, MOST_IN_ADDRESS) : [typeof value === "boolean" ? 1 : value];
    parts.push(`${key}=${items.map(encodeURIComponent).join(",")}`);
  }
  history.replaceState(null, "", parts.length ? `#${parts.join("&")}` : location.pathname);
}

function read() {
  const values = { ...DEFAULTS };
  for (const part of location.hash.slice(1).split("&")) {
    const [key, text = ""] = part.split("=");
    if (!(key in DEFAULTS) || !text) continue;
    try {
      values[key] = parse(DEFAULTS[key], text.split(",").map(decodeURIComponent));
    } catch {
      // Invalid URL part: ignore it.
    }
  }
  return values;
}

function parse(standard, items) {
  if (Array.isArray(standard)) return items;
  if (typeof standard === "boolean") return items[0] === "1";
  if (typeof standard === "number") return Number(items[0]) || 0;
  return items.join(",");
}

Object.assign(state, read());
addEventListener("hashchange", () => change(read()));
