// The view "compare": metrics side by side, and where the configurations differ.

import { post } from "./api.js";
import { el, oneAtATime, segmented, swatch } from "./dom.js";
import * as format from "./format.js";
import { colour } from "./runs.js";
import { change, state } from "./state.js";

let root;
let answer = null;
let fetched = null; // the selection that the answer is about

export function show(view) {
  root = el("div", { class: "compare" });
  view.append(root);
  fetchComparison();
}

export function refresh(changed) {
  if (changed ? state.runs.some((name) => changed.has(name)) : fetched !== state.runs) fetchComparison();
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
  root.replaceChildren(
    el("div", { class: "bar" }, el("h2", {}, "Metrics"), choice, el("span", { class: "muted" }, "the better one is marked; diverged runs are not considered")),
    answer.left_out ? el("p", { class: "muted" }, `The first ${names.length} of ${state.runs.length} selected runs are compared`) : "",
    el("div", { class: "scroll" }, metrics(names)),
    el("div", { class: "bar" }, el("h2", {}, "Configuration"), el("span", { class: "muted" }, "keys that differ")),
    el("div", { class: "scroll" }, configurations(names)),
  );
}

const heading = (names) => names.map((name) => el("th", { class: "right", scope: "col" }, swatch(colour(name)), name));

function metrics(names) {
  const rows = answer.metrics.map((row) => {
    const arrow = { min: "↓", max: "↑" }[row.direction] || "";
    const meaning = { min: "lower is better", max: "higher is better" }[row.direction] || "not known which way is better: the last value";
    const kind = row.direction ? state.value : "last";
    const better = new Set(row.better[kind] || []);
    const title = el("th", { scope: "row", title: meaning }, row.metric, el("span", { class: "muted" }, ` ${row.split} ${arrow}`));
    return el("tr", { class: row.judges ? "" : "minor" }, title, row.cells.map((cell, index) => value(cell, kind, better.has(index))));
  });
  if (!rows.length) return el("p", { class: "hint" }, "They have logged nothing yet.");
  return el("table", { class: "data" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "metric"), heading(names))), el("tbody", {}, rows));
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
  const keys = Object.entries(answer.configs);
  if (!keys.length) return el("p", { class: "hint" }, names.length > 1 ? "Their configurations are the same." : "Select a second run to see where they differ.");
  const rows = keys.map(([key, values]) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, key)), values.map((item) => el("td", { class: "right" }, format.value(item)))));
  return el("table", { class: "data" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "key"), heading(names))), el("tbody", {}, rows));
}
