// One plot, drawn by plotly.js, which is loaded with the first plot.

import * as format from "./format.js";

const FEW_POINTS = 40; // below this each point is marked
const MANY_LINES = 10; // above this the hover box shows only one
const TIME_UNITS = [[7200, 3600, "hours"], [300, 60, "minutes"], [0, 1, "seconds"]];

let library = null;

function load() {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/plotly/plotly.min.js";
    script.onload = () => resolve(globalThis.Plotly);
    script.onerror = () => {
      library = null;
      reject(new Error("plotly.js could not be loaded"));
    };
    document.head.append(script);
  });
  return library;
}

/** Draw `lines` [{x, y, smooth, low, high, n, trouble, label, colour, style, split, several}].
 *
 * `view`: {x: kind of the axis, logx, logy, zoom: [from, to] or null, zoomTo(range)}.
 */
export async function drawPlot(element, lines, view) {
  element.latest = { lines, view };
  const Plotly = await load();
  if (!element.isConnected || element.latest.lines !== lines) return; // overtaken
  const unit = timeUnit(lines, view);
  const span = spanOf(lines, view.logy);
  const traces = lines.flatMap((line) => tracesOf(line, unit.seconds, view, span));
  const first = !element.data;
  await Plotly.react(element, traces, layoutOf(element, lines, unit, view), {
    displaylogo: false,
    displayModeBar: "hover",
    modeBarButtons: [["toImage"]],
    doubleClick: false,
    showTips: false,
  });
  if (first) listen(element);
  element.dataset.drawn = "true";
}

export function forgetPlot(element) {
  if (element.data) globalThis.Plotly.purge(element);
  delete element.latest;
}

export function resizePlot(element) {
  if (element.data && element.isConnected) globalThis.Plotly.Plots.resize(element);
}

/** The best unit for a time axis. */
function timeUnit(lines, view) {
  if (view.x !== "time") return { seconds: 1, title: view.x };
  const longest = view.zoom ? view.zoom[1] : lines.reduce((most, line) => Math.max(most, line.x.at(-1) ?? 0), 0);
  const [, seconds, name] = TIME_UNITS.find(([least]) => longest >= least);
  return { seconds, title: `time (${name})` };
}

const STYLES = {
  bold: { width: 2, dash: "solid" },
  thin: { width: 1, dash: "solid", opacity: 0.6 },
  dot: { width: 1.5, dash: "dot" },
  dash: { width: 1.5, dash: "dash" },
};

