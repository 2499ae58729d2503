// Dots on a canvas; the wheel zooms around the pointer, dragging pans, typing searches.
const plane = document.getElementById("plane");
const search = document.querySelector("input");
const context = plane.getContext("2d");
const WIDTH = Math.min(1180, document.body.clientWidth - 50);
const HEIGHT = Math.max(420, Math.min(720, innerHeight - 60));
const ratio = devicePixelRatio || 1;
plane.width = WIDTH * ratio;
plane.height = HEIGHT * ratio;
plane.style.width = `${WIDTH}px`;
plane.style.height = `${HEIGHT}px`;

const xs = DATA.points.map((p) => p[0]);
const ys = DATA.points.map((p) => p[1]);
const [left, right, low, high] = [least(xs), -least(xs.map((v) => -v)), least(ys), -least(ys.map((v) => -v))];
const common = DATA.counts.map((_, i) => i).sort((a, b) => DATA.counts[b] - DATA.counts[a]);
let view;
let found = new Set();
let pointed = -1;
let drag = null;

function least(values) {
  return values.reduce((a, b) => Math.min(a, b), Infinity);
}

function reset() {
  const scale = 0.92 * Math.min(WIDTH / (right - left || 1), HEIGHT / (high - low || 1));
  view = { scale, x: WIDTH / 2 - (scale * (left + right)) / 2, y: HEIGHT / 2 + (scale * (low + high)) / 2 };
}

const place = (i) => [view.x + view.scale * xs[i], view.y - view.scale * ys[i]];
const radius = (i) => 2 + 0.55 * Math.log1p(DATA.counts[i]);

function draw() {
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, WIDTH, HEIGHT);
  for (let i = xs.length - 1; i >= 0; i--) {
    const [x, y] = place(i);
    if (x < -20 || y < -20 || x > WIDTH + 20 || y > HEIGHT + 20) continue;
    context.beginPath();
    context.arc(x, y, radius(i), 0, 2 * Math.PI);
    context.globalAlpha = found.size && !found.has(i) ? 0.12 : 0.7;
    if (DATA.counts[i] === 0) {
      context.strokeStyle = "#999";
      context.stroke();
    } else {
      context.fillStyle = DATA.colours[DATA.kinds[i]];
      context.fill();
    }
  }
  context.globalAlpha = 1;
  name();
}

/** Labels without overlap, most frequent tokens first. */
function name() {
  context.font = '12px "DejaVu Sans Mono", Menlo, Consolas, monospace';
  context.textBaseline = "bottom";
  const taken = [];
  for (const i of found.size ? found : common) {
    if (taken.length >= 160 || (!found.size && DATA.counts[i] === 0)) break;
    const [x, y] = place(i);
    if (x < 0 || y < 12 || x > WIDTH || y > HEIGHT) continue;
    const width = context.measureText(DATA.labels[i]).width;
    const box = [x + 4, y - 15, x + 6 + width, y - 2];
    if (taken.some((b) => box[0] < b[2] && b[0] < box[2] && box[1] < b[3] && b[1] < box[3])) continue;
    taken.push(box);
    context.lineWidth = 3;
    context.strokeStyle = "rgb(255 255 255 / 80%)";
    context.strokeText(DATA.labels[i], x + 4, y - 2);
    context.fillStyle = "#1b1d22";
    context.fillText(DATA.labels[i], x + 4, y - 2);
  }
  context.lineWidth = 1;
  if (pointed >= 0) {
    const [x, y] = place(pointed);
    context.beginPath();
    context.arc(x, y, radius(pointed) + 3, 0, 2 * Math.PI);
    context.strokeStyle = "#1b1d22";
    context.stroke();
  }
}

function nearest(x, y) {
  let best = -1;
  let bestDistance = 14;
  for (let i = 0; i < xs.length; i++) {
    const [px, py] = place(i);
    const distance = Math.hypot(px - x, py - y) - radius(i);
    if (distance < bestDistance) [best, bestDistance] = [i, distance];
  }
  return best;
}

plane.addEventListener("pointerdown", (event) => {
  drag = { x: event.offsetX - view.x, y: event.offsetY - view.y };
  plane.setPointerCapture(event.pointerId);
});
plane.addEventListener("pointerup", () => (drag = null));
plane.addEventListener("pointermove", (event) => {
  if (drag) {
    view.x = event.offsetX - drag.x;
    view.y = event.offsetY - drag.y;
    hideTip();
    draw();
    return;
  }
  const before = pointed;
  pointed = nearest(event.offsetX, event.offsetY);
  if (pointed !== before) draw();
  if (pointed < 0) return hideTip();
  showTip(
    [element("b", "", DATA.labels[pointed]), ` token ${pointed}, ${DATA.kind_names[DATA.kinds[pointed]]}`,
      element("div", "", `${DATA.counts[pointed].toLocaleString("en")} times in the training text`)],
    { left: event.clientX + 12, top: event.clientY, bottom: event.clientY },
  );
});
plane.addEventListener("pointerleave", hideTip);
plane.addEventListener("wheel", (event) => {
  event.preventDefault();
  const factor = Math.exp(-event.deltaY / 400);
  view.x = event.offsetX + (view.x - event.offsetX) * factor;
  view.y = event.offsetY + (view.y - event.offsetY) * factor;
  view.scale *= factor;
  draw();
}, { passive: false });
plane.addEventListener("dblclick", () => { reset(); draw(); });

search.addEventListener("input", () => {
  // Show a typed space like in the labels.
  const wanted = search.value.toLowerCase().replaceAll(" ", "␣");
  found = new Set(wanted ? common.filter((i) => DATA.labels[i].toLowerCase().includes(wanted)) : []);
  document.getElementById("found").textContent = wanted ? `${found.size} found` : "";
  draw();
});

const kinds = DATA.kind_names.map((kind, k) => {
  const swatch = element("span", "swatch");
  swatch.style.background = DATA.colours[k];
  return element("span", "", swatch, kind);
}).filter((_, k) => DATA.kinds.some((kind, i) => kind === k && DATA.counts[i] > 0));
document.getElementById("kinds").append(...kinds, element("span", "", element("span", "ring"), "never trained"));
reset();
draw();
