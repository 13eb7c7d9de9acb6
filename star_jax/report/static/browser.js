// The browser of one run's rationales: the selection, the rows that match, one problem's history, the address.

const PAGE = 20; // rows
const SLOW = 150; // milliseconds until "Loading ..." appears
const ADDRESS_DELAY = 300; // milliseconds between two changes of the address; web browsers refuse many at once
const FILTER_FIELDS = ["category", "search", ...Object.keys(FILTERS)];

class Browser {
  constructor(root) {
    const { run, folder, collections } = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    this.root = root;
    this.run = run;
    this.collections = new Map(collections.map((each) => [each.name, new Collection(each, folder)]));
    this.fields = root.querySelector("form").elements;
    this.list = root.querySelector(".list");
    this.detail = root.querySelector(".history");
    this.body = this.list.querySelector("tbody");
    this.requests = 0; // only the answer to the last request is shown
    this.matches = [];
    this.page = 0;
    this.current = 0; // index of the row that has the focus, or would get it
    this.problem = null; // key of the problem whose history is open
  }

  get collection() {
    return this.collections.get(this.fields.collection.value);
  }

  get iteration() {
    return this.fields.iteration.value === "" ? undefined : Number(this.fields.iteration.value);
  }

  // The iteration whose samples stand next to the selected one's; undefined: none.
  get other() {
    const { value } = this.fields.against;
    return value === "" || Number(value) === this.iteration ? undefined : Number(value);
  }

