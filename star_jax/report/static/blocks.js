// Unpacks the blocks of problems and draws that blocks.py packed, when they are asked for, and keeps them.
"use strict";

const awaited = new Map(); // a block's name -> who waits for the text of its file

// The files beside the page call this.
function starTexts(name, text) {
  awaited.get(name)?.(text);
}

// The text of a block that is not in the page. Only a script can be loaded from disk: fetch cannot.
function textBeside(name, folder) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    awaited.set(name, resolve);
    script.onload = script.onerror = () => {
      awaited.delete(name);
      script.remove();
      const place = `${decodeURIComponent(folder)}${name}.js`;
      reject(new Error(`${place} is missing or damaged. The folder has to lie beside the page; a new report has it.`));
    };
    script.src = `${folder}${name}.js`;
    document.head.append(script);
  });
}

async function unpacked(name, folder) {
  const inside = document.querySelector(`[data-block="${name}"]`);
  const letters = atob(inside ? inside.textContent : await textBeside(name, folder));
  const bytes = new Uint8Array(letters.length);
  for (let place = 0; place < letters.length; place++) bytes[place] = letters.charCodeAt(place);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// One of a run's two collections. blocks.py says what its blocks hold.
class Collection {
  constructor({ name, title, best, problems, draws }, folder) {
    Object.assign(this, { name, title, best, folder, problemsBlock: problems });
    this.blocks = new Map(draws); // iteration -> block's name
    this.iterations = [...this.blocks.keys()];
    this.made = new Map();
  }

  get training() {
    return this.name === "training";
  }

  // What `make` makes of something, once; a second call waits for the first. What failed is tried again.
  once(key, make) {
    if (!this.made.has(key)) {
      const promise = make();
      promise.catch(() => this.made.delete(key));
      this.made.set(key, promise);
    }
    return this.made.get(key);
  }

  problems() {
    return this.once("problems", async () => {
      const { classes, problems } = await unpacked(this.problemsBlock, this.folder);
      const all = problems.map(([key, question, answer, label, solved]) => ({ key, question, answer, label, solved }));
      return { classes, all, byKey: new Map(all.map((problem) => [problem.key, problem])) };
    });
  }

  // A map from each problem that was drawn for to its draws, in order.
  draws(iteration) {
    return this.once(`draws ${iteration}`, async () => {
      const [{ all, byKey }, rows] = await Promise.all([
        this.problems(),
        unpacked(this.blocks.get(iteration), this.folder),
      ]);
      const drawn = new Map();
      for (const [place, draw, hinted, kept, verdict, answer, consistent, nats, tokens, text] of rows) {
        const problem = typeof place === "number" ? all[place] : byKey.get(place);
        const one = { draw, hinted, kept, verdict, answer, consistent, nats, tokens, text };
        if (drawn.has(problem)) drawn.get(problem).push(one);
        else drawn.set(problem, [one]);
      }
      return drawn;
    });
  }

  // What the table can show of an iteration (undefined: there is none): for each problem its evaluation, beside the
  // base's, or each draw. Only the last iteration's rows are kept: a search adds much to them.
  rows(iteration) {
    if (this.rowsOf !== iteration) this.made.delete("rows");
    this.rowsOf = iteration;
    return this.once("rows", async () => {
      const { all } = await this.problems();
      const [drawn, base] = await Promise.all(
        [iteration, 0].map((number) => (this.blocks.has(number) ? this.draws(number) : new Map())),
      );
      if (this.training) return [...drawn].flatMap(([problem, draws]) => draws.map((now) => ({ problem, now })));
      const first = (draws, problem) => draws.get(problem)?.[0] ?? null;
      return all.map((problem) => ({ problem, now: first(drawn, problem), base: first(base, problem) }));
    });
  }
}
