// Create elements. Text becomes text nodes, so content of the store is never parsed as HTML.

/** el("button", {class: "x", onclick: f, ariaLabel: "y"}, "text", child, [more]) */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key === "class") element.className = value;
    else if (key === "data") Object.assign(element.dataset, value);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

export function swatch(colour) {
  const mark = el("span", { class: "swatch" });
  mark.style.background = colour;
  return mark;
}

/** Replace the children of `parent`; focus on a button moves to the one with the same label. */
export function renew(parent, ...children) {
  const active = parent.contains(document.activeElement) ? document.activeElement : null;
  const says = (button) => button.ariaLabel || button.dataset.key || button.textContent;
  parent.replaceChildren(...children.flat().filter(Boolean));
  if (active) [...parent.querySelectorAll("button")].find((button) => says(button) === says(active))?.focus();
}

/** A group of toggle buttons, one pressed. `options`: [[value, label], ...] */
export function segmented(label, options, chosen, choose) {
  const group = el("span", { class: "segmented", role: "group", ariaLabel: label });
  for (const [value, text] of options) {
    const pressed = value === chosen;
    group.append(el("button", { type: "button", ariaPressed: String(pressed), onclick: () => choose(value) }, text));
  }
  return group;
}

export function toggle(text, pressed, change, title) {
  const properties = { type: "button", class: "toggle", ariaPressed: String(pressed), title };
  return el("button", { ...properties, onclick: () => change(!pressed) }, text);
}

/** Debounce: call `action` after `milliseconds` without a call. */
export function debounced(milliseconds, action) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
}

/** Run `task` now, or once more after the run in progress. */
export function oneAtATime(task) {
  let busy = false;
  let again = false;
  return async function run() {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      do {
        again = false;
        await task();
      } while (again);
    } finally {
      busy = false;
    }
  };
}
