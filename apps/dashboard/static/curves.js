// The view "curves": controls, curves downsampled by the server, one plot per metric.

import { post } from "./api.js";
import { debounced, el, oneAtATime, renew, segmented, swatch, toggle } from "./dom.js";
import { integer, plural } from "./format.js";
import { drawPlot, forgetPlot, resizePlot } from "./plot.js";
import { colour } from "./runs.js";
import { change, state } from "./state.js";

let root, controls, notices, legend, panels;
let plots = new Map(); // metric -> element
let curves = new Map(); // key -> curve
let answer = null; // the last response, without its curves
let asked = ""; // the request of the cached curves
let zoom = null; // [from, to] of x, in its own units
const hidden = new Set(); // keys hidden in the legend

const darkness = matchMedia("(prefers-color-scheme: dark)");
darkness.addEventListener("change", () => root?.isConnected && draw());
const resized = new ResizeObserver(debounced(60, () => [...plots.values()].forEach(resizePlot)));

export function show(view) {
  legend = el("div", { class: "legend", role: "group", ariaLabel: "Curves" });
  notices = el("div", { class: "notices" });
  panels = el("div", { class: "panels" });
  root = el("div", { class: "curves" }, createControls(), legend, notices, panels);
  view.append(root);
  resized.observe(panels);
  draw();
  fetchCurves();
}

export function hide() {
  resized.disconnect();
  for (const plot of plots.values()) forgetPlot(plot);
  plots = new Map();
}

export function refresh(changed) {
  if (changed && !state.runs.some((name) => changed.has(name))) return;
  drawControls();
  fetchCurves();
}

function request() {
  const { runs: names, metrics, splits, x, logx, smooth, group } = state;
  return { runs: names, metrics, splits, x, log_x: logx, smoothing: smooth, group, window: zoom };
}

const fetchCurves = oneAtATime(async () => {
  if (!root?.isConnected) return;
  if (!state.runs.length) {
    answer = null;
    curves = new Map();
    draw();
    return;
  }
  const wanted = request();
  const signature = JSON.stringify({ ...wanted, runs: null });
  const known = signature === asked ? Object.fromEntries([...curves].map(([key, curve]) => [key, curve.stamp])) : {};
  try {
    const received = await post("curves", { ...wanted, known });
    const fresh = new Map(received.curves.map((curve) => [curve.key, curve]));
    curves = new Map(received.keys.map((key) => [key, fresh.get(key) || curves.get(key)]));
    asked = signature;
    answer = received;
    draw();
  } catch (error) {
    notices.replaceChildren(el("p", { class: "bad" }, error.message));
  }
});

function draw() {
  drawControls();
  drawLegend();
  drawNotices();
  drawPanels();
}

function createControls() {
  const group = (label) => el("div", { class: "group", role: "group", ariaLabel: label });
  const slider = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, ariaLabel: "Smoothing" });
  const shown = el("output", {});
  slider.oninput = () => change({ smooth: Number(slider.value) });
  const title = "Exponential moving average; curves of fewer than 50 points stay as they are";
  const smoothing = el("label", { class: "group", title }, el("span", { class: "muted" }, "smooth"), slider, shown);
  controls = { metrics: group("Metrics"), splits: group("Splits"), axes: group("Axes"), slider, shown, more: group("More") };
  controls.metrics.classList.add("metrics");
  return el("div", { class: "bar controls" }, controls.metrics, controls.splits, controls.axes, smoothing, controls.more);
}

const flipped = (list, item) => (list.includes(item) ? list.filter((other) => other !== item) : [...list, item]);

function drawControls() {
  const available = answer?.metrics || {};
  const shown = answer?.shown || [];
  const chooseMetric = (metric) => {
    const next = flipped(shown, metric);
    if (next.length) change({ metrics: Object.keys(available).filter((name) => next.includes(name)) });
  };
  renew(controls.metrics, Object.keys(available).map((metric) => toggle(metric, shown.includes(metric), () => chooseMetric(metric))));

  const splits = [...new Set(shown.flatMap((metric) => available[metric]))];
  const chosen = splits.filter((split) => !state.splits.length || state.splits.includes(split));
  const chooseSplit = (split) => {
    const next = flipped(chosen, split);
    if (next.length) change({ splits: next.length === splits.length ? [] : next });
  };
  renew(controls.splits, splits.length > 1 && splits.map((split) => toggle(split, chosen.includes(split), () => chooseSplit(split))));

  const rescale = (values) => {
    zoom = null;
    change(values);
  };
  renew(
    controls.axes,
    el("span", { class: "muted" }, "x"),
    segmented("Horizontal axis", [["step", "step"], ["epoch", "epoch"], ["time", "time"]], state.x, (x) => rescale({ x })),
    toggle("log x", state.logx, (logx) => rescale({ logx })),
    toggle("log y", state.logy, (logy) => change({ logy })),
  );
  controls.slider.value = state.smooth;
  controls.shown.textContent = state.smooth.toFixed(2);
  renew(
    controls.more,
    toggle("group seeds", state.group, (group) => change({ group }), "One curve per configuration: the mean over its seeds with a 95% interval"),
    zoom && el("button", { type: "button", onclick: () => zoomTo(null) }, "Reset zoom"),
  );
}

