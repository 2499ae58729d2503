// The table of runs. Only visible rows are elements, so ten thousand scroll like ten.

import { byId, el, renew, swatch } from "./dom.js";
import * as format from "./format.js";
import { VAL_QUICK, colour, filtered, seconds, selected } from "./runs.js";
import { change, state } from "./state.js";

const ROW_HEIGHT = 30;
const MORE_ROWS = 8; // rendered above and below the visible ones
const CHECK_WIDTH = 34;

// In table order; columns with a larger `rank` are hidden first in narrow windows.
const COLUMNS = [
  { key: "name", title: "Name", width: 170, rank: 0, fill: nameCell },
  { key: "status", title: "Status", width: 96, rank: 1, fill: statusCell },
  { key: "project", title: "Project", width: 124, rank: 6, text: (row) => row.project },
  { key: "started", title: "Started", width: 140, rank: 5, text: (row) => format.moment(row.started) },
  { key: "duration", title: "Duration", width: 80, rank: 4, right: true, text: (row) => format.duration(seconds(row)) },
  { key: "parameters", title: "Params", width: 74, rank: 8, right: true, text: (row) => format.compact(row.parameters), hint: (row) => format.integer(row.parameters) },
  { key: "step", title: "Step", width: 76, rank: 3, right: true, text: (row) => format.integer(row.step) },
  { key: "best_loss", title: "Best loss", width: 88, rank: 2, right: true, fill: lossCell },
  { key: "tags", title: "Tags", width: 130, rank: 7, fill: tagsCell },
];

let rows = [];
let columns = COLUMNS;
let active = 0; // the row with keyboard focus
let anchor = null; // start of a range selection
let head, body, spacer;
const pool = [];

export function createTable() {
  head = el("div", { class: "row head", role: "row" });
  spacer = el("div", { class: "spacer", role: "presentation" });
  body = el("div", { class: "body", role: "grid", tabIndex: 0, ariaLabel: "Runs", ariaMultiSelectable: "true" }, head, spacer);
  byId("table").append(body);
  body.addEventListener("scroll", render, { passive: true });
  body.addEventListener("click", clicked);
  body.addEventListener("keydown", pressed);
  new ResizeObserver(layout).observe(body);
  byId("select-filtered").onclick = () => select([...new Set([...state.runs, ...rows.map((row) => row.name)])]);
  byId("clear").onclick = () => select([]);
}

function select(names) {
  const values = { runs: names };
  if (names.length && !state.runs.length && state.tab === "runs") values.tab = "curves";
  change(values);
}

export const scrollToTop = () => (body.scrollTop = 0);

/** Filter, sort and draw. */
export function refreshTable() {
  rows = filtered();
  active = Math.min(active, Math.max(0, rows.length - 1));
  body.ariaRowCount = String(rows.length + 1);
  spacer.style.height = `${rows.length * ROW_HEIGHT}px`;
  byId("select-filtered").textContent = state.q ? `Select filtered (${format.integer(rows.length)})` : `Select all (${format.integer(rows.length)})`;
  byId("select-filtered").disabled = !rows.length;
  byId("clear").textContent = state.runs.length ? `Clear (${format.integer(state.runs.length)})` : "Clear";
  byId("clear").disabled = !state.runs.length;
  renderHead();
  render();
}

function layout() {
  let left = body.clientWidth - CHECK_WIDTH - 4;
  const fitting = new Set();
  for (const column of [...COLUMNS].sort((a, b) => a.rank - b.rank)) {
    if (fitting.size && left < column.width) break;
    left -= column.width;
    fitting.add(column);
  }
  columns = COLUMNS.filter((column) => fitting.has(column));
  const widths = columns.map((c) => (c.key === "name" ? `minmax(${c.width}px, 1fr)` : c.key === "tags" ? `minmax(${c.width}px, 0.6fr)` : `${c.width}px`));
  body.style.setProperty("--columns", [`${CHECK_WIDTH}px`, ...widths].join(" "));
  for (const row of pool.splice(0)) row.element.remove();
  renderHead();
  render();
}

function renderHead() {
  const key = state.sort.replace(/^-/, "");
  const down = state.sort.startsWith("-");
  renew(
    head,
    el("span", { role: "columnheader" }),
    columns.map((column) => {
      const sorted = column.key === key;
      const arrow = sorted ? (down ? " ↓" : " ↑") : "";
      const next = sorted && !down ? `-${column.key}` : column.key;
      const button = el("button", { type: "button", title: `Sort by ${column.title.toLowerCase()}`, onclick: () => change({ sort: next }), data: { key: column.key } }, column.title + arrow);
      return el("span", { role: "columnheader", class: column.right ? "right" : "", "aria-sort": sorted ? (down ? "descending" : "ascending") : "none" }, button);
    }),
  );
}

