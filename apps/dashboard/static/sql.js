// The view "SQL": one SELECT over `experiments` and `runs`, with the limits of the command line.

import { post, postForText } from "./api.js";
import { el } from "./dom.js";
import { integer, plural } from "./format.js";
import { runs } from "./runs.js";
import { change, state } from "./state.js";

const EXAMPLES = [
  ["Best validation loss", "SELECT experiment_name, MIN(loss) AS best, MAX(step) AS steps\nFROM experiments\nWHERE split = 'val' AND isfinite(loss)\nGROUP BY experiment_name\nORDER BY best"],
  ["Learning rate", "SELECT name, config->>'$.optimizer.lr' AS lr, MIN(loss) AS best\nFROM runs JOIN experiments ON name = experiment_name\nWHERE split = 'val' AND isfinite(loss)\nGROUP BY ALL\nORDER BY best"],
  ["Hours per project", "SELECT project, COUNT(*) AS runs, ROUND(SUM(duration) / 3600, 2) AS hours\nFROM runs\nGROUP BY project\nORDER BY hours DESC"],
  ["Columns", "DESCRIBE experiments"],
];
const NAME_COLUMNS = ["name", "experiment_name"];

let box, output, busy;

export function show(view) {
  box = el("textarea", { class: "sql", rows: 6, spellcheck: false, ariaLabel: "SQL", placeholder: "SELECT …", value: state.sql || box?.value || EXAMPLES[0][1] });
  box.onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  };
  const examples = EXAMPLES.map(([title, sql]) =>
    el("button", { type: "button", class: "link", onclick: () => { box.value = sql; ask(); } }, title),
  );
  busy = el("span", { class: "muted", role: "status" });
  const kept = output;
  output = el("div", { class: "result" }, kept ? [...kept.childNodes] : help());
  view.append(
    el("div", { class: "view-sql" },
      box,
      el("div", { class: "bar" }, el("button", { type: "button", class: "primary", onclick: ask }, "Run"), el("span", { class: "muted" }, "Ctrl+Enter"), busy, el("span", { class: "examples" }, el("span", { class: "muted" }, "try: "), examples)),
      output),
  );
}

export function refresh() {}

function help() {
  const line = (name, text) => el("p", { class: "muted" }, el("code", {}, name), text);
  return [
    line("experiments", ": a row per logged step: experiment_name, step, epoch, split, time (seconds since the start), then a column per metric"),
    line("runs", ": a row per experiment: name, status, project, started, finished, duration, config (JSON), git_commit, seed, host, parameters, tokens, tags, note, archived, precision, compiled, threads, device, cpu"),
  ];
}

let asked = new AbortController();

async function ask() {
  const sql = box.value;
  asked.abort(); // the server cancels the abandoned query
  const { signal } = (asked = new AbortController());
  change({ sql: sql.length < 2000 ? sql : "" });
  const began = performance.now();
  busy.textContent = "Running …";
  try {
    const result = await post("sql", { sql }, signal);
    busy.textContent = `${((performance.now() - began) / 1000).toFixed(2)} s`;
    output.replaceChildren(...table(sql, result));
  } catch (error) {
    if (signal.aborted) return;
    busy.textContent = "";
    output.replaceChildren(el("div", { class: "banner bad" }, el("pre", {}, error.message), error.hint ? el("p", {}, `hint: ${error.hint}`) : ""));
  }
}

function table(sql, { columns, rows, total }) {
  const count = rows.length < total ? `${integer(total)} rows, the first ${integer(rows.length)} shown` : plural(total, "row");
  const parts = [el("span", {}, count), el("button", { type: "button", onclick: () => download(sql) }, "Download CSV")];
  const position = columns.findIndex((column) => NAME_COLUMNS.includes(column));
  const names = position < 0 ? [] : [...new Set(rows.map((row) => row[position]))].filter((name) => runs.has(name));
  if (names.length) parts.push(el("button", { type: "button", onclick: () => change({ runs: names, tab: "curves" }) }, `Select ${names.length === 1 ? "this run" : `these ${names.length} runs`}`));
  const numeric = columns.map((_, index) => rows.some((row) => typeof row[index] === "number") && rows.every((row) => row[index] === null || typeof row[index] === "number"));
  const decimals = columns.map((_, index) => (numeric[index] ? Math.max(...rows.map((row) => places(row[index]))) : 0));
  const side = (index) => (numeric[index] ? "right" : "");
  const head = el("tr", {}, columns.map((column, index) => el("th", { scope: "col", class: side(index) }, column)));
  const body = rows.map((row) => el("tr", {}, row.map((value, index) => cell(value, side(index), decimals[index]))));
  return [el("div", { class: "bar" }, parts), el("div", { class: "scroll" }, el("table", { class: "data" }, el("thead", {}, head), el("tbody", {}, body)))];
}

const short = (value) => String(Number(value.toPrecision(7)));

/** Number of decimals in seven digits of a number; 0 with an exponent. */
const places = (value) => (value === null ? 0 : (/^-?\d+\.(\d+)$/.exec(short(value))?.[1].length ?? 0));

/** Align a column: all numbers get the maximum number of decimals. */
function cell(value, side, decimals) {
  if (value === null) return el("td", { class: `muted ${side}` }, "NULL");
  const plain = typeof value === "number" && Math.abs(value) < 1e7 && decimals && decimals <= 7;
  const text = plain ? value.toFixed(decimals) : typeof value === "number" ? (Number.isInteger(value) ? String(value) : short(value)) : String(value);
  return el("td", { class: side, title: text.length > 60 ? text : "" }, text);
}

async function download(sql) {
  try {
    const text = await postForText("sql.csv", { sql });
    const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    el("a", { href: address, download: "result.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  } catch (error) {
    busy.textContent = error.message;
  }
}
