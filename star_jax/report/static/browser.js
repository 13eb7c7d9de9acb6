// The browser of one run's rationales: what is selected, the rows that match, one problem's history, the address.

const PAGE = 20; // rows
const SLOW = 150; // milliseconds, after which it is said that something is loading
const QUIET = 300; // milliseconds between two changes of the address; browsers refuse many at once

class Browser {
  constructor(root) {
    const { run, folder, collections } = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    this.root = root;
    this.run = run;
    this.collections = new Map(collections.map((one) => [one.name, new Collection(one, folder)]));
    this.fields = root.querySelector("form").elements;
    this.list = root.querySelector(".list");
    this.detail = root.querySelector(".history");
    this.body = this.list.querySelector("tbody");
    this.asked = 0; // how often something was asked for; only the last answer is shown
    this.matches = [];
    this.page = 0;
    this.current = 0; // row that has, or would get, the focus
    this.problem = null; // key of the one whose history is open
  }

  get collection() {
    return this.collections.get(this.fields.collection.value);
  }

  get iteration() {
    return this.fields.iteration.value === "" ? undefined : Number(this.fields.iteration.value);
  }

  start() {
    setOptions(this.fields.collection, [...this.collections.values()].map(({ name, title }) => [name, title]));
    this.fields.collection.form.addEventListener("submit", (event) => event.preventDefault());
    this.fields.collection.form.addEventListener("input", ({ target }) => this.change(target));
    for (const [name, act] of Object.entries({
      previous: () => this.turnTo(-1),
      next: () => this.turnTo(1),
      reset: () => this.reset(),
      back: () => this.leave(),
    })) {
      for (const button of this.root.querySelectorAll(`[name=${name}]`)) button.addEventListener("click", act);
    }
    this.body.addEventListener("focusin", ({ target }) => this.focused(target.closest("tr")));
    this.body.addEventListener("click", (event) => {
      const plain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
      if (!plain || !event.target.matches("a")) return;
      event.preventDefault();
      this.visit(event.target.closest("tr").dataset.key);
    });
    this.list.hidden = false;
    this.follow(new URLSearchParams());
  }

  // Shows what the address asks for; `otherwise`: what if it is about something else.
  follow(otherwise = null) {
    const asked = askedFor(this.run);
    if (asked) this.apply(asked).then(() => this.root.scrollIntoView());
    else if (otherwise) this.apply(otherwise);
    else if (this.problem !== null) this.close();
  }

  async apply(asked) {
    choose(this.fields.collection, asked.get("in"));
    this.fillOptions();
    choose(this.fields.iteration, asked.get("iteration"));
    for (const name of Object.keys(FILTERS)) choose(this.fields[name], asked.get(name) ?? "");
    this.fields.search.value = asked.get("search") ?? "";
    const page = Number.parseInt(asked.get("page") ?? "1", 10) - 1;
    await this.find(page > 0 ? page : 0, asked.get("class"));
    if (asked.has("problem")) await this.open(asked.get("problem"));
    else if (this.problem !== null) this.close();
  }

  nameIn(iteration) {
    return iteration === this.collection.best ? `${nameOf(iteration)} (best)` : nameOf(iteration);
  }

  // The options that the collection has; the best iteration is selected, or the last.
  fillOptions() {
    const { name, iterations, best } = this.collection;
    setOptions(this.fields.iteration, iterations.map((number) => [number, this.nameIn(number)]));
    this.fields.iteration.value = best ?? iterations.at(-1) ?? "";
    for (const [filter, options] of Object.entries(FILTERS)) {
      const there = options.filter(([, , , only]) => only === undefined || only === name);
      setOptions(this.fields[filter], there);
      this.fields[filter].parentElement.hidden = there.length < 2;
    }
    this.filled = null; // classes come with the block of problems
    setOptions(this.fields.class, [["", "all"]]);
  }

  fillClasses(classes, asked) {
    if (this.filled === this.collection) return;
    this.filled = this.collection;
    setOptions(this.fields.class, [["", "all"], ...classes.map((label, index) => [index, label || "no class"])]);
    if (asked !== null && classes.includes(asked)) this.fields.class.value = classes.indexOf(asked);
    this.fields.class.parentElement.hidden = classes.length < 2;
  }

  change(field) {
    if (field === this.fields.collection) this.fillOptions();
    this.find(0);
    this.noteAddress();
  }

