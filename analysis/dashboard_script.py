"""Scripts of a dashboard. They load nothing: data come with the page, or from a script beside it."""

from __future__ import annotations

# Buttons play a segment and stop at its end; a line runs over the spectrogram; a slider chooses the dose.
FEATURE_SCRIPT = """
"use strict";
for (const hit of document.querySelectorAll(".hit")) {
  const audio = hit.querySelector("audio"), buttons = [...hit.querySelectorAll("[data-pad]")];
  const view = hit.querySelector(".view"), line = hit.querySelector(".playhead"), box = hit.querySelector(".scroll");
  const start = Number(hit.dataset.start), end = Number(hit.dataset.end), seconds = Number(hit.dataset.seconds);
  box.scrollLeft = (start + end) / 2 / seconds * view.offsetWidth - box.clientWidth / 2;
  if (!audio) continue;
  let stop = Infinity;
  const release = () => { stop = Infinity; for (const button of buttons) button.removeAttribute("aria-pressed"); };
  const follow = () => {
    const now = audio.currentTime;
    if (now >= stop) { audio.pause(); release(); }
    line.hidden = false;
    line.style.left = 100 * Math.min(now / seconds, 1) + "%";
    if (!audio.paused && !audio.ended) requestAnimationFrame(follow);
  };
  const play = (from, until, button) => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    const begin = () => {
      release();
      audio.currentTime = from;
      stop = until;
      if (button) button.setAttribute("aria-pressed", "true");
      audio.play();
    };
    if (audio.readyState >= 1) begin();
    else { audio.addEventListener("loadedmetadata", begin, {once: true}); audio.preload = "auto"; audio.load(); }
  };
  for (const event of ["play", "seeked", "pause"]) audio.addEventListener(event, follow);
  for (const event of ["ended", "pause"]) audio.addEventListener(event, release);
  for (const button of buttons) button.addEventListener("click", () => {
    const pad = Number(button.dataset.pad);
    play(Math.max(start - pad, 0), Math.min(end + pad, seconds), button);
  });
  view.addEventListener("click", (event) => {
    const place = view.getBoundingClientRect();
    play((event.clientX - place.left) / place.width * seconds, Infinity, null);
  });
}
for (const slider of document.querySelectorAll(".dose input")) {
  const doses = slider.dataset.doses.split("|"), tables = slider.closest(".steering").querySelectorAll("[data-dose]");
  const show = () => {
    const dose = doses[Number(slider.value)];
    slider.setAttribute("aria-valuetext", "dose " + dose);
    slider.nextElementSibling.value = dose;
    for (const table of tables) table.hidden = table.dataset.dose !== dose;
  };
  slider.closest(".dose").hidden = false;
  slider.addEventListener("input", show);
  show();
}
"""

# The table of the index: searched, sorted and turned page by page, 50 rows in the document at a time.
INDEX_SCRIPT = """
"use strict";
const begun = performance.now();
const {columns, digits} = window.DASHBOARD, ROWS = 50;
const byKey = new Map(columns.map((column) => [column.key, column]));
const $ = (id) => document.getElementById(id);
const [search, group, table, body] = [$("search"), $("class"), $("features"), $("rows")];
const value = (column, row) => column.names ? column.names[column.values[row]] : column.values[row];
const latents = byKey.get("latent").values, classes = byKey.get("class");
const haystack = latents.map((latent, row) => columns.filter((column) => column.names)
  .map((column) => value(column, row)).join("\\n").toLowerCase());
const state = {q: "", class: "", sort: table.dataset.sort, up: table.dataset.up === "1", page: 0};

const read = () => {
  const given = new URLSearchParams(location.hash.slice(1));
  state.q = given.get("q") ?? "";
  state.class = given.get("class") ?? "";
  if (byKey.has(given.get("sort"))) { state.sort = given.get("sort"); state.up = given.get("up") === "1"; }
  state.page = Math.max(0, (Number.parseInt(given.get("page"), 10) || 1) - 1);
};

const format = (column, row) => {
  const found = value(column, row);
  if (found === null) return "";
  if (column.kind === "percent") return (100 * found).toPrecision(3) + " %";
  if (column.kind === "fixed") return found.toFixed(2);
  if (column.kind === "precise") return found.toPrecision(3);
  return String(found);
};

const matching = () => {
  const words = state.q.toLowerCase().split(/\\s+/).filter(Boolean);
  const found = [];
  for (let row = 0; row < latents.length; row++) {
    if (classes && state.class && value(classes, row) !== state.class) continue;
    if (words.every((word) => haystack[row].includes(word) || String(latents[row]) === word)) found.push(row);
  }
  const column = byKey.get(state.sort), sign = state.up ? 1 : -1;
  const rank = column.names ? column.order : null;
  const key = (row) => rank ? (value(column, row) === "" ? null : rank[column.values[row]]) : column.values[row];
  return found.sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === null || y === null) return (x === null) - (y === null) || a - b;  // what is not known comes last
    return sign * (x - y) || a - b;
  });
};

const link = (row) => {
  const cell = document.createElement("th"), anchor = document.createElement("a");
  cell.scope = "row";
  anchor.href = "features/" + String(latents[row]).padStart(digits, "0") + ".html";
  anchor.textContent = latents[row];
  cell.append(anchor);
  return cell;
};

const show = () => {
  const found = matching(), pages = Math.max(1, Math.ceil(found.length / ROWS));
  state.page = Math.min(state.page, pages - 1);
  body.replaceChildren(...found.slice(state.page * ROWS, (state.page + 1) * ROWS).map((row) => {
    const line = document.createElement("tr");
    line.append(...columns.map((column) => {
      if (column.key === "latent") return link(row);
      const cell = document.createElement("td");
      cell.className = column.names ? "wide" : "number";
      cell.textContent = format(column, row);
      return cell;
    }));
    return line;
  }));
  for (const head of table.tHead.rows[0].cells) {
    const chosen = head.dataset.key === state.sort;
    if (chosen) head.setAttribute("aria-sort", state.up ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
    head.querySelector("span").textContent = chosen ? (state.up ? "\\u2191" : "\\u2193") : "";
  }
  $("found").textContent = found.length.toLocaleString("en") + " of " + latents.length.toLocaleString("en")
    + " features" + (pages > 1 ? ", page " + (state.page + 1) + " of " + pages : "");
  $("before").disabled = state.page === 0;
  $("after").disabled = state.page === pages - 1;
};

const keep = () => {  // the address keeps the view, so that the way back from a feature leads to it
  const kept = new URLSearchParams({sort: state.sort, up: state.up ? "1" : "0", page: String(state.page + 1)});
  for (const name of ["q", "class"]) if (state[name]) kept.set(name, state[name]);
  location.replace("#" + kept);
};

const change = (changes) => { Object.assign(state, {page: 0}, changes); show(); keep(); };
read();
search.value = state.q;
group.value = state.class;
if (group.value !== state.class) state.class = group.value = "";
search.addEventListener("input", () => change({q: search.value}));
group.addEventListener("change", () => change({class: group.value}));
$("filter").addEventListener("submit", (event) => event.preventDefault());
$("before").addEventListener("click", () => change({page: state.page - 1}));
$("after").addEventListener("click", () => change({page: state.page + 1}));
for (const head of table.tHead.rows[0].cells) head.querySelector("button").addEventListener("click", () => {
  const key = head.dataset.key, first = key === "latent" || Boolean(byKey.get(key).names);
  change({sort: key, up: state.sort === key ? !state.up : first});
});
show();
$("table").hidden = false;
document.documentElement.dataset.ms = (performance.now() - begun).toFixed(1);
"""
