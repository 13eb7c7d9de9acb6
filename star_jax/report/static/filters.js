// The filters and the search: which rows match.

// The labels of verdicts and sources, from the page: {verdicts, sources, wrongSteps}.
const LABELS = JSON.parse(document.getElementById("labels").textContent);

function isRight(sample) {
  return Boolean(sample) && sample.verdict === "right";
}

const gained = ({ sample, base }) => isRight(sample) && base && !isRight(base);
const lost = ({ sample, base }) => sample && !isRight(sample) && isRight(base);

// Filter -> [[value in a link, label, whether a row matches, the only kind of collection that has it], ...]. A row is {problem,
// sample: of the selected iteration, or null; base: the base model's sample, or null}.
const FILTERS = {
  verdict: [
    ["", "all", () => true],
    ...Object.entries(LABELS.verdicts).map(([verdict, label]) => [
      verdict, label, ({ sample }) => sample?.verdict === verdict,
    ]),
    ["steps", LABELS.wrongSteps, ({ sample }) => isRight(sample) && sample.consistent === false],
    ["gained", "right now, not in the base", gained, "evaluation"],
    ["lost", "right in the base, not now", lost, "evaluation"],
  ],
  solved: [
    ["", "all", () => true],
    ["yes", "solved in some iteration", ({ problem }) => problem.solved !== null],
    ["never", "never solved in any iteration so far", ({ problem }) => problem.solved === null],
  ],
  kept: [
    ["", "all", () => true],
    ["kept", "kept", ({ sample }) => sample?.kept === 1, "training"],
    ["not", "not kept", ({ sample }) => sample?.kept === 0, "training"],
  ],
  source: [
    ["", "all", () => true],
    ["sampled", LABELS.sources.sampled, ({ sample }) => sample?.hinted === 0, "training"],
    ["rationalized", `${LABELS.sources.rationalized} (hinted)`, ({ sample }) => sample?.hinted === 1, "training"],
  ],
};

// The text that a search looks through: what the row shows. It is cached in the row.
function searchText(row) {
  if (row.searchText === undefined) {
    const { problem, sample, base } = row;
    const { key, question, answer } = problem;
    const texts = [key, question, answer, sample?.text, sample?.answer, base?.text, base?.answer];
    row.searchText = texts.filter(Boolean).join("\n").toLowerCase();
  }
  return row.searchText;
}

// `values`: {verdict, solved, kept, source: a value of FILTERS; category: its index as text, or ""; search}.
function matching(rows, values) {
  const accepting = Object.entries(FILTERS)
    .filter(([name]) => values[name])
    .map(([name, options]) => options.find(([value]) => value === values[name])[2]);
  const needle = values.search.toLowerCase();
  return rows.filter((row) => {
    if (values.category !== "" && row.problem.category !== Number(values.category)) return false;
    return accepting.every((accepts) => accepts(row)) && (!needle || searchText(row).includes(needle));
  });
}
