// Unpacks the blocks of problems and samples that browser/blocks.py packed, on request, and caches them.
"use strict";

const pendingBlocks = new Map(); // name of a block -> function that receives the text of its file

// The files in the folder next to the page call this.
function starTexts(name, text) {
  pendingBlocks.get(name)?.(text);
}

// The text of a block that is not in the page. A page opened from disk can load scripts, but cannot fetch.
function loadBlock(name, folder) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    pendingBlocks.set(name, resolve);
    script.onload = script.onerror = () => {
      pendingBlocks.delete(name);
      script.remove();
      const path = `${decodeURIComponent(folder)}${name}.js`;
      reject(new Error(`${path} is missing or damaged. Put the folder next to the page, or write the report again.`));
    };
    script.src = `${folder}${name}.js`;
    document.head.append(script);
  });
}

async function unpackBlock(name, folder) {
  const inPage = document.querySelector(`[data-block="${name}"]`);
  const characters = atob(inPage ? inPage.textContent : await loadBlock(name, folder));
  const bytes = new Uint8Array(characters.length);
  for (let index = 0; index < characters.length; index++) bytes[index] = characters.charCodeAt(index);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// One of a run's collections; Collection in browser/blocks.py describes its blocks.
class Collection {
  constructor({ name, kind, title, best, problems, samples }, folder) {
    Object.assign(this, { name, kind, title, best, folder, problemsBlock: problems });
    this.blocks = new Map(samples); // iteration -> name of a block
    this.iterations = [...this.blocks.keys()];
    this.cache = new Map();
  }

  get training() {
    return this.kind === "training";
  }

  // Whether a problem may have several samples in an iteration; then each is a row.
  get bySample() {
    return this.kind !== "evaluation";
  }

  // The result of `make`, which runs once for each key; a second call waits for the first. A failure is not cached.
  once(key, make) {
    if (!this.cache.has(key)) {
      const promise = make();
      promise.catch(() => this.cache.delete(key));
      this.cache.set(key, promise);
    }
    return this.cache.get(key);
  }

  problems() {
    return this.once("problems", async () => {
      const { categories, problems } = await unpackBlock(this.problemsBlock, this.folder);
      const all = problems.map(([key, question, answer, category, solved]) => (
        { key, question, answer, category, solved }
      ));
      return { categories, all, byKey: new Map(all.map((problem) => [problem.key, problem])) };
    });
  }

  // A map from each problem to its samples of an iteration, in order; problems without samples are not in it.
  samples(iteration) {
    return this.once(`samples ${iteration}`, async () => {
      const [{ all, byKey }, rows] = await Promise.all([
        this.problems(),
        unpackBlock(this.blocks.get(iteration), this.folder),
      ]);
      const byProblem = new Map();
      for (const [indexOrKey, index, hinted, kept, verdict, answer, consistent, meanLogP, tokens, text] of rows) {
        const problem = typeof indexOrKey === "number" ? all[indexOrKey] : byKey.get(indexOrKey);
        const sample = { index, hinted, kept, verdict, answer, consistent, meanLogP, tokens, text };
        if (byProblem.has(problem)) byProblem.get(problem).push(sample);
        else byProblem.set(problem, [sample]);
      }
      return byProblem;
    });
  }

  // The table's rows for an iteration (undefined: there is none): one for each sample, or one for each problem with the
  // other iteration's sample. Only the last rows are cached: a search adds much to them.
  rows(iteration, other) {
    const name = `${iteration} ${other}`;
    if (this.rowsOf !== name) this.cache.delete("rows");
    this.rowsOf = name;
    return this.once("rows", async () => {
      const { all } = await this.problems();
      const [selected, compared] = await Promise.all(
        [iteration, other].map((number) => (this.blocks.has(number) ? this.samples(number) : new Map())),
      );
      if (this.bySample) {
        return [...selected].flatMap(([problem, samples]) => samples.map((sample) => ({ problem, sample })));
      }
      const first = (samples, problem) => samples.get(problem)?.[0] ?? null;
      return all.map((problem) => ({ problem, sample: first(selected, problem), other: first(compared, problem) }));
    });
  }
}
