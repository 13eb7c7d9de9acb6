// The filters and the search: which rows match.

// The labels of verdicts and sources, from the page: {verdicts, sources, wrongSteps}.
const LABELS = JSON.parse(document.getElementById("labels").textContent);

function isRight(sample) {
  return Boolean(sample) && sample.verdict === "right";
}

// Whether a row has both samples, and whether each is right.
const change = (now, before) => ({ sample, other }) => (
  sample && other && isRight(sample) === now && isRight(other) === before
);

// Filter -> [[value in a link, label, whether a row matches, the only kind of collection that has it], ...]. A row is
// {problem, sample: of the selected iteration, or null; other: of the iteration it is
// compared with, or null}. "Wrong" is every verdict but "right".
const FILTERS = {
  verdict: [
    ["", "all", () => true],
    ...Object.entries(LABELS.verdicts).map(([verdict, label]) => [
      verdict, label, ({ sample }) => sample?.verdict === verdict,
    ]),
    ["steps", LABELS.wrongSteps, ({ sample }) => isRight(sample) && sample.consistent === false],
  ],
  change: [
    ["", "all", () => true],
    ["gained", "gained: wrong → right", change(true, false), "evaluation"],
    ["lost", "lost: right → wrong", change(false, true), "evaluation"],
    ["right", "right in both", change(true, true), "evaluation"],
    ["wrong", "wrong in both", change(false, false), "evaluation"],
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
    const { problem, sample, other } = row;
    const { key, question, answer } = problem;
    const texts = [key, question, answer, sample?.text, sample?.answer, other?.text, other?.answer];
    row.searchText = texts.filter(Boolean).join("\n").toLowerCase();
  }
  return row.searchText;
}

// `values`: {verdict, change, solved, kept, source: a value of FILTERS; category: its index as text, or ""; search}.
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
