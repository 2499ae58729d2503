// The view "compare": metrics side by side, and where the configurations differ.

import { post } from "./api.js";
import { el, oneAtATime, renew, segmented, swatch, toggle } from "./dom.js";
import * as format from "./format.js";
import { colour } from "./runs.js";
import { change, state } from "./state.js";

let root;
let answer = null;
let seeds = null; // the comparison of configurations, if requested
let fetched = null; // the selection of the fetched data

export function show(view) {
  root = el("div", { class: "compare" });
  view.append(root);
  fetchComparison();
}

export function refresh(changed) {
  if (changed ? state.runs.some((name) => changed.has(name)) : fetched !== state.runs || state.group !== Boolean(seeds)) fetchComparison();
  else draw();
}

const fetchComparison = oneAtATime(async () => {
  const runs = state.runs;
  if (!runs.length) {
    root.replaceChildren(el("p", { class: "hint" }, "Choose runs in the table to compare them."));
    fetched = null;
    return;
  }
  try {
    answer = await post("compare", { runs });
    seeds = state.group ? await post("compare-seeds", { runs }) : null;
    fetched = runs;
    draw();
  } catch (error) {
    root.replaceChildren(el("p", { class: "hint bad" }, error.message));
  }
});

function draw() {
  if (!answer || !state.runs.length) return;
  const choice = segmented("Value", [["best", "Best"], ["last", "Last"]], state.value, (value) => change({ value }));
  const names = answer.runs;
  const grouping = toggle("group seeds", state.group, (group) => change({ group }), "Compare configurations by all their finished seeds");
  const remark = seeds ? "mean ± 95% interval over all finished seeds; p: t test against the first" : "the best value is marked, of runs that have not diverged; from one run each it is no verdict";
  renew(
    root,
    el("div", { class: "bar" }, el("h2", {}, "Metrics"), !seeds && choice, grouping, el("span", { class: "muted" }, remark)),
    ...(seeds || answer).notes.map((note) => el("p", { class: "muted" }, note)),
    answer.left_out > 0 && el("p", { class: "muted" }, `The first ${names.length} of ${state.runs.length} selected runs are compared`),
    el("div", { class: "scroll" }, seeds ? configurationsBySeeds() : metrics(names)),
    el("div", { class: "bar" }, el("h2", {}, "Configuration"), el("span", { class: "muted" }, "keys that differ")),
    el("div", { class: "scroll" }, configurations(seeds ? seeds.groups : names)),
  );
}

const heading = (names) => names.map((name) => el("th", { class: "right", scope: "col" }, swatch(colour(name)), name));

function metrics(names) {
  const rows = answer.metrics.map((row) => {
    const kind = row.direction ? state.value : "last";
    const better = new Set(row.better[kind] || []);
    return el("tr", { class: row.judges ? "" : "minor" }, rowTitle(row), row.cells.map((cell, index) => value(cell, kind, better.has(index))));
  });
  if (!rows.length) return el("p", { class: "hint" }, "They have logged nothing yet.");
  return el("table", { class: "data" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "metric"), heading(names))), el("tbody", {}, rows));
}

function rowTitle(row) {
  const arrow = { min: "↓", max: "↑" }[row.direction] || "";
  const meaning = { min: "lower is better", max: "higher is better" }[row.direction] || "not known which way is better: the last value";
  return el("th", { scope: "row", title: meaning }, row.metric, el("span", { class: "muted" }, ` ${row.split} ${arrow}`));
}

function configurationsBySeeds() {
  const rows = seeds.rows.map((row) => el("tr", { class: row.judges ? "" : "minor" }, rowTitle(row), row.cells.map(estimate)));
  if (!rows.length) return el("p", { class: "hint" }, "No seed of these configurations has finished yet.");
  return el("table", { class: "data" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "metric"), heading(seeds.groups))), el("tbody", {}, rows));
}

function estimate(cell) {
  if (!cell) return el("td", { class: "right muted" }, "–");
  const half = cell.half_width === null ? "" : ` ± ${format.half(cell.half_width)}`;
  const more = cell.more_seeds ? `; about ${format.plural(cell.more_seeds, "more seed")} per configuration would tell` : "";
  const p = cell.p_value === null ? "" : ` p=${cell.p_value.toPrecision(2)}`;
  const relation = { better: "better than the first", worse: "worse than the first", "not told apart": "not told apart from the first" };
  const title = cell.verdict ? (relation[cell.verdict] || cell.verdict) + (cell.test ? ` (${cell.test})` : "") + more : "";
  return el("td", { class: `right${cell.verdict === "better" ? " better" : ""}`, title }, el("span", {}, format.number(cell.mean) + half), el("span", { class: "muted step" }, `n=${cell.seeds}${p}`));
}

function value(cell, kind, better) {
  if (!cell) return el("td", { class: "right muted" }, "–");
  const shown = format.number(cell[kind]) || "NaN";
  const step = cell[`${kind}_step`];
  const at = step === null ? "" : `@ ${format.integer(step)}`;
  const beside = cell.diverged ? el("span", { class: "step bad", title: `The last value is NaN or infinite; this one ${at}` }, "diverged") : el("span", { class: "step muted" }, at);
  return el("td", { class: `right${better ? " better" : ""}` }, el("span", {}, shown), beside);
}

function configurations(names) {
  const positions = names.map((name) => answer.runs.indexOf(name));
  const text = (item) => JSON.stringify(item);
  const keys = Object.entries(answer.configs)
    .map(([key, values]) => [key, positions.map((position) => values[position])])
    .filter(([, values]) => values.some((item) => text(item) !== text(values[0])));
  if (!keys.length) return el("p", { class: "hint" }, names.length > 1 ? "Their configurations are the same." : "Select a second run to see where they differ.");
  const rows = keys.map(([key, values]) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, key)), values.map((item) => el("td", { class: "right" }, format.value(item)))));
  return el("table", { class: "data" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "key"), heading(names))), el("tbody", {}, rows));
}
