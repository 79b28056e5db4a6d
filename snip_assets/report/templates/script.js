"use strict";
// A picture that cannot be loaded makes place for a note; listens before the page is read.
document.addEventListener("error", (event) => {
  if (event.target.tagName !== "IMG") return;
  const frame = event.target.parentElement;
  frame.classList.add("gone");
  frame.textContent = "no picture: " + event.target.alt.slice(0, 60);
}, true);

// Blurred in this browser until told otherwise; before the page is drawn.
const BLURRED = "snip-blurred";
document.documentElement.classList.toggle(BLURRED, read(BLURRED) === true);

function blurring() {
  const header = document.querySelector("body > header p");
  if (!document.querySelector(".frame img")) return;
  const button = document.createElement("button");
  const show = () => {
    const blurred = document.documentElement.classList.contains(BLURRED);
    button.textContent = blurred ? "Show pictures (b)" : "Blur pictures (b)";
  };
  const turn = () => {
    write(BLURRED, document.documentElement.classList.toggle(BLURRED));
    show();
  };
  button.type = "button";
  button.className = "blur";
  button.addEventListener("click", turn);
  document.addEventListener("keydown", (event) => {
    if (event.key === "b" && !event.ctrlKey && !event.metaKey && !event.altKey) turn();
  });
  header.append(" ", button);
  show();
}

function wilson(right, all) {
  if (!all) return null;
  const z = 1.959963984540054, share = right / all, spread = z * z / all;
  const middle = (share + spread / 2) / (1 + spread);
  const half = z / (1 + spread) * Math.sqrt(share * (1 - share) / all + spread / (4 * all));
  return [share, Math.max(0, middle - half), Math.min(1, middle + half)];
}

document.addEventListener("DOMContentLoaded", () => {
  blurring();
  threshold();
  marking();
  document.addEventListener("keydown", turnPage);
});

function threshold() {
  const slider = document.querySelector("#threshold");
  if (!slider) return;
  const rows = [...document.querySelectorAll("tr[data-threshold]")];
  const figure = slider.closest("figure");
  const show = () => {
    const row = rows[slider.value], { x, y, threshold, dropped, share, groups, pairs } = row.dataset;
    figure.querySelector(".marker").setAttribute("cx", x);
    figure.querySelector(".marker").setAttribute("cy", y);
    for (const end of ["x1", "x2"]) figure.querySelector(".cursor").setAttribute(end, x);
    const text = `${threshold}: drops ${dropped} rows (${share}), ${groups} groups, ${pairs} pairs`;
    figure.querySelector("output").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    rows.forEach((other) => other.classList.toggle("chosen", other === row));
  };
  slider.disabled = false;
  slider.addEventListener("input", show);
  show();
}

function marking() {
  const pairs = [...document.querySelectorAll(".pair")];
  if (!pairs.length) {
    for (const tally of document.querySelectorAll(".tally")) tally.remove();
    return;
  }
  const place = "snip-marks-" + document.documentElement.dataset.id;
  let marks = read(place);
  const nameOf = (pair) => `${pair.dataset.row}-${pair.dataset.earlier}`;
  // At another distance it is a mark of other rows: the shard was replaced since.
  const own = (pair) => {
    const found = marks[nameOf(pair)];
    return found && found.distance === pair.dataset.distance ? found : undefined;
  };
  const markOf = (pair) => (own(pair) || {}).mark ?? pair.dataset.mark;
  const show = () => {
    for (const pair of pairs)
      for (const button of pair.querySelectorAll("button"))
        button.setAttribute("aria-pressed", String(button.className === markOf(pair)));
    for (const tally of document.querySelectorAll(".tally")) count(tally, pairs, markOf);
  };
  const mark = (pair, value) => {
    marks = read(place); // another page may have written since
    const same = markOf(pair) === value;
    marks[nameOf(pair)] = marked(pair, same ? "" : value);
    write(place, marks);
    show();
    return !same;
  };
  const go = (pair, step) => {
    const next = pairs[Math.max(0, Math.min(pairs.length - 1, pairs.indexOf(pair) + step))];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.classList.contains("export")) save(marks, pairs, markOf);
    else if (button.classList.contains("clear")) {
      if (window.confirm("Forget all marks made in this browser?")) {
        marks = {};
        write(place, marks);
        show();
      }
    } else if (button.closest(".pair")) mark(button.closest(".pair"), button.className);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const here = document.activeElement.closest(".pair");
    const value = { r: "right", w: "wrong" }[event.key.toLowerCase()];
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (value && here) mark(here, value) ? go(here, 1) : here.focus();
    else if (step && here) go(here, step);
    // No pair that is out of sight gets a mark: the first key only leads to the one in sight.
    else if (value || (step && event.key.length === 1)) {
      let seen = pairs.filter((pair) => shown(pair) > 0.99);
      if (!seen.length) seen = [...pairs].sort((a, b) => shown(b) - shown(a)).slice(0, 1);
      (seen.find((pair) => !markOf(pair)) || seen[0]).focus();
    } else return;
    event.preventDefault();
  });
  window.addEventListener("storage", () => {
    marks = read(place);
    show();
  });
  show();
}

// The share of a pair that is in sight.
function shown(pair) {
  const { top, bottom, height } = pair.getBoundingClientRect();
  return Math.max(0, Math.min(bottom, window.innerHeight) - Math.max(top, 0)) / Math.max(height, 1);
}

// What is kept of a mark: of a pair that is in the random sample too, on whichever page, that.
function marked(pair, mark) {
  const { row, earlier, distance, kind } = pair.dataset;
  return { row, earlier, distance, set: kind, mark };
}

function count(tally, pairs, markOf) {
  const mine = pairs.filter((pair) => pair.dataset.set === tally.dataset.set).map(markOf);
  const right = mine.filter((mark) => mark === "right").length;
  const all = mine.filter((mark) => mark).length;
  const found = wilson(right, all);
  const percent = (share) => (100 * share).toFixed(1) + "%";
  tally.querySelector("output").textContent = found
    ? `${right} right of ${all} marked: ${percent(found[0])} (95%: ${percent(found[1])} to ${percent(found[2])}), ${mine.length - all} to go`
    : `nothing marked yet, ${mine.length} to go`;
}

function save(marks, pairs, markOf) {
  const all = new Map(Object.entries(marks));
  for (const pair of pairs) {
    const name = `${pair.dataset.row}-${pair.dataset.earlier}`;
    if (markOf(pair) || all.has(name)) all.set(name, marked(pair, markOf(pair)));
  }
  const lines = [...all.values()]
    .sort((a, b) => a.row - b.row || a.earlier - b.earlier)
    .map((m) => [m.row, m.earlier, m.distance, m.set, m.mark || "none"].join(","));
  const text = ["row,earlier_row,distance,set,mark", ...lines, ""].join("\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "marks.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Marks live in the browser's storage; where a browser has none for files, only on this page.
function read(place) {
  try { return JSON.parse(localStorage.getItem(place)) || {}; } catch { return {}; }
}
function write(place, marks) {
  try { localStorage.setItem(place, JSON.stringify(marks)); } catch { /* none */ }
}

function turnPage(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const link = rel && document.querySelector(`.pages a[rel=${rel}]`);
  if (link) link.click();
}
