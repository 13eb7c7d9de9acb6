// The parts of a row. A model's texts reach the page by textContent only.

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function setOptions(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

// A value that the select does not have (from an old link) changes nothing.
function choose(select, value) {
  if ([...select.options].some((option) => option.value === value)) select.value = value;
}

const count = (number) => number.toLocaleString("en");
const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
const iterationName = (number) => (number === 0 ? "Base model" : `Iteration ${number}`);

function verdictLine({ verdict, consistent }) {
  const wrongSteps = verdict === "right" && consistent === false;
  const known = Object.hasOwn(LABELS.verdicts, verdict);
  const label = wrongSteps ? LABELS.wrongSteps : known ? LABELS.verdicts[verdict] : verdict;
  const line = element("p", "verdict", label);
  if (wrongSteps) line.classList.add("steps");
  else if (known) line.classList.add(verdict);
  return line;
}

// "NLL 0.412 nats per token, 37 tokens"
function tokenLine({ meanLogP, tokens }) {
  const parts = [];
  if (meanLogP !== null) parts.push(`NLL ${(-meanLogP).toFixed(3)} nats per token`);
  if (tokens !== null) parts.push(counted(tokens, "token"));
  return parts.join(", ");
}

// `text`: the element with the sample's text, if it is marked.
function sampleCell(sample, label, { training, bySample }, text = null) {
  const cell = element("td", "", "");
  cell.dataset.label = label;
  if (sample === null) {
    cell.append(element("p", "empty", training ? "not sampled" : "no completion on record"));
    return cell;
  }
  cell.append(text ?? element("pre", "", sample.text), verdictLine(sample));
  cell.append(element("p", "note", sample.answer === null ? "no answer in it" : `its answer: ${sample.answer}`));
  if (training) {
    const kept = { 0: "not kept", 1: "kept" }[sample.kept] ?? "not filtered yet";
    const source = sample.hinted ? "rationalized" : "sampled";
    const line = element("p", "note", "");
    line.append(element("span", `source ${source}`, LABELS.sources[source]), `, ${kept}`);
    if (sample.index !== null) line.append(`, sample ${sample.index}`);
    cell.append(line);
  } else if (bySample && sample.index !== null) cell.append(element("p", "note", `sample ${sample.index}`));
  cell.append(element("p", "note", tokenLine(sample)));
  return cell;
}