  reset() {
    for (const name of ["class", "search", ...Object.keys(FILTERS)]) this.fields[name].value = "";
    this.change(this.fields.search);
  }

  // Runs `work`, and shows that it runs; what comes too late, because something else was asked for, is dropped.
  async busy(output, work) {
    const ticket = ++this.asked;
    const isLast = () => ticket === this.asked;
    const failed = this.root.querySelector(".failed");
    this.root.setAttribute("aria-busy", "true");
    failed.hidden = true;
    const slow = setTimeout(() => isLast() && output("Loading …"), SLOW);
    try {
      await work(isLast);
    } catch (error) {
      if (!isLast()) return;
      output("");
      failed.textContent = `These texts cannot be shown: ${error.message}`;
      failed.hidden = false;
    } finally {
      clearTimeout(slow);
      if (isLast()) this.root.setAttribute("aria-busy", "false");
    }
  }

  // Finds the rows that match, and shows a page of them. `label`: the class a link asks for.
  find(page, label = null) {
    return this.busy(this.say, async (isLast) => {
      const { collection, iteration } = this;
      const { classes } = await collection.problems();
      if (!isLast()) return;
      this.fillClasses(classes, label);
      const rows = await collection.rows(iteration);
      if (!isLast()) return;
      const wanted = Object.fromEntries(
        ["class", "search", ...Object.keys(FILTERS)].map((name) => [name, this.fields[name].value]),
      );
      this.matches = matching(rows, wanted);
      this.of = rows.length;
      this.classes = classes;
      this.page = Math.min(page, Math.max(0, Math.ceil(this.matches.length / PAGE) - 1));
      this.current = 0;
      this.show();
    });
  }

  say = (text) => {
    for (const output of this.list.querySelectorAll("output")) output.textContent = text;
  };

  show() {
    const { collection, iteration, page, matches } = this;
    const pages = Math.max(1, Math.ceil(matches.length / PAGE));
    const withBase = !collection.training && collection.blocks.has(0) && iteration !== 0;
    const name = iteration === undefined ? "Completion" : this.nameIn(iteration);
    this.list.querySelector("th.base").hidden = !withBase;
    this.list.querySelector("th.selected").textContent = name;
    this.body.replaceChildren(
      ...matches.slice(page * PAGE, (page + 1) * PAGE).map(({ problem, now, base }) => {
        const line = document.createElement("tr");
        line.tabIndex = -1;
        line.dataset.key = problem.key;
        line.append(this.problemCell(problem));
        if (withBase) line.append(drawnCell(base, "Base model", false));
        line.append(drawnCell(now, name, collection.training));
        return line;
      }),
    );
    if (this.body.rows.length) this.body.rows[0].tabIndex = 0;
    const where = matches.length ? `, page ${count(page + 1)} of ${count(pages)}` : "";
    const all = counted(this.of, collection.training ? "draw" : "problem");
    this.say(`${count(matches.length)} of ${all} match${where}`);
    for (const button of this.list.querySelectorAll("[name=previous]")) button.disabled = page === 0;
    for (const button of this.list.querySelectorAll("[name=next]")) button.disabled = page + 1 >= pages;
  }

  problemCell(problem) {
    const cell = element("td", "", "");
    cell.append(...this.problemParts(problem));
    const link = element("a", "open", "All iterations");
    link.href = this.fragment(problem.key);
    const line = element("p", "", "");
    line.append(link);
    cell.append(line);
    return cell;
  }

  problemParts({ key, question, answer, label, solved }) {
    const line = element("p", "note", "");
    const how = this.collection.training ? "solved without the hint" : "solved";
    const first = solved === null ? `never ${how} so far` : `first ${how}: ${nameOf(solved).toLowerCase()}`;
    for (const text of [label === null ? "" : this.classes[label], key, first].filter(Boolean)) {
      line.append(line.childNodes.length ? " · " : "", element("bdi", "", text));
    }
    return [element("div", "question", question || key), element("p", "", `Reference answer: ${answer}`), line];
  }

  fragment(problem) {
    const values = { in: this.collection.name, iteration: this.iteration };
    for (const name of ["search", ...Object.keys(FILTERS)]) values[name] = this.fields[name].value || null;
    const label = this.fields.class.value;
    if (label !== "") values.class = this.classes[Number(label)];
    return fragmentOf(this.run, { ...values, page: this.page > 0 ? this.page + 1 : null, problem });
  }

