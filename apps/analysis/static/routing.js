// Choosing a layer colours the text by its experts; choosing an expert shows its tokens alone.
let layer = DATA.layers[0];
let expert = -1;
const matrix = document.getElementById("matrix");
const experts = document.getElementById("experts");
const { tokens } = selectTokens(describe);
if (tokens.length > 1200) document.querySelector(".text").classList.add("long");

function share(index, k) {
  return layer.weights[index][k] / (layer.weights[index].reduce((a, b) => a + b, 0) || 1);
}

function describe(index) {
  const rows = layer.experts[index].map((mine, k) => {
    const bar = element("progress", "");
    bar.max = 1;
    bar.value = share(index, k);
    return [named(mine), layer.weights[index][k].toFixed(4), bar];
  });
  return [
    element("div", "", element("b", "", DATA.words[DATA.tokens[index]]), ` token ${index + 1}, layer ${layer.statistics.layer}`),
    table([["expert", ""], ["weight", "number"], ["", ""]], rows),
  ];
}

function named(index) {
  const swatch = element("span", "swatch square");
  swatch.style.background = colourOf(index, layer.load.length);
  return element("span", "", swatch, `expert ${index}`);
}

function paint() {
  tokens.forEach((token, index) => {
    const mine = expert < 0 ? 0 : layer.experts[index].indexOf(expert);
    token.classList.toggle("faint", mine < 0);
    token.style.background =
      mine < 0 ? "" : colourOf(layer.experts[index][mine], layer.load.length, 0.12 + 0.5 * share(index, mine));
  });
  [...experts.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i - 1 === expert)));
}

/** Bars of the load; the dashed line is the even load. */
function chart({ load, statistics }) {
  const [width, height] = [Math.max(150, Math.min(360, 14 * load.length)), 70];
  const most = Math.max(...load, statistics.even_load);
  const step = width / load.length;
  const bars = load.map((count, i) =>
    svg("rect", {
      x: i * step + step * 0.1,
      width: step * 0.8,
      y: height * (1 - count / most),
      height: (height * count) / most,
      fill: colourOf(i, load.length),
    }, svg("title", {}, `expert ${i}: ${count.toLocaleString("en")} tokens`)));
  const even = height * (1 - statistics.even_load / most);
  return svg("svg", { width, height, role: "img", "aria-label": `load of layer ${statistics.layer}` },
    ...bars,
    svg("line", { class: "axis", x1: 0, x2: width, y1: height, y2: height }),
    svg("line", { class: "even", x1: 0, x2: width, y1: even, y2: even }));
}

function caption({ excess_load, entropy_bits, dead_experts, experts }) {
  return `excess ${excess_load.toFixed(2)} · ${entropy_bits.toFixed(2)} of ${Math.log2(experts).toFixed(2)} bits · ${dead_experts} dead`;
}

function chooseExpert(index) {
  expert = index === expert ? -1 : index;
  paint();
}

function drawExperts() {
  const buttons = ["all experts", ...layer.load.map((_, i) => named(i))].map((content, i) => {
    const button = element("button", "", content);
    button.type = "button";
    button.addEventListener("click", () => chooseExpert(i - 1));
    return button;
  });
  experts.replaceChildren(...buttons);
}

/** A row per expert: its load, the share of each kind of token that it receives, its top tokens. */
function drawMatrix() {
  const { even_load, top_k, experts: count } = layer.statistics;
  const kinds = DATA.kinds.map((_, k) => k).filter((k) => DATA.kind_counts[k] > 0);
  const columns = [["expert", ""], ["tokens", "number"], ["of even", "number"],
    ...kinds.map((k) => [`${DATA.kinds[k]} (${DATA.kind_counts[k].toLocaleString("en")})`, "number cell"]), ["top tokens", ""]];
  const rows = layer.load.map((load, i) => [
    named(i),
    load.toLocaleString("en"),
    `${Math.round((100 * load) / even_load)}%`,
    ...kinds.map((k) => percent(layer.matrix[i][k] / DATA.kind_counts[k])),
    element("span", "tops", ...layer.top[i].map(([word, received]) =>
      element("span", "", element("b", "", DATA.words[word]), ` ${received}/${DATA.counts[word]}`))),
  ]);
  const made = table(columns, rows);
  [...made.tBodies[0].rows].forEach((row, i) =>
    kinds.forEach((k, column) => {
      const received = layer.matrix[i][k] / DATA.kind_counts[k];
      row.cells[3 + column].style.background = `color-mix(in srgb, var(--accent) ${Math.round(70 * received)}%, transparent)`;
    }));
  matrix.replaceChildren(made);
  document.getElementById("even").textContent = `An even split is ${percent(top_k / count)}.`;
}

choices(
  document.getElementById("layers"),
  DATA.layers.map((each) => [
    element("div", "", `layer ${each.statistics.layer}`), chart(each), element("div", "small", caption(each.statistics))]),
  (index) => {
    layer = DATA.layers[index];
    expert = -1;
    document.getElementById("chosen").textContent = `layer ${layer.statistics.layer}`;
    drawExperts();
    drawMatrix();
    hideTip();
    paint();
  },
)(0);