  start() {
    setOptions(this.fields.collection, [...this.collections.values()].map(({ name, title }) => [name, title]));
    this.fields.collection.form.addEventListener("submit", (event) => event.preventDefault());
    this.fields.collection.form.addEventListener("input", ({ target }) => this.change(target));
    for (const [name, act] of Object.entries({
      previous: () => this.turnPage(-1),
      next: () => this.turnPage(1),
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

  // Shows what the address requests; `otherwise`: what to show if it is about something else.
  follow(otherwise = null) {
    const values = valuesInAddress(this.run);
    if (values) this.apply(values).then(() => reveal(this.root));
    else if (otherwise) this.apply(otherwise);
    else if (this.problem !== null) this.close();
  }

  async apply(values) {
    choose(this.fields.collection, values.get("in"));
    this.fillOptions();
    choose(this.fields.iteration, values.get("iteration"));
    choose(this.fields.against, values.get("against"));
    for (const name of Object.keys(FILTERS)) choose(this.fields[name], values.get(name) ?? "");
    this.fields.search.value = values.get("search") ?? "";
    const page = Number.parseInt(values.get("page") ?? "1", 10) - 1;
    await this.find(page > 0 ? page : 0, values.get("category"));
    if (values.has("problem")) await this.open(values.get("problem"));
    else if (this.problem !== null) this.close();
  }

  nameWithBest(iteration) {
    return iteration === this.collection.best ? `${iterationName(iteration)} (best)` : iterationName(iteration);
  }

  // Fills the selects with the collection's options; selects the best iteration, or the last.
  fillOptions() {
    const { kind, iterations, best } = this.collection;
    setOptions(this.fields.iteration, iterations.map((number) => [number, this.nameWithBest(number)]));
    this.fields.iteration.value = best ?? iterations.at(-1) ?? "";
    const compared = kind === "evaluation" ? iterations : [];
    setOptions(this.fields.against, [["", "nothing"], ...compared.map((number) => [number, this.nameWithBest(number)])]);
    // The base is compared with nothing, not with itself.
    this.defaultAgainst = compared.includes(0) && this.fields.iteration.value !== "0" ? "0" : "";
    this.fields.against.value = this.defaultAgainst;
    this.fields.against.parentElement.hidden = compared.length < 2;
    for (const [filter, options] of Object.entries(FILTERS)) {
      const ofCollection = options.filter(([, , , only]) => only === undefined || only === kind);
      setOptions(this.fields[filter], ofCollection);
      this.fields[filter].parentElement.hidden = ofCollection.length < 2;
    }
    this.categoriesOf = null; // categories come with the block of problems
    setOptions(this.fields.category, [["", "all"]]);
  }

  fillCategories(categories, selected) {
    if (this.categoriesOf === this.collection) return;
    this.categoriesOf = this.collection;
    const options = categories.map((category, index) => [index, category || "no category"]);
    setOptions(this.fields.category, [["", "all"], ...options]);
    if (selected !== null && categories.includes(selected)) this.fields.category.value = categories.indexOf(selected);
    this.fields.category.parentElement.hidden = categories.length < 2;
  }

  change(field) {
    if (field === this.fields.collection) this.fillOptions();
    this.find(0);
    this.updateAddress();
  }

  reset() {
    for (const name of FILTER_FIELDS) this.fields[name].value = "";
    this.change(this.fields.search);
  }

  // Runs `work` and shows progress and failure; results of an outdated request are dropped.
  async busy(output, work) {
    const request = ++this.requests;
    const isLast = () => request === this.requests;
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

  // Finds the matching rows and shows a page of them. `category`: the one that a link requests.
  find(page, category = null) {
    return this.busy(this.showStatus, async (isLast) => {
      const { collection, iteration, other } = this;
      const { categories } = await collection.problems();
      if (!isLast()) return;
      this.fillCategories(categories, category);
      const rows = await collection.rows(iteration, other);
      if (!isLast()) return;
      const values = Object.fromEntries(FILTER_FIELDS.map((name) => [name, this.fields[name].value]));
      this.matches = matching(rows, values);
      this.total = rows.length;
      this.categories = categories;
      this.page = Math.min(page, Math.max(0, Math.ceil(this.matches.length / PAGE) - 1));
      this.current = 0;
      this.show();
    });
  }

  showStatus = (text) => {
    for (const output of this.list.querySelectorAll("output")) output.textContent = text;
  };

  show() {
    const { collection, iteration, other, page, matches } = this;
    const pages = Math.max(1, Math.ceil(matches.length / PAGE));
    const compares = other !== undefined;
    const [name, otherName] = [iteration, other].map((n) => (n === undefined ? "Completion" : this.nameWithBest(n)));
    this.list.querySelector("th.other").hidden = !compares;
    this.list.querySelector("th.other").textContent = otherName;
    this.list.querySelector("th.selected").textContent = name;
    this.list.querySelector(".legend-marks").hidden = !compares;
    this.body.replaceChildren(
      ...matches.slice(page * PAGE, (page + 1) * PAGE).map((match) => {
        const { problem, sample } = match;
        const row = document.createElement("tr");
        row.tabIndex = -1;
        row.dataset.key = problem.key;
        const texts = compares && match.other && sample ? difference(match.other.text, sample.text) : [null, null];
        row.append(this.problemCell(problem));
        if (compares) row.append(sampleCell(match.other, otherName, collection, texts[0]));
        row.append(sampleCell(sample, name, collection, texts[1]));
        return row;
      }),
    );
    if (this.body.rows.length) this.body.rows[0].tabIndex = 0;
    const pageNumber = matches.length ? `, page ${count(page + 1)} of ${count(pages)}` : "";
    const all = counted(this.total, collection.bySample ? "sample" : "problem");
    this.showStatus(`${count(matches.length)} of ${all} match${pageNumber}`);
    for (const button of this.list.querySelectorAll("[name=previous]")) button.disabled = page === 0;
    for (const button of this.list.querySelectorAll("[name=next]")) button.disabled = page + 1 >= pages;
  }

  problemCell(problem) {
    const cell = element("td", "", "");
    cell.append(...this.problemParts(problem));
    const link = element("a", "open", "All iterations");
    link.href = this.link(problem.key);
    const line = element("p", "", "");
    line.append(link);
    cell.append(line);
    return cell;
  }

  problemParts({ key, question, answer, category, solved }) {
    const line = element("p", "note", "");
    const verb = this.collection.training ? "solved without the hint" : "solved";
    const first = solved === null ? `never ${verb} so far` : `first ${verb}: ${iterationName(solved).toLowerCase()}`;
    for (const text of [category === null ? "" : this.categories[category], key, first].filter(Boolean)) {
      line.append(line.childNodes.length ? " · " : "", element("bdi", "", text));
    }
    return [element("div", "question", question || key), element("p", "", `Reference answer: ${answer}`), line];
  }

  link(problem) {
    const values = { in: this.collection.name, iteration: this.iteration };
    if (this.fields.against.value !== this.defaultAgainst) values.against = this.fields.against.value;
    for (const name of ["search", ...Object.keys(FILTERS)]) values[name] = this.fields[name].value || null;
    const category = this.fields.category.value;
    if (category !== "") values.category = this.categories[Number(category)];
    return linkTo(this.run, { ...values, page: this.page > 0 ? this.page + 1 : null, problem });
  }

  // Writes the selection into the address after `delay` milliseconds without a change; 0: at once.
  updateAddress({ delay = ADDRESS_DELAY } = {}) {
    clearTimeout(this.addressTimer);
    const update = () => setAddress("replaceState", this.link(this.problem));
    if (delay) this.addressTimer = setTimeout(update, delay);
    else update();
  }

  // Opens a problem's history as a new entry in the web browser's history, so that Back returns to the list.
  async visit(key) {
    this.updateAddress({ delay: 0 });
    setAddress("pushState", this.link(key));
    await this.open(key);
    this.root.scrollIntoView();
    this.detail.querySelector("h3").focus();
  }

  // Shows one problem's samples of all iterations, in order; they appear as their blocks are unpacked.
  open(key) {
    const [body, output] = ["tbody", "output"].map((name) => this.detail.querySelector(name));
    const report = (text) => {
      output.textContent = text;
    };
    this.problem = key;
    this.list.hidden = true;
    this.detail.hidden = false;
    body.replaceChildren();
    this.detail.querySelector(".about").replaceChildren();
    this.detail.querySelector("h3").textContent = `Problem ${key}`;
    return this.busy(report, async (isLast) => {
      const { collection } = this;
      const { byKey, categories } = await collection.problems();
      if (!isLast()) return;
      const problem = byKey.get(key);
      if (problem === undefined) return report("This run has no such problem.");
      this.categories = categories;
      this.detail.querySelector(".about").replaceChildren(...this.problemParts(problem));
      const all = collection.iterations.length;
      let total = 0;
      for (const [index, iteration] of collection.iterations.entries()) {
        const slow = setTimeout(() => isLast() && report(`Loading … ${index} of ${counted(all, "iteration")}`), SLOW);
        const byProblem = await collection.samples(iteration).finally(() => clearTimeout(slow));
        if (!isLast()) return;
        const samples = byProblem.get(problem) ?? [];
        total += samples.length;
        for (const sample of samples.length ? samples : [null]) {
          const row = document.createElement("tr");
          const head = element("th", "", this.nameWithBest(iteration));
          head.scope = "row";
          row.append(head, sampleCell(sample, "", collection));
          body.append(row);
        }
      }
      report(`${counted(total, "completion")} in ${counted(all, "iteration")}`);
    });
  }

  close() {
    this.requests++; // drops what is still loading for the history
    this.root.setAttribute("aria-busy", "false");
    this.problem = null;
    this.detail.hidden = true;
    this.list.hidden = false;
  }

  // Returns to the list, to the row whose history was open.
  leave() {
    const index = [...this.body.rows].findIndex((row) => row.dataset.key === this.problem);
    this.close();
    this.updateAddress({ delay: 0 });
    this.focusRow(Math.max(0, index));
  }

  focusRow(index) {
    const row = [...this.body.rows].at(index);
    if (row) row.focus();
    else document.activeElement.blur();
  }

  focused(row) {
    this.body.rows[this.current].tabIndex = -1;
    this.current = row.sectionRowIndex;
    row.tabIndex = 0;
  }

  // `row`: index of the row to focus on the new page, -1 for the last.
  turnPage(by, row = null) {
    const page = this.page + by;
    if (this.problem !== null || page < 0 || page * PAGE >= this.matches.length) return;
    this.page = page;
    this.current = 0;
    this.show();
    this.updateAddress();
    this.root.scrollIntoView();
    if (row !== null) this.focusRow(row);
  }

  // Focuses the next row (1) or the previous one (-1), across pages.
  move(by) {
    if (this.problem !== null) return;
    const index = this.body.contains(document.activeElement) ? this.current + by : this.current;
    if (index < 0) this.turnPage(-1, -1);
    else if (index >= this.body.rows.length) this.turnPage(1, 0);
    else this.focusRow(index);
  }

  openCurrent() {
    this.visit(this.body.rows[this.current].dataset.key);
  }

  focusSearch() {
    if (this.problem === null) this.fields.search.focus();
  }

  escape() {
    if (this.problem !== null) this.leave();
    else if (FILTER_FIELDS.some((name) => this.fields[name].value)) this.reset();
  }

  keysAreOn() {
    return this.root.querySelector("[name=keys]").checked;
  }

  toggleKeys() {
    const keys = this.root.querySelector(".keys");
    keys.open = !keys.open;
  }
}
