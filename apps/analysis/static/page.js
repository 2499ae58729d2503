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