function render() {
  const first = Math.max(0, Math.floor(body.scrollTop / ROW_HEIGHT) - MORE_ROWS);
  const count = Math.ceil(body.clientHeight / ROW_HEIGHT) + 2 * MORE_ROWS;
  const last = Math.min(rows.length, first + count);
  while (pool.length < last - first) pool.push(createRow());
  const chosen = selected();
  // A visible row keeps its element, so that scrolling changes few of them.
  const size = pool.length;
  const drawn = new Set();
  for (let index = first; index < last; index += 1) {
    const entry = pool[index % size];
    drawn.add(entry);
    fill(entry, rows[index], index, chosen.has(rows[index].name));
  }
  for (const entry of pool) entry.element.hidden = !drawn.has(entry);
  body.setAttribute("aria-activedescendant", rows.length ? `row-${active}` : "");
}

function createRow() {
  const check = el("input", { type: "checkbox", tabIndex: -1 });
  const cells = columns.map((column) => el("span", { class: `cell of-${column.key}${column.right ? " right" : ""}`, role: "gridcell" }));
  const element = el("div", { class: "row", role: "row" }, el("span", { class: "cell check", role: "gridcell" }, check), cells);
  spacer.append(element);
  return { element, check, cells };
}

function fill(entry, row, index, chosen) {
  const { element, check, cells } = entry;
  element.style.transform = `translateY(${index * ROW_HEIGHT}px)`;
  element.id = `row-${index}`;
  element.dataset.index = index;
  element.ariaRowIndex = String(index + 2);
  element.ariaSelected = String(chosen);
  element.classList.toggle("active", index === active);
  check.checked = chosen;
  check.ariaLabel = `Select ${row.name}`;
  columns.forEach((column, position) => {
    const cell = cells[position];
    if (column.fill) column.fill(cell, row, chosen);
    else {
      const text = column.text(row);
      if (cell.textContent !== text) cell.textContent = text;
      cell.title = column.hint ? column.hint(row) : "";
    }
  });
}

function nameCell(cell, row, chosen) {
  const link = el("button", { type: "button", class: "link name", tabIndex: -1, title: `${row.name}: details` }, row.name);
  cell.replaceChildren(chosen ? swatch(colour(row.name)) : "", link);
}

function statusCell(cell, row) {
  cell.replaceChildren(el("span", { class: `status ${row.status}` }, row.status));
}

function lossCell(cell, row) {
  const value = el("span", {}, format.number(row.best_loss));
  const mark = el("span", { class: "bad", title: "The last loss is NaN or infinite" }, "⚠ ");
  const isQuick = row.split === VAL_QUICK;
  const quick = el("span", { class: "muted" }, "quick ");
  cell.replaceChildren(...(row.diverged ? [mark] : []), ...(isQuick ? [quick] : []), value);
  const meaning = isQuick ? ": of few batches; the whole validation split has not been evaluated yet" : "";
  cell.title = row.split ? `The lowest on ${row.split}${meaning}` : "";
}

function tagsCell(cell, row) {
  cell.replaceChildren(...row.tags.map((tag) => el("span", { class: "tag" }, tag)));
  cell.title = row.tags.join(", ");
}

function clicked(event) {
  const element = event.target.closest(".row:not(.head)");
  if (!element) return;
  const index = Number(element.dataset.index);
  active = index;
  if (event.target.closest("button.name")) {
    change({ run: rows[index].name, tab: "run" });
    return;
  }
  choose(index, event.shiftKey);
}

function choose(index, range) {
  const name = rows[index].name;
  const on = !selected().has(name);
  let names = [name];
  if (range && anchor !== null) {
    const [low, high] = [Math.min(anchor, index), Math.max(anchor, index)];
    names = rows.slice(low, high + 1).map((row) => row.name);
  }
  anchor = index;
  const other = new Set(names);
  const rest = state.runs.filter((old) => !other.has(old));
  select(on || range ? [...rest, ...names] : rest);
  render();
}

function pressed(event) {
  if (event.target !== body) return;
  const page = Math.floor(body.clientHeight / ROW_HEIGHT) - 2;
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -rows.length, End: rows.length };
  if (event.key in moves && rows.length) {
    active = Math.min(rows.length - 1, Math.max(0, active + moves[event.key]));
    const top = active * ROW_HEIGHT;
    const seen = body.clientHeight - head.offsetHeight;
    if (top < body.scrollTop) body.scrollTop = top;
    if (top + ROW_HEIGHT > body.scrollTop + seen) body.scrollTop = top + ROW_HEIGHT - seen;
    render();
  } else if (event.key === " " && rows[active]) {
    choose(active, event.shiftKey);
  } else if (event.key === "Enter" && rows[active]) {
    change({ run: rows[active].name, tab: "run" });
  } else return;
  event.preventDefault();
}
