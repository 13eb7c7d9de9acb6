// Pages through the rationales. The texts are a model's output: they reach the page by textContent only.
"use strict";

const PAGE = 20;
const VERDICTS = { right: "right", wrong: "wrong", unparsable: "unparsable", cut_off: "cut off" };
const FILTERS = [
  ["", "all", () => true],
  ...Object.entries(VERDICTS).map(([verdict, name]) => [verdict, name, (now) => now !== null && now[2] === verdict]),
  ["steps", "right answer, wrong steps", (now) => isRight(now) && now[3] === false],
  ["gained", "right now, not in the base", (now, base) => isRight(now) && base !== null && !isRight(base)],
  ["lost", "right in the base, not now", (now, base) => now !== null && !isRight(now) && isRight(base)],
];

function isRight(drawn) {
  return drawn !== null && drawn[2] === "right";
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function addOptions(select, options) {
  for (const [value, text] of options) select.add(new Option(text, value));
}

// A cell with one drawn text: [text, parsed answer or null, verdict, whether the steps check out or null].
function drawnCell(drawn, label) {
  const cell = element("td", "", "");
  cell.dataset.label = label;
  if (drawn === null) {
    cell.append(element("p", "empty", "no completion on record"));
    return cell;
  }
  const [text, answer, verdict, consistent] = drawn;
  const name = Object.hasOwn(VERDICTS, verdict) ? VERDICTS[verdict] : verdict;
  const wrongSteps = verdict === "right" && consistent === false;
  const shown = element("p", "verdict", wrongSteps ? "right answer, wrong steps" : name);
  if (wrongSteps) shown.classList.add("steps");
  else if (Object.hasOwn(VERDICTS, verdict)) shown.classList.add(verdict);
  cell.append(element("pre", "", text), shown);
  cell.append(element("p", "note", answer === null ? "no answer in it" : `its answer: ${answer}`));
  return cell;
}

function problemCell([question, answer, ,], label) {
  const cell = element("td", "", "");
  cell.append(element("div", "question", question), element("p", "", `Reference answer: ${answer}`));
  if (label) cell.append(element("p", "note", label));
  return cell;
}

function start(root) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const form = root.querySelector("form");
  const table = root.querySelector("table");
  const [iterations, classes, verdicts, search] = form.elements;
  const baseIndex = data.iterations.indexOf(0);
  let page = 0;
  let matches = [];

  const nameOf = (number) => (number === 0 ? "Base model" : `Iteration ${number}`);
  const selected = () => Number(iterations.value);
  const base = (texts) => (baseIndex < 0 ? null : texts[baseIndex]);
  const now = (texts) => (texts.length ? texts[selected()] : null);

  function find() {
    const needle = search.value.toLowerCase();
    const [, , accepts] = FILTERS.find(([value]) => value === verdicts.value);
    matches = data.rows.filter(([question, answer, label, texts]) => {
      if (classes.value !== "" && label !== Number(classes.value)) return false;
      if (!accepts(now(texts), base(texts))) return false;
      const shown = [question, answer, now(texts)?.[0] ?? "", base(texts)?.[0] ?? ""];
      return !needle || shown.some((text) => text.toLowerCase().includes(needle));
    });
    page = 0;
    show();
  }

  function show() {
    const pages = Math.max(1, Math.ceil(matches.length / PAGE));
    const isBase = data.iterations.length === 0 || data.iterations[selected()] === 0;
    const name = data.iterations.length ? nameOf(data.iterations[selected()]) : "Completion";
    const twoColumns = baseIndex >= 0 && !isBase;
    table.querySelector("th.base").hidden = !twoColumns;
    table.querySelector("th.selected").textContent = name;
    table.tBodies[0].replaceChildren(
      ...matches.slice(page * PAGE, (page + 1) * PAGE).map((row) => {
        const line = document.createElement("tr");
        line.append(problemCell(row, data.classes[row[2]]));
        if (twoColumns) line.append(drawnCell(base(row[3]), "Base model"));
        line.append(drawnCell(now(row[3]), name));
        return line;
      }),
    );
    const from = matches.length ? `, page ${page + 1} of ${pages}` : "";
    const count = `${matches.length} of ${data.rows.length} problems match${from}`;
    for (const output of root.querySelectorAll("output")) output.textContent = count;
    for (const button of root.querySelectorAll("[name=previous]")) button.disabled = page === 0;
    for (const button of root.querySelectorAll("[name=next]")) button.disabled = page + 1 >= pages;
  }

  function turn(by) {
    page += by;
    show();
    root.scrollIntoView();
  }

  addOptions(iterations, data.iterations.map((number, index) => [index, nameOf(number)]));
  iterations.selectedIndex = data.iterations.length - 1;
  addOptions(classes, [["", "all"], ...data.classes.map((label, index) => [index, label || "no class"])]);
  addOptions(verdicts, FILTERS);
  form.addEventListener("input", find);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of root.querySelectorAll("[name=previous]")) button.addEventListener("click", () => turn(-1));
  for (const button of root.querySelectorAll("[name=next]")) button.addEventListener("click", () => turn(1));
  for (const part of root.querySelectorAll("[hidden]")) part.hidden = false;
  find();
}

document.querySelectorAll(".browser").forEach(start);
