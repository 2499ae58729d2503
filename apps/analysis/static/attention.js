// One canvas per head, a pixel per weight; the selected head is enlarged, with its tokens.
const time = DATA.labels.length;
const layers = DATA.layers.map((heads) => heads.map(unpack));
const grid = document.querySelector(".heads");
const map = document.getElementById("map");
const strip = document.querySelector(".text");
const MONO = '"DejaVu Sans Mono", Menlo, Consolas, monospace';
let chosen = [0, 0];
let lit = -1;

function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true) / 65535);
}

const STOPS = [[255, 255, 255], [255, 226, 161], [252, 158, 80], [214, 69, 82], [115, 21, 92], [28, 8, 56]];

/** White to dark violet: [red, green, blue] of a weight. */
function colour(weight) {
  const x = Math.sqrt(Math.max(0, Math.min(1, weight))) * (STOPS.length - 1);
  const i = Math.min(STOPS.length - 2, Math.floor(x));
  return STOPS[i].map((from, k) => Math.round(from + (x - i) * (STOPS[i + 1][k] - from)));
}

function drawSmall(canvas, weights) {
  canvas.width = canvas.height = time;
  const context = canvas.getContext("2d");
  const image = context.createImageData(time, time);
  for (let i = 0; i < time * time; i++) {
    const seen = i % time <= Math.floor(i / time);
    image.data.set(seen ? [...colour(weights[i]), 255] : [236, 238, 241, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

const small = layers.map((heads) => heads.map(() => element("canvas", "")));
const columns = Math.max(...layers.map((heads) => heads.length));
const side = Math.max(40, Math.min(96, Math.floor(440 / columns)));
grid.style.gridTemplateColumns = `auto repeat(${columns}, ${side + 2}px)`;
grid.append(element("span", "name", ""));
for (let head = 0; head < columns; head++) grid.append(element("span", "name", `head ${head}`));
layers.forEach((heads, layer) => {
  grid.append(element("span", "name", `layer ${layer}`));
  for (let head = 0; head < columns; head++) {
    const canvas = small[layer][head] ?? element("span", "");
    if (heads[head]) {
      drawSmall(canvas, heads[head]);
      canvas.style.width = canvas.style.height = `${side}px`;
      canvas.title = `layer ${layer}, head ${head}`;
      canvas.addEventListener("click", () => choose(layer, head));
    }
    grid.append(canvas);
  }
});

const ramp = document.querySelector(".ramp").getContext("2d");
for (let x = 0; x < 160; x++) {
  ramp.fillStyle = `rgb(${colour((x / 159) ** 2)})`;
  ramp.fillRect(x, 0, 1, 12);
}

const cell = Math.max(3, Math.min(20, Math.floor(560 / time)));
const labelled = cell >= 10;
const longest = Math.max(...DATA.labels.map((label) => [...label].length));
const margin = labelled ? 14 + Math.min(12, longest) * 7 : 4;

function drawLarge() {
  const weights = layers[chosen[0]][chosen[1]];
  const size = margin + time * cell + 2;
  const ratio = devicePixelRatio || 1;
  map.width = map.height = size * ratio;
  map.style.width = map.style.height = `${size}px`;
  const context = map.getContext("2d");
  context.scale(ratio, ratio);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, size, size);
  for (let row = 0; row < time; row++) {
    for (let column = 0; column < time; column++) {
      const seen = column <= row;
      context.fillStyle = seen ? `rgb(${colour(weights[row * time + column])})` : "#eceef1";
      context.fillRect(margin + column * cell, margin + row * cell, cell, cell);
    }
  }
  context.strokeStyle = "#d9dce1";
  context.strokeRect(margin - 0.5, margin - 0.5, time * cell + 1, time * cell + 1);
  if (labelled) {
    context.fillStyle = "#1b1d22";
    context.font = `11px ${MONO}`;
    context.textBaseline = "middle";
    DATA.labels.forEach((label, i) => {
      const text = [...label].length > 12 ? `${[...label].slice(0, 11).join("")}…` : label;
      const middle = margin + (i + 0.5) * cell;
      context.textAlign = "right";
      context.fillText(text, margin - 5, middle);
      context.save();
      context.translate(middle, margin - 5);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(text, 0, 0);
      context.restore();
    });
  }
  if (lit >= 0) {
    context.strokeStyle = "#2a66d0";
    context.strokeRect(margin - 0.5, margin + lit * cell - 0.5, time * cell + 1, cell + 1);
  }
}

const spans = DATA.labels.map((label) => element("span", "token", label));
spans.forEach((span, i) => {
  strip.append(span, document.createElement("wbr"));
  span.addEventListener("pointerover", () => light(i));
});

/** Colour every token by its attention weight in row `row`. */
function light(row) {
  lit = row;
  const weights = layers[chosen[0]][chosen[1]];
  spans.forEach((span, i) => {
    const weight = i <= row ? weights[row * time + i] : 0;
    span.style.background = i <= row ? `rgb(${colour(weight)})` : "#eceef1";
    span.style.color = weight > 0.3 ? "#fff" : "#1b1d22";
    span.classList.toggle("on", i === row);
    span.title = i <= row ? `${percent(weight)}` : "later: not seen";
  });
  drawLarge();
}

function choose(layer, head) {
  chosen = [layer, head];
  small.flat().forEach((canvas) => canvas.classList.remove("on"));
  small[layer][head].classList.add("on");
  document.getElementById("chosen").textContent = `layer ${layer}, head ${head}`;
  const [, , itself, before, first, distance, entropy] = DATA.statistics.find(
    (row) => row[0] === layer && row[1] === head,
  );
  document.getElementById("numbers").replaceChildren(
    table(
      [["on itself", ""], ["on the previous token", ""], ["on the first token", ""], ["mean distance", ""], ["entropy", ""]],
      [[percent(itself), percent(before), percent(first), `${distance.toFixed(1)} tokens`, `${entropy.toFixed(2)} bits`]],
    ),
  );
  light(lit >= 0 ? lit : time - 1);
}

map.addEventListener("pointermove", (event) => {
  const row = Math.floor((event.offsetY - margin) / cell);
  const column = Math.floor((event.offsetX - margin) / cell);
  if (row < 0 || column < 0 || row >= time || column >= time) return hideTip();
  if (row !== lit) light(row);
  const weight = layers[chosen[0]][chosen[1]][row * time + column];
  showTip(
    [element("b", "", DATA.labels[row]), " looks at ", element("b", "", DATA.labels[column]),
      column > row ? ": it comes later" : `: ${weight.toFixed(4)}`,
      element("div", "", `position ${row} to ${column}`)],
    { left: event.clientX + 12, top: event.clientY, bottom: event.clientY },
  );
});
map.addEventListener("pointerleave", hideTip);
choose(0, 0);