function tracesOf(line, seconds, view, span) {
  const x = seconds === 1 ? line.x : line.x.map((value) => value / seconds);
  const main = line.smooth || line.y;
  const style = STYLES[line.style];
  // plotly.js parses some HTML tags in text; escape run names.
  const name = (line.label + (line.several ? ` ${line.split}` : "")).replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const base = { x, type: "scatter", showlegend: false, legendgroup: name, name };
  const traces = [];
  if (line.low) {
    const edge = { ...base, mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
    const [low, high] = bandEdges(line, view.logy, span);
    traces.push({ ...edge, y: low }, { ...edge, y: high, fill: "tonexty", fillcolor: translucent(line.colour, 0.2) });
  }
  if (line.smooth) {
    traces.push({ ...base, y: line.y, mode: "lines", opacity: 0.25, line: { color: line.colour, width: 1 }, hoverinfo: "skip" });
  }
  const few = main.length <= FEW_POINTS;
  traces.push({
    ...base,
    y: main,
    mode: few ? "lines+markers" : "lines",
    line: { color: line.colour, width: style.width, dash: style.dash },
    opacity: line.smooth ? 1 : (style.opacity ?? 1),
    marker: { color: line.colour, size: main.length > 1 ? 5 : 8 }, // alone: the last evaluation, of all batches
    customdata: line.n?.map((n, index) => intervalText(n, line.high[index] - main[index])),
    hovertemplate: line.n ? "%{y:.5g}%{customdata}" : "%{y:.5g}",
  });
  const last = main.findLastIndex((value) => value !== null);
  if (!line.low && last >= 0 && line.trouble.some((trouble) => trouble.diverged)) {
    const marker = { symbol: "x", size: 9, color: line.colour, line: { width: 1, color: "#fff" } };
    traces.push({ ...base, x: [x[last]], y: [main[last]], mode: "markers", marker, hovertemplate: "%{y:.5g}, then NaN or infinite" });
  }
  return traces;
}

const intervalText = (n, half) => (n > 1 ? ` ± ${format.half(half)} (n=${n})` : " (n=1)");

/** The band, clipped to the range of the lines plus half of it.
 *
 * The interval of two runs can be fifty times as wide as all curves, which determine the axis.
 * Where only one run has a value the band has no width.
 */
function bandEdges({ low, high, y }, logy, [bottom, top]) {
  const [there, back] = logy ? [Math.log10, (value) => 10 ** value] : [(value) => value, (value) => value];
  const room = (there(top) - there(bottom)) / 2;
  const [least, most] = [back(there(bottom) - room), back(there(top) + room)];
  const edge = (values) => values.map((value, index) => Math.min(Math.max(value ?? y[index], least), most));
  return [edge(low), edge(high)];
}

/** [smallest, largest] value of all lines; only positive ones on a log axis. */
function spanOf(lines, logy) {
  let [bottom, top] = [Infinity, -Infinity];
  for (const { y } of lines) {
    for (const value of y) {
      if (value === null || (logy && value <= 0)) continue;
      bottom = Math.min(bottom, value);
      top = Math.max(top, value);
    }
  }
  return [bottom, top];
}

function translucent(hex, alpha) {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  return `rgba(${red}, ${green}, ${blue}, ${alpha})`;
}

function layoutOf(element, lines, unit, view) {
  const style = getComputedStyle(element);
  const [text, grid, panel] = ["--muted", "--line", "--panel"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: grid, linecolor: grid, zeroline: false, automargin: true, ticks: "", tickfont: { color: text } };
  const toAxis = (value) => (view.logx ? Math.log10(value / unit.seconds) : value / unit.seconds);
  const range = view.zoom ? { range: view.zoom.map(toAxis), autorange: false } : { autorange: true };
  const unified = lines.length <= MANY_LINES;
  return {
    margin: { l: 44, r: 10, t: 6, b: 34 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: style.fontFamily, size: 11, color: text },
    hovermode: unified ? "x unified" : "closest",
    hoverlabel: { bgcolor: panel, bordercolor: grid, font: { size: 11, color: style.color }, namelength: -1 },
    xaxis: { ...axis, ...range, type: view.logx ? "log" : "linear", title: { text: unit.title, standoff: 4 }, uirevision: JSON.stringify(view.zoom) },
    yaxis: { ...axis, type: view.logy ? "log" : "linear", exponentformat: "power", minexponent: 6, separatethousands: true },
    uirevision: `${view.x} ${view.logx} ${view.logy}`, // a zoomed y axis stays as it is while a run grows
    modebar: { bgcolor: "rgba(0,0,0,0)", color: text, activecolor: text },
    dragmode: "zoom",
    showlegend: false,
  };
}

function listen(element) {
  element.on("plotly_relayout", (event) => {
    const { lines, view } = element.latest;
    if (event["xaxis.range[0]"] === undefined) return;
    const { seconds } = timeUnit(lines, view);
    const fromAxis = (value) => (view.logx ? 10 ** value : value) * seconds;
    view.zoomTo([fromAxis(event["xaxis.range[0]"]), fromAxis(event["xaxis.range[1]"])]);
  });
  element.on("plotly_doubleclick", () => {
    globalThis.Plotly.relayout(element, { "yaxis.autorange": true });
    element.latest.view.zoomTo(null);
  });
}
