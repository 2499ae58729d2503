const DATA = JSON.parse(document.getElementById("data").textContent);

/** Create an element with children; strings are text, never HTML. */
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function table(columns, rows) {
  const line = (tag, cells) =>
    element("tr", "", ...cells.map((cell, i) => element(tag, columns[i][1], cell)));
  return element(
    "table",
    "",
    element("thead", "", line("th", columns.map(([name]) => name))),
    element("tbody", "", ...rows.map((row) => line("td", row))),
  );
}

const tip = element("div", "");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);

/** Show `content` beside the rectangle `box` of the window, where there is room. */
function showTip(content, box) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, innerWidth - width - 8));
  const below = box.bottom + 8;
  const top = below + height > innerHeight ? Math.max(8, box.top - height - 8) : below;
  tip.style.left = `${left}px`;
  tip.style.top = `${top}px`;
}

function hideTip() {
  tip.hidden = true;
}

function percent(p) {
  return p >= 0.001 ? `${(100 * p).toFixed(1)}%` : p > 0 ? p.toExponential(1) : "0%";
}

/**
 * Hovering, tapping or the arrow keys select a token of the text, and show `describe(index)` beside it.
 * `selected(index)` is called with each selected token, and with -1 when none is.
 */
function selectTokens(describe, selected = () => {}) {
  const text = document.querySelector(".text");
  const tokens = [...text.querySelectorAll(".token")];
  const places = new Map(tokens.map((token, index) => [token, index]));
  let current = -1;
  const placeOf = (event) => places.get(event.target.closest(".token")) ?? -1;

  function select(index) {
    tokens[current]?.classList.remove("on");
    current = index;
    selected(index);
    const token = tokens[index];
    if (!token) return hideTip();
    token.classList.add("on");
    const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
    if (box.bottom < 0 || box.top > innerHeight) return hideTip();
    showTip(describe(index), box);
  }

  text.addEventListener("pointerover", (event) => select(placeOf(event)));
  text.addEventListener("pointerleave", () => select(-1));
  text.addEventListener("pointerdown", (event) => {
    if (placeOf(event) >= 0) select(placeOf(event));
  });
  document.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") select(-1);
    if (!step) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(tokens.length - 1, current + step));
    tokens[next].scrollIntoView({ block: "nearest" });
    select(next);
  });
  addEventListener("scroll", () => select(current), { passive: true, capture: true });
  return { tokens, select };
}

/** A row of buttons, one of which is pressed; up and down change it as well. Returns `press(index)`. */
function choices(box, contents, pressed) {
  let current = 0;
  const buttons = contents.map((content, index) => {
    const made = element("button", "", ...content);
    made.type = "button";
    made.addEventListener("click", () => press(index));
    return made;
  });
  function press(index) {
    current = index;
    buttons.forEach((each, i) => each.setAttribute("aria-pressed", String(i === index)));
    pressed(index);
  }
  box.append(...buttons);
  document.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    press(Math.max(0, Math.min(buttons.length - 1, current + step)));
  });
  return press;
}

/** An SVG element: attributes by name, strings as text. */
function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Okabe and Ito 2008; further ones have hues a golden angle apart.
const PALETTE = ["#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2", "#b5a800", "#8f6fd6"];

function colourOf(index, count, opacity = 1) {
  const colour = count <= PALETTE.length ? PALETTE[index] : `hsl(${(index * 137.508) % 360} 70% ${45 + 10 * (index % 3)}%)`;
  return opacity === 1 ? colour : `color-mix(in srgb, ${colour} ${Math.round(100 * opacity)}%, transparent)`;
}
