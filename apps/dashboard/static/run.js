// The view "details": all facts of one run, with editable tags and note.

import { get, post } from "./api.js";
import { el, oneAtATime } from "./dom.js";
import * as format from "./format.js";
import { runs } from "./runs.js";
import { change, state } from "./state.js";

let root;
let manifest = null;
let message = "";

export function show(view) {
  root = el("div", { class: "details" });
  view.append(root);
  fetchManifest();
}

export function refresh(changed) {
  const name = current();
  // Do not redraw while the user is typing.
  if (root.contains(document.activeElement) && document.activeElement.matches("input, textarea") && manifest?.name === name) return;
  if (!changed || changed.has(name)) fetchManifest();
}

const current = () => (runs.has(state.run) ? state.run : state.runs[0] || "");

const fetchManifest = oneAtATime(async () => {
  const name = current();
  if (!name) {
    root.replaceChildren(el("p", { class: "hint" }, "Choose a run in the table to see its details."));
    return;
  }
  if (manifest?.name !== name) message = "";
  try {
    manifest = await get("run", { name });
    draw();
  } catch (error) {
    root.replaceChildren(el("p", { class: "hint bad" }, error.message));
  }
});

function draw() {
  const facts = manifest;
  root.replaceChildren(
    el("div", { class: "bar" }, el("h2", {}, facts.name), el("span", { class: `status ${facts.status}` }, facts.status), picker()),
    annotations(facts),
    el("div", { class: "columns" }, section("Run", known(facts)), section("Configuration", flat(facts.config))),
  );
}

/** Selector of one of several selected runs. */
function picker() {
  const names = [...new Set([manifest.name, ...state.runs])].slice(0, 200);
  if (names.length < 2) return "";
  const choose = el("select", { ariaLabel: "Run", onchange: () => change({ run: choose.value }) }, names.map((name) => el("option", { value: name }, name)));
  choose.value = manifest.name;
  return choose;
}

function annotations(facts) {
  const remove = (tag) => el("button", { type: "button", class: "link", ariaLabel: `Remove the tag ${tag}`, onclick: () => annotate({ remove_tags: [tag] }) }, "×");
  const tags = facts.tags.map((tag) => el("span", { class: "tag" }, tag, remove(tag)));
  const added = el("input", { type: "text", placeholder: "add a tag", ariaLabel: "Add a tag", class: "add-tag" });
  added.onkeydown = (event) => {
    if (event.key === "Enter" && added.value.trim()) annotate({ add_tags: [added.value.trim()] });
  };
  const written = typeof facts.note === "string" ? facts.note : facts.note ? JSON.stringify(facts.note) : "";
  const note = el("textarea", { rows: 2, placeholder: "A note: what this run showed", ariaLabel: "Note", class: "note", value: written });
  const save = el("button", { type: "button", disabled: true, onclick: () => annotate({ note: note.value }) }, "Save note");
  note.oninput = () => (save.disabled = note.value === written);
  note.onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) annotate({ note: note.value });
  };
  return el("div", { class: "annotations" }, el("div", { class: "tags" }, tags, added), note, el("div", { class: "bar" }, save, el("span", { class: "muted", role: "status" }, message)));
}

async function annotate(changes) {
  try {
    const now = await post("annotate", { name: manifest.name, ...changes });
    Object.assign(manifest, now);
    message = "Saved.";
  } catch (error) {
    message = `Not saved: ${error.message}${error.hint ? ` (${error.hint})` : ""}`;
  }
  draw();
  if (changes.add_tags) root.querySelector(".add-tag").focus();
}

const SHOWN = ["name", "status", "tags", "note", "config", "packages", "file", "argv"];

function known(facts) {
  const when = (text) => (text ? format.moment(Date.parse(text)) : null);
  const first = {
    project: facts.project || null,
    seed: facts.seed,
    started: when(facts.started),
    finished: when(facts.finished),
    duration: facts.duration === null ? null : format.duration(facts.duration),
    parameters: facts.parameters === null ? null : format.integer(facts.parameters),
    tokens: facts.tokens === null ? null : format.integer(facts.tokens),
    "git commit": facts.git_commit,
    uncommitted: facts.git_dirty ? "there were uncommitted changes" : null,
    host: facts.host,
    command: Array.isArray(facts.argv) ? facts.argv.map(quoted).join(" ") : null,
  };
  const listed = new Set([...SHOWN, ...Object.keys(first), "git_commit", "git_dirty"]);
  const others = Object.entries(facts).filter(([key]) => !listed.has(key));
  const packages = Object.entries(facts.packages || {});
  return [...Object.entries(first), ...others, ...packages].filter(([, value]) => value !== null && value !== undefined);
}

/** Quote an argument for a shell. */
const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${String(text).replaceAll("'", "'\\''")}'`);

function flat(config, prefix = "") {
  return Object.entries(config || {}).flatMap(([key, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value) ? flat(value, `${prefix}${key}.`) : [[`${prefix}${key}`, value]],
  );
}

function section(title, entries) {
  const rows = entries.map(([key, value]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, format.value(value))));
  const content = rows.length ? el("table", { class: "facts" }, el("tbody", {}, rows)) : el("p", { class: "muted" }, "None was given.");
  return el("section", {}, el("h3", {}, title), content);
}
