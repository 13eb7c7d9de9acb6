// Which rows match what was asked for, and how a link says what was asked for.

const VERDICTS = { right: "right", wrong: "wrong", unparsable: "unparsable", truncated: "cut off" };

function isRight(drawn) {
  return Boolean(drawn) && drawn.verdict === "right";
}

// Filter -> [value in a link, words, whether a row matches, the only collection that has it]. A row is {problem, now:
// the draw or null, base: the base model's draw or null}.
const FILTERS = {
  verdict: [
    ["", "all", () => true],
    ...Object.entries(VERDICTS).map(([verdict, name]) => [verdict, name, ({ now }) => now?.verdict === verdict]),
    ["steps", "right answer, wrong steps", ({ now }) => isRight(now) && now.consistent === false],
    ["gained", "right now, not in the base", ({ now, base }) => isRight(now) && base && !isRight(base), "evaluation"],
    ["lost", "right in the base, not now", ({ now, base }) => now && !isRight(now) && isRight(base), "evaluation"],
  ],
  solved: [
    ["", "all", () => true],
    ["yes", "solved in some iteration", ({ problem }) => problem.solved !== null],
    ["never", "never solved in any iteration so far", ({ problem }) => problem.solved === null],
  ],
  kept: [
    ["", "all", () => true],
    ["kept", "kept", ({ now }) => now?.kept === 1, "training"],
    ["not", "not kept", ({ now }) => now?.kept === 0, "training"],
  ],
  source: [
    ["", "all", () => true],
    ["sampled", "sampled", ({ now }) => now?.hinted === 0, "training"],
    ["rationalized", "rationalized (hinted)", ({ now }) => now?.hinted === 1, "training"],
  ],
};

// The words a search looks through, which are those that the row shows. They stay with the row.
function words(row) {
  if (row.words === undefined) {
    const { problem, now, base } = row;
    const texts = [problem.key, problem.question, problem.answer, now?.text, now?.answer, base?.text, base?.answer];
    row.words = texts.filter(Boolean).join("\n").toLowerCase();
  }
  return row.words;
}

// `wanted`: {verdict, solved, kept, source: a value of FILTERS; class: an index as text, or ""; search}.
function matching(rows, wanted) {
  const accepting = Object.entries(FILTERS)
    .filter(([name]) => wanted[name])
    .map(([name, options]) => options.find(([value]) => value === wanted[name])[2]);
  const needle = wanted.search.toLowerCase();
  return rows.filter((row) => {
    if (wanted.class !== "" && row.problem.label !== Number(wanted.class)) return false;
    return accepting.every((accepts) => accepts(row)) && (!needle || words(row).includes(needle));
  });
}

// "#r0-rationales&in=evaluation&iteration=2&problem=..." Whatever a value is, it is percent-encoded.
function fragmentOf(run, values) {
  const told = Object.entries(values).filter(([, value]) => value !== null && value !== undefined);
  return `#${run}-rationales&${new URLSearchParams(told)}`;
}

// What the page's address says of a run's browser; null if it is about something else.
function askedFor(run) {
  const start = `#${run}-rationales&`;
  return location.hash.startsWith(start) ? new URLSearchParams(location.hash.slice(start.length)) : null;
}

// `how`: history.pushState or replaceState. A page inside another one (a notebook's) has no address to change.
function setAddress(how, fragment) {
  try {
    history[how](null, "", fragment);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
}
