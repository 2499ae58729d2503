// Curves over the text of the selected layer; the influences of all layers below.
const MARGIN = { left: 62, right: 12, top: 8, bottom: 36 };
const width = Math.min(1180, document.body.clientWidth - 48);
const layers = DATA.layers;
const recurrent = layers.map((_, i) => i).filter((i) => layers[i].curves.length > 0);
let layer = layers[recurrent[0]];
let curve = layer.curves[0];
let current = -1;
const { tokens, select } = selectTokens(describe, mark);
if (tokens.length > 600) document.querySelector(".text").classList.add("long");

const short = (value) => (value === 0 ? "0" : Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(4))));

/** Round numbers from 0 to `most`, about `count`. */
function evenTicks(most, count) {
  const rough = most / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, i) => i * step);
}

/** Powers of ten between two positive numbers. */
function powers(low, high) {
  const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const step = Math.max(1, Math.ceil((last - first) / 8));
  return Array.from({ length: Math.max(0, Math.floor((last - first) / step) + 1) }, (_, i) => 10 ** (first + i * step));
}

const line = (attributes) => svg("line", attributes);

/**
 * Curves with axes. `x`, `y`: {map: number to [0, 1], ticks, name}; `curves`: {values, colour, width, name},
 * value i at x = i + 1, null where there is none.
 */