export const colourOf = (curve) => colour(curve.runs[0]);

function drawLegend() {
  const items = [...curves.values()].map((curve) => {
    const members = curve.runs.length > 1 ? ` (${curve.runs.length} runs)` : "";
    const flip = () => {
      if (!hidden.delete(curve.key)) hidden.add(curve.key);
      draw();
    };
    const properties = { type: "button", class: "link", ariaPressed: String(!hidden.has(curve.key)), title: curve.runs.join("\n"), onclick: flip };
    return el("button", properties, swatch(colourOf(curve)), curve.label + members);
  });
  const styles = splitStyles();
  if (styles.size > 1) for (const [split, style] of styles) items.push(el("span", { class: `split ${style}` }, split));
  renew(legend, items);
}

const STYLES = ["bold", "thin", "dot", "dash"];

/** split -> style of its lines; those of the main split stand out. */
function splitStyles() {
  const splits = new Set(answer?.shown.flatMap((metric) => answer.metrics[metric]) || []);
  const drawn = [...splits].filter((split) => !state.splits.length || state.splits.includes(split));
  return new Map(drawn.map((split, index) => [split, STYLES[Math.min(index, STYLES.length - 1)]]));
}

function drawNotices() {
  const lines = [];
  for (const curve of curves.values()) {
    const troubled = new Map(); // run -> [what, ...]
    for (const { metric, split, trouble } of curve.series) {
      for (const { run, step, points, diverged } of trouble) {
        const at = `step ${integer(step)}`;
        const what = diverged ? `${metric} (${split}) diverged at ${at}` : `${metric} (${split}) has ${plural(points, "gap")} from ${at} on`;
        troubled.set(run, [...(troubled.get(run) || []), what]);
      }
    }
    for (const [run, troubles] of troubled) {
      lines.push(el("li", { class: "bad", title: "The values are NaN or infinite there" }, el("b", {}, run), ` ${troubles.join(", ")}`));
    }
  }
  if (state.group) {
    const single = [...curves.values()].filter((curve) => curve.runs.length === 1);
    if (single.length) lines.push(el("li", {}, `${plural(single.length, "configuration")} with one run: no interval`));
  }
  for (const [name, reason] of answer?.missing || []) lines.push(el("li", {}, el("b", {}, name), ` is not shown: ${reason}`));
  if (answer?.left_out) lines.push(el("li", {}, `The first ${integer(state.runs.length - answer.left_out)} of ${integer(state.runs.length)} selected runs are drawn`));
  const few = lines.length <= 4 ? lines : [...lines.slice(0, 3), el("li", {}, `and ${lines.length - 3} more`)];
  notices.replaceChildren(...(few.length ? [el("ul", { title: lines.map((line) => line.textContent).join("\n") }, few)] : []));
}

function drawPanels() {
  const shown = answer && curves.size ? answer.shown : [];
  for (const [metric, plot] of plots) {
    if (shown.includes(metric)) continue;
    forgetPlot(plot);
    plots.delete(metric);
  }
  if (!shown.length) {
    const text = state.runs.length ? "Loading …" : "Choose runs in the table to see their curves.";
    const reason = answer ? "The selected runs have logged nothing yet." : text;
    panels.replaceChildren(el("p", { class: "hint" }, reason));
    return;
  }
  panels.dataset.count = String(Math.min(shown.length, 3));
  const elements = shown.map((metric) => {
    if (!plots.has(metric)) plots.set(metric, el("div", { class: "plot" }));
    const plot = plots.get(metric);
    return plot.parentElement || el("figure", { class: "panel", ariaLabel: metric }, el("figcaption", {}, metric), plot);
  });
  if (elements.some((element, index) => panels.children[index] !== element) || panels.children.length !== elements.length) panels.replaceChildren(...elements);
  const visible = [...curves.values()].filter((curve) => curve && !hidden.has(curve.key));
  const styles = splitStyles();
  const order = [...styles.keys()];
  for (const metric of shown) {
    const lines = visible.flatMap((curve) =>
      curve.series
        .filter((series) => series.metric === metric)
        .map((series) => ({ ...series, label: curve.label, colour: colourOf(curve), style: styles.get(series.split) || "bold", several: styles.size > 1 })),
    );
    lines.sort((a, b) => order.indexOf(b.split) - order.indexOf(a.split)); // draw highlighted lines last
    drawPlot(plots.get(metric), lines, { x: state.x, logx: state.logx, logy: state.logy, zoom, zoomTo });
  }
}

const zoomSoon = debounced(120, () => fetchCurves());

/** Zoom every plot to x from `range[0]` to `range[1]`, with all points that fit (null: everything). */
function zoomTo(range) {
  if (JSON.stringify(range) === JSON.stringify(zoom)) return;
  zoom = range;
  draw();
  zoomSoon();
}

