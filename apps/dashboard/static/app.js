// The page: tabs, banners, and polling for changes every two seconds.

import * as compare from "./compare.js";
import * as curves from "./curves.js";
import { byId, el, renew } from "./dom.js";
import { integer, plural } from "./format.js";
import * as run from "./run.js";
import { assignColours, broken, runs, update } from "./runs.js";
import * as samples from "./samples.js";
import * as sql from "./sql.js";
import { change, onChange, state } from "./state.js";
import { createTable, refreshTable, scrollToTop } from "./table.js";

const POLL_MILLISECONDS = 2000;
const VIEWS = { curves, compare, run, samples, sql };
const TITLES = { runs: "Runs", curves: "Curves", compare: "Compare", run: "Details", samples: "Samples", sql: "SQL" };

let shown = null; // the view that is drawn
let unreachable = false;

async function start() {
  const filter = byId("filter");
  filter.value = state.q;
  filter.addEventListener("input", () => change({ q: filter.value }));
  createTable();
  moveSplitter();
  onChange(follow);
  document.addEventListener("visibilitychange", () => document.hidden || poll());
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, textarea, select")) {
      filter.focus();
      event.preventDefault();
    }
  });
  drawTabs();
  await poll();
}

let timer;

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const changed = await update();
    unreachable = false;
    if (changed) {
      assignColours();
      refreshTable();
      drawCounts();
      showView(changed);
    }
    drawBanners();
  } catch (error) {
    unreachable = true;
    drawBanners(error);
    if (!(error instanceof TypeError)) console.error(error); // fetch fails with a TypeError
  }
  timer = setTimeout(poll, POLL_MILLISECONDS);
}

function follow(changed) {
  const filter = byId("filter");
  if (filter.value !== state.q) filter.value = state.q;
  if (changed.has("runs") || changed.has("group")) assignColours();
  if (["runs", "group", "q", "sort"].some((key) => changed.has(key))) refreshTable();
  if (changed.has("q") || changed.has("sort")) scrollToTop();
  if (changed.has("tab")) drawTabs();
  if ([...changed].some((key) => key !== "q" && key !== "sort")) showView(null);
}

/** Draw the view of the tab; `changed` are the changed runs, null if the state changed. */
function showView(changed) {
  const empty = !runs.size;
  byId("empty").hidden = !empty;
  document.body.dataset.layout = empty ? "empty" : state.tab === "runs" ? "table" : "split";
  if (empty) drawEmpty();
  const view = empty ? null : VIEWS[state.tab] || null;
  if (view !== shown) {
    shown?.hide?.();
    byId("view").replaceChildren();
    shown = view;
    view?.show(byId("view"));
  } else {
    view?.refresh(changed);
  }
}

function drawTabs() {
  const tabs = Object.entries(TITLES).map(([tab, title]) =>
    el("button", { type: "button", role: "tab", ariaSelected: String(state.tab === tab), onclick: () => change({ tab }) }, title),
  );
  renew(byId("tabs"), tabs);
}

function drawCounts() {
  const counts = {};
  for (const row of runs.values()) counts[row.status] = (counts[row.status] || 0) + 1;
  const parts = ["running", "died", "failed"].filter((status) => counts[status]).map((status) => `${integer(counts[status])} ${status}`);
  byId("counts").textContent = [plural(runs.size, "run"), ...parts].join(" · ");
  document.title = counts.running ? `(${counts.running}) Experiments` : "Experiments";
}

function drawBanners(error = null) {
  const banners = [];
  if (unreachable) {
    const reason = error instanceof TypeError ? "The server does not answer. Is it still running? Trying again." : error.message;
    banners.push(el("div", { class: "banner bad" }, reason));
  }
  if (broken.length) {
    const list = el("ul", {}, broken.map(([file, reason]) => el("li", {}, el("code", {}, file), ` ${reason}`)));
    const wasOpen = byId("banners").querySelector("details")?.open;
    banners.push(el("details", { class: "banner", open: Boolean(wasOpen) }, el("summary", {}, `${plural(broken.length, "file")} of the store cannot be read and ${broken.length === 1 ? "is" : "are"} left out`), list));
  }
  byId("banners").replaceChildren(...banners);
}

function drawEmpty() {
  const command = (text) => el("pre", {}, el("code", {}, text));
  byId("empty").replaceChildren(
    el("h2", {}, "No experiments yet"),
    el("p", {}, "This one trains a small transformer in about two minutes; it shows up here while it runs:"),
    command("make quickstart"),
    el("p", {}, "Or, from Python:"),
    command('from common.utils import start_experiment\n\nwith start_experiment("first") as run:\n    for step in range(100):\n        run.log({"loss": 1 / (step + 1)}, step=step)'),
  );
}

/** The divider between table and view, moved by dragging or with the arrow keys. */
function moveSplitter() {
  const splitter = byId("splitter");
  const set = (pixels) => {
    const width = Math.round(Math.min(Math.max(pixels, 260), innerWidth - 420));
    byId("runs").style.setProperty("--width", `${width}px`);
    splitter.setAttribute("aria-valuenow", String(width));
    localStorage.setItem("width", String(width));
  };
  if (localStorage.getItem("width")) set(Number(localStorage.getItem("width")));
  splitter.addEventListener("pointerdown", (event) => {
    splitter.setPointerCapture(event.pointerId);
    splitter.onpointermove = (moved) => set(moved.clientX);
  });
  splitter.addEventListener("pointerup", () => (splitter.onpointermove = null));
  splitter.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -40, ArrowRight: 40 }[event.key];
    if (step) set(byId("runs").offsetWidth + step);
  });
}

start();