function chart(height, x, y, curves, label) {
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  const across = (value) => MARGIN.left + inner.width * x.map(value);
  const up = (value) => MARGIN.top + inner.height * (1 - y.map(value));
  const floor = MARGIN.top + inner.height;
  const made = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const tick of y.ticks) {
    made.append(
      line({ class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: up(tick), y2: up(tick) }),
      svg("text", { x: MARGIN.left - 6, y: up(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of x.ticks) {
    made.append(
      line({ class: "axis", x1: across(tick), x2: across(tick), y1: floor, y2: floor + 4 }),
      svg("text", { x: across(tick), y: floor + 16, "text-anchor": "middle" }, short(tick)));
  }
  made.append(svg("text", { x: width - MARGIN.right, y: floor + 31, "text-anchor": "end" }, x.name));
  for (const { values, colour, width: thickness = 1.3, name } of curves) {
    let path = "";
    let pen = "M";
    values.forEach((value, i) => {
      const at = value === null ? NaN : up(value);
      if (!Number.isFinite(at)) return void (pen = "M");
      path += `${pen}${across(i + 1).toFixed(1)} ${Math.min(at, floor).toFixed(1)}`;
      pen = "L";
    });
    made.append(svg("path", { class: "curve", d: path, stroke: colour, "stroke-width": thickness }, svg("title", {}, name)));
  }
  return { made, across, floor };
}

const linear = (most) => ({ map: (value) => value / (most || 1), ticks: evenTicks(most, 4) });

/** The largest number, without the few that would flatten all others: a jump from an empty state. */
function highest(rows) {
  const all = rows.flat().filter((value) => value !== null).sort((a, b) => a - b);
  const usual = all[Math.floor(0.995 * (all.length - 1))] ?? 1;
  return all.at(-1) > 3 * usual ? 1.3 * usual : all.at(-1) ?? 1;
}

const cursors = [];

function drawOverText(id, rows, label) {
  const last = tokens.length;
  const x = { map: (t) => (t - 1) / Math.max(1, last - 1), ticks: evenTicks(last, 10).filter((t) => t >= 1), name: "token" };
  const curves = rows.map((values, i) => ({ values, colour: colourOf(i, rows.length), name: curve.groups[i] }));
  const top = highest(rows);
  const capped = curves.map((each) => ({ ...each, values: each.values.map((v) => (v === null ? null : Math.min(v, top))) }));
  const { made, across, floor } = chart(180, x, linear(top), capped, label);
  const cursor = line({ class: "cursor", visibility: "hidden", y1: MARGIN.top, y2: floor });
  made.append(cursor);
  cursors.push((index) => {
    cursor.setAttribute("visibility", index < 0 ? "hidden" : "visible");
    ["x1", "x2"].forEach((name) => cursor.setAttribute(name, across(Math.max(0, index) + 1)));
  });
  made.addEventListener("pointermove", (event) => {
    const share = (event.clientX - made.getBoundingClientRect().left - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
    const index = Math.max(0, Math.min(last - 1, Math.round(share * (last - 1))));
    if (index === current) return;
    select(index);
    showTip(describe(index), { left: event.clientX + 14, top: event.clientY, bottom: event.clientY });
  });
  made.addEventListener("pointerleave", () => select(-1));
  document.getElementById(id).replaceChildren(made);
}

function mark(index) {
  current = index;
  cursors.forEach((move) => move(index));
}

function describe(index) {
  const written = (value) => (value === null ? "undefined" : short(value));
  return [
    element("div", "", element("b", "", DATA.labels[index]), ` token ${index + 1}`),
    table([["", ""], ["norm", "number"], ["change", "number"]],
      curve.groups.map((name, i) => [named(name, colourOf(i, curve.groups.length)), written(curve.norms[i][index]), written(curve.changes[i][index])])),
  ];
}

function named(name, colour) {
  const swatch = element("span", "swatch square");
  swatch.style.background = colour;
  return element("span", "", swatch, name);
}

/** The mean over the curves of the change at each token. */
function meanChange(index) {
  const known = curve.changes.map((values) => values[index]).filter((value) => value !== null);
  return known.reduce((a, b) => a + b, 0) / (known.length || 1);
}

function chooseTensor(index) {
  curve = layer.curves[index];
  [...document.getElementById("tensors").children].forEach((each, i) => each.setAttribute("aria-pressed", String(i === index)));
  cursors.length = 0;
  hideTip();
  drawOverText("norms", curve.norms, "norm of the state");
  drawOverText("changes", curve.changes, "relative change of the state");
  document.getElementById("groups").replaceChildren(...curve.groups.map((name, i) => named(name, colourOf(i, curve.groups.length))));
  tokens.forEach((token, i) => {
    token.style.background = colourOf(1, 2, 0.75 * Math.min(1, meanChange(i)));
  });
}

function drawInfluence() {
  const values = layers.flatMap((each) => each.influence).filter((value) => value > 0);
  const high = values.reduce((a, b) => Math.max(a, b), 1e-30);
  const low = Math.max(values.reduce((a, b) => Math.min(a, b), high), high * 1e-9);
  const span = Math.log10(high / low) || 1;
  const y = { map: (value) => Math.max(-0.01, Math.log10(value / low) / span), ticks: powers(low, high) };
  const reach = Math.log10(Math.max(2, tokens.length));
  const ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000].filter((t) => t <= tokens.length);
  const x = { map: (back) => Math.log10(back) / reach, ticks, name: "tokens back" };
  const curves = layers.map((each, i) => ({
    values: each.influence.map((value) => (value > 0 ? value : null)),
    colour: colourOfLayer(i),
    width: each === layer ? 3 : i === layers.length - 1 ? 2 : 1.1,
    name: each.name,
  }));
  document.getElementById("influence").replaceChildren(chart(300, x, y, curves, "influence by distance").made);
  document.getElementById("reach").replaceChildren(table(
    [["", ""], ["", ""], ["half of the influence", "number"], ["90% of it", "number"]],
    layers.map((each, i) => [named(each.name, colourOfLayer(i)), each.of, `last ${each.tokens_50.toLocaleString("en")}`, `last ${each.tokens_90.toLocaleString("en")}`])));
}

function colourOfLayer(i) {
  return i === layers.length - 1 ? "var(--text)" : colourOf(i, layers.length - 1);
}

choices(document.getElementById("layers"), recurrent.map((i) => [layers[i].name]), (index) => {
  layer = layers[recurrent[index]];
  const buttons = layer.curves.map((each, i) => {
    const button = element("button", "", `${each.tensor}, ${each.size.toLocaleString("en")} numbers`);
    button.type = "button";
    button.addEventListener("click", () => chooseTensor(i));
    return button;
  });
  document.getElementById("tensors").replaceChildren(...buttons);
  chooseTensor(0);
  drawInfluence();
})(0);