  // Writes what is shown into the address: `at` once, or when nothing has changed for a while.
  noteAddress({ at = QUIET } = {}) {
    clearTimeout(this.noting);
    const note = () => setAddress("replaceState", this.fragment(this.problem));
    if (at) this.noting = setTimeout(note, at);
    else note();
  }

  // Opens a problem's history as an entry of its own, so that the reader's Back leads to the list.
  async visit(key) {
    this.noteAddress({ at: 0 });
    setAddress("pushState", this.fragment(key));
    await this.open(key);
    this.root.scrollIntoView();
    this.detail.querySelector("h3").focus();
  }

  // One problem's draws in all iterations, in their order; they appear as their blocks are unpacked.
  open(key) {
    const [body, output] = ["tbody", "output"].map((name) => this.detail.querySelector(name));
    const say = (text) => {
      output.textContent = text;
    };
    this.problem = key;
    this.list.hidden = true;
    this.detail.hidden = false;
    body.replaceChildren();
    this.detail.querySelector(".about").replaceChildren();
    this.detail.querySelector("h3").textContent = `Problem ${key}`;
    return this.busy(say, async (isLast) => {
      const { collection } = this;
      const { byKey, classes } = await collection.problems();
      if (!isLast()) return;
      const problem = byKey.get(key);
      if (problem === undefined) return say("This run has no such problem.");
      this.classes = classes;
      this.detail.querySelector(".about").replaceChildren(...this.problemParts(problem));
      const all = collection.iterations.length;
      let total = 0;
      for (const [place, iteration] of collection.iterations.entries()) {
        const slow = setTimeout(() => isLast() && say(`Loading … ${place} of ${counted(all, "iteration")}`), SLOW);
        const drawn = await collection.draws(iteration).finally(() => clearTimeout(slow));
        if (!isLast()) return;
        const draws = drawn.get(problem) ?? [];
        total += draws.length;
        for (const draw of draws.length ? draws : [null]) {
          const line = document.createElement("tr");
          const head = element("th", "", this.nameIn(iteration));
          head.scope = "row";
          line.append(head, drawnCell(draw, "", collection.training));
          body.append(line);
        }
      }
      say(`${counted(total, "completion")} in ${counted(all, "iteration")}`);
    });
  }

  close() {
    this.asked++; // what is still loading for the history is not wanted any more
    this.root.setAttribute("aria-busy", "false");
    this.problem = null;
    this.detail.hidden = true;
    this.list.hidden = false;
  }

  // Back to the list, to the row that the history was opened from.
  leave() {
    const from = [...this.body.rows].findIndex((row) => row.dataset.key === this.problem);
    this.close();
    this.noteAddress({ at: 0 });
    this.focusRow(Math.max(0, from));
  }

  focusRow(place) {
    const row = [...this.body.rows].at(place);
    if (row) row.focus();
    else document.activeElement.blur();
  }

  focused(row) {
    this.body.rows[this.current].tabIndex = -1;
    this.current = row.sectionRowIndex;
    row.tabIndex = 0;
  }

  // `row`: the one to focus then, -1 for the last.
  turnTo(by, row = null) {
    const page = this.page + by;
    if (this.problem !== null || page < 0 || page * PAGE >= this.matches.length) return;
    this.page = page;
    this.current = 0;
    this.show();
    this.noteAddress();
    this.root.scrollIntoView();
    if (row !== null) this.focusRow(row);
  }

  // To the next row or the one before; past the page's end to the next page.
  move(by) {
    if (this.problem !== null) return;
    const place = this.body.contains(document.activeElement) ? this.current + by : this.current;
    if (place < 0) this.turnTo(-1, -1);
    else if (place >= this.body.rows.length) this.turnTo(1, 0);
    else this.focusRow(place);
  }

  openCurrent() {
    this.visit(this.body.rows[this.current].dataset.key);
  }

  search() {
    if (this.problem === null) this.fields.search.focus();
  }

  escape() {
    if (this.problem !== null) this.leave();
    else if (["class", "search", ...Object.keys(FILTERS)].some((name) => this.fields[name].value)) this.reset();
  }

  keysAreOn() {
    return this.root.querySelector("[name=keys]").checked;
  }

  toggleKeys() {
    const keys = this.root.querySelector(".keys");
    keys.open = !keys.open;
  }
}
