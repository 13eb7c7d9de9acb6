// The parts of a row. The texts are a model's output: they reach the page by textContent only.

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function setOptions(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

// A value that the select does not have (an old link's) leaves it as it is.
function choose(select, value) {
  if ([...select.options].some((option) => option.value === value)) select.value = value;
}

const count = (number) => number.toLocaleString("en");
const counted = (number, thing) => `${count(number)} ${thing}${number === 1 ? "" : "s"}`;
const nameOf = (number) => (number === 0 ? "Base model" : `Iteration ${number}`);

function verdictLine({ verdict, consistent }) {
  const wrongSteps = verdict === "right" && consistent === false;
  const known = Object.hasOwn(VERDICTS, verdict);
  const line = element("p", "verdict", wrongSteps ? "right answer, wrong steps" : known ? VERDICTS[verdict] : verdict);
  if (wrongSteps) line.classList.add("steps");
  else if (known) line.classList.add(verdict);
  return line;
}

// "mean log p −0.412 nats a token, 37 tokens"
function figures({ nats, tokens }) {
  const told = [];
  if (nats !== null) told.push(`mean log p ${nats.toFixed(3).replace("-", "−")} nats a token`);
  if (tokens !== null) told.push(counted(tokens, "token"));
  return told.join(", ");
}

function drawnCell(drawn, label, training) {
  const cell = element("td", "", "");
  cell.dataset.label = label;
  if (drawn === null) {
    cell.append(element("p", "empty", training ? "not drawn" : "no completion on record"));
    return cell;
  }
  cell.append(element("pre", "", drawn.text), verdictLine(drawn));
  cell.append(element("p", "note", drawn.answer === null ? "no answer in it" : `its answer: ${drawn.answer}`));
  if (training) {
    const kept = { 0: "not kept", 1: "kept" }[drawn.kept] ?? "not filtered yet";
    const source = drawn.hinted ? "rationalized" : "sampled";
    const line = element("p", "note", "");
    line.append(element("span", `source ${source}`, source), `, ${kept}`);
    if (drawn.draw !== null) line.append(`, draw ${drawn.draw}`);
    cell.append(line);
  }
  cell.append(element("p", "note", figures(drawn)));
  return cell;
}
