// The keyboard, and the start of all browsers. A key counts only if no field, select or button uses it.

const KEYS = {
  j: (browser) => browser.move(1),
  k: (browser) => browser.move(-1),
  n: (browser) => browser.turnPage(1, 0),
  p: (browser) => browser.turnPage(-1, 0),
  "/": (browser) => browser.focusSearch(),
  "?": (browser) => browser.toggleKeys(),
  Escape: (browser) => browser.escape(),
};
// Elsewhere these scroll the page or press the focused element, so they count on a row only.
const ROW_KEYS = { ArrowDown: KEYS.j, ArrowUp: KEYS.k, Enter: (browser) => browser.openCurrent() };

function inView(root) {
  const { top, bottom } = root.getBoundingClientRect();
  return root.closest("details:not([open])") === null && top < innerHeight && bottom > 0;
}

// The browser that has the focus; without any focus the first one in view.
function browserFor(target, browsers) {
  const focused = browsers.find(({ root }) => root.contains(target));
  return focused ?? (target === document.body ? browsers.find(({ root }) => inView(root)) : undefined);
}

function listenToKeys(browsers) {
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.defaultPrevented) return;
    const browser = browserFor(target, browsers);
    if (!browser?.keysAreOn()) return;
    if (target.matches("input, select, textarea")) {
      // Escape clears the search field by default; if the field is empty, Escape leaves it.
      if (key === "Escape" && target === browser.fields.search && target.value === "") browser.focusRow(0);
      return;
    }
    const keys = target.matches(".rationales tr") ? { ...KEYS, ...ROW_KEYS } : KEYS;
    if (!Object.hasOwn(keys, key)) return;
    event.preventDefault();
    keys[key](browser);
  });
}

if ("DecompressionStream" in window) {
  const browsers = [...document.querySelectorAll(".browser")].map((root) => new Browser(root));
  for (const browser of browsers) browser.start();
  listenToKeys(browsers);
  addEventListener("hashchange", () => browsers.forEach((browser) => browser.follow()));
} else {
  for (const message of document.querySelectorAll(".browser .unsupported")) message.hidden = false;
}
