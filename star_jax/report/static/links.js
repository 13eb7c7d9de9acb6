// The page's address: links to what a browser shows, e.g. "#r0-rationales&in=evaluation&iteration=2&problem=...".

// Values are percent-encoded; those that are null or undefined are left out.
function linkTo(run, values) {
  const entries = Object.entries(values).filter(([, value]) => value !== null && value !== undefined);
  return `#${run}-rationales&${new URLSearchParams(entries)}`;
}

// The values in the address for a run's browser; null if the address is about something else.
function valuesInAddress(run) {
  const start = `#${run}-rationales&`;
  return location.hash.startsWith(start) ? new URLSearchParams(location.hash.slice(start.length)) : null;
}

// `method`: of history, pushState or replaceState. A page embedded in another one (a notebook) has no address.
function setAddress(method, link) {
  try {
    history[method](null, "", link);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
}

// Shows an element: unfolds the parts that it is in, and scrolls to it.
function reveal(target) {
  for (let part = target.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  target.scrollIntoView();
}

function revealInAddress() {
  const target = document.getElementById(location.hash.slice(1).split("&")[0]);
  if (target) reveal(target);
}

// A page that is loaded again, as those of --watch are, keeps its parts unfolded. A page embedded in another one has no
// storage.
function keepUnfolded() {
  const parts = [...document.querySelectorAll(".part")];
  const key = `unfolded ${location.pathname}`;
  const id = (part) => part.querySelector("summary").id;
  try {
    const unfolded = JSON.parse(sessionStorage.getItem(key) ?? "[]");
    for (const part of parts) part.open ||= unfolded.includes(id(part));
    addEventListener("pagehide", () => {
      sessionStorage.setItem(key, JSON.stringify(parts.filter((part) => part.open).map(id)));
    });
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
}

keepUnfolded();
addEventListener("hashchange", revealInAddress);
revealInAddress();
