// The runs of the store as last received from the server, with filter, order and colours.

import { get } from "./api.js";
import { state } from "./state.js";

export const runs = new Map(); // name -> row
export let broken = [];
let revision = "";

/** Fetch changes. Returns the set of changed names, or null if nothing has changed. */
export async function update() {
  const answer = await get("runs", { since: revision });
  const same = answer.revision === revision && !answer.complete;
  const brokenChanged = JSON.stringify(broken) !== JSON.stringify(answer.broken);
  broken = answer.broken;
  revision = answer.revision;
  if (same && !brokenChanged) return null;
  const changed = new Set(answer.removed);
  if (answer.complete) runs.clear();
  for (const name of answer.removed) runs.delete(name);
  const columns = answer.columns;
  columns.name.forEach((name, index) => {
    const row = {};
    for (const key in columns) row[key] = columns[key][index];
    row.started = Date.parse(row.started);
    row.text = [name, row.project, row.status, ...row.tags].join("\n").toLowerCase();
    runs.set(name, row);
    changed.add(name);
  });
  return changed;
}

export function seconds(row) {
  return row.status === "running" ? (Date.now() - row.started) / 1000 : row.duration;
}

const FIELDS = {
  name: (row) => [row.name],
  project: (row) => [row.project],
  status: (row) => [row.status],
  tag: (row) => row.tags,
  hash: (row) => [row.config_hash],
  is: (row) => [selected().has(row.name) ? "selected" : "", row.diverged ? "diverged" : ""],
};

let chosen = { of: null, names: new Set() };

export function selected() {
  if (chosen.of !== state.runs) chosen = { of: state.runs, names: new Set(state.runs) };
  return chosen.names;
}

/** Predicate of a filter: every word must match, `-word` must not. */
export function matcher(filter) {
  const tests = filter
    .toLowerCase()
    .split(/\s+/)
    .filter((word) => word && word !== "-")
    .map((word) => {
      const wanted = !word.startsWith("-");
      const [, field, text] = /^-?(?:(\w+):)?(.*)$/s.exec(word);
      const read = field && FIELDS[field];
      if (read) return (row) => read(row).some((value) => value.toLowerCase().includes(text)) === wanted;
      const plain = wanted ? word : word.slice(1);
      const isHash = (row) => plain.length >= 4 && row.config_hash.startsWith(plain); // "77" matches too many
      return (row) => (row.text.includes(plain) || isHash(row)) === wanted;
    });
  return (row) => tests.every((test) => test(row));
}

/** The split of evaluations on a part of the validation split, for runs without a full one. */
export const VAL_QUICK = "val_quick";
const SORT_VALUES = { duration: seconds, tags: (row) => row.tags.join(" ").toLowerCase() || null };
const collator = new Intl.Collator("en", { numeric: true });

/** The rows that match `state.q`, ordered by `state.sort`; empty cells come last either way. */
export function filtered() {
  const rows = [...runs.values()].filter(matcher(state.q));
  const down = state.sort.startsWith("-");
  const key = state.sort.replace(/^-/, "");
  const read = SORT_VALUES[key] || ((row) => row[key]);
  const sign = down ? -1 : 1;
  const keyed = rows.map((row) => [read(row), row]);
  const quick = (row) => Number(key === "best_loss" && row.split === VAL_QUICK); // after whole evaluations
  keyed.sort(([a, first], [b, second]) => {
    if (a !== null && b !== null && quick(first) !== quick(second)) return quick(first) - quick(second);
    if (a === null || b === null || a === undefined || b === undefined || a === "" || b === "") {
      const empty = (value) => Number(value === null || value === undefined || value === "");
      if (empty(a) !== empty(b)) return empty(a) - empty(b);
    } else if (a !== b) {
      const order = typeof a === "string" ? collator.compare(a, b) : a - b;
      if (order) return sign * order;
    }
    return collator.compare(first.name, second.name);
  });
  return keyed.map(([, row]) => row);
}

// Twelve colours distinguishable on white and black; a run keeps its colour while selected.
const PALETTE = [
  "#3b78e7", "#e8762d", "#2ba36f", "#d6455d", "#8b62d9", "#18a2bd",
  "#c0902b", "#d967a8", "#7c9a2e", "#8a7565", "#5563b8", "#8d96a3",
];
const colours = new Map(); // name, or hash of the configuration -> index

/** The bearer of a colour: a run, or all seeds of a configuration if they are one curve. */
const bearer = (name) => (state.group && runs.get(name)?.config_hash) || name;

export function colour(name) {
  const index = colours.get(bearer(name));
  return index === undefined ? "transparent" : PALETTE[index % PALETTE.length];
}

/** Give each bearer the first free colour. */
export function assignColours() {
  const bearers = new Set(state.runs.map(bearer));
  for (const key of colours.keys()) if (!bearers.has(key)) colours.delete(key);
  const taken = new Set(colours.values());
  let next = 0;
  for (const key of bearers) {
    if (colours.has(key)) continue;
    while (taken.has(next)) next += 1;
    taken.add(next);
    colours.set(key, next);
  }
}
