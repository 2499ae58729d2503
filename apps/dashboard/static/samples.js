// The view "samples": generated texts by step, side by side.

import { get } from "./api.js";
import { el, oneAtATime, swatch } from "./dom.js";
import { integer } from "./format.js";
import { colour } from "./runs.js";
import { state } from "./state.js";

const MOST_RUNS = 4;
let root, slider, label, columns;
let steps = [];
let step = null; // null: the last

export function show(view) {
  slider = el("input", { type: "range", min: 0, max: 0, value: 0, ariaLabel: "Step" });
  slider.oninput = () => {
    const index = Number(slider.value);
    step = index >= steps.length - 1 ? null : steps[index];
    fetchSamples();
  };
  label = el("output", {});
  columns = el("div", { class: "samples" });
  root = el("div", { class: "view-samples" }, el("div", { class: "bar" }, el("h2", {}, "Samples"), slider, label), columns);
  view.append(root);
  fetchSamples();
}

export function refresh(changed) {
  if (!changed || state.runs.some((name) => changed.has(name))) fetchSamples();
}

const fetchSamples = oneAtATime(async () => {
  const names = state.runs.slice(0, MOST_RUNS);
  slider.hidden = !names.length;
  if (!names.length) {
    label.textContent = "";
    columns.replaceChildren(el("p", { class: "hint" }, "Choose runs in the table to read what they wrote."));
    return;
  }
  const parameters = (name) => (step === null ? { name } : { name, step });
  const answers = await Promise.all(names.map((name) => get("samples", parameters(name)).catch((error) => ({ error, steps: [], samples: [] }))));
  steps = [...new Set(answers.flatMap((answer) => answer.steps))].sort((a, b) => a - b);
  slider.max = Math.max(0, steps.length - 1);
  slider.value = step === null ? slider.max : steps.findLastIndex((other) => other <= step);
  slider.disabled = steps.length < 2;
  const shown = step ?? steps.at(-1);
  const left = state.runs.length > MOST_RUNS ? `, the first ${MOST_RUNS} of ${state.runs.length} runs` : "";
  label.textContent = steps.length ? `step ${integer(shown)}${left}` : "";
  columns.replaceChildren(...names.map((name, index) => column(name, answers[index])));
});

function column(name, { samples, step: at, damaged, error }) {
  const texts = samples.map(({ prompt, text }) => {
    const begins = text.startsWith(prompt);
    return el("pre", { class: "sample" }, el("span", { class: "prompt" }, prompt), begins ? text.slice(prompt.length) : text);
  });
  const nothing = error ? error.message : "This run has drawn no samples.";
  return el(
    "section",
    {},
    el("h3", {}, swatch(colour(name)), name, at !== undefined && at !== null ? el("span", { class: "muted" }, ` step ${integer(at)}`) : ""),
    texts.length ? texts : el("p", { class: "muted" }, nothing),
    damaged ? el("p", { class: "muted" }, `${damaged} damaged lines are left out`) : "",
  );
}
