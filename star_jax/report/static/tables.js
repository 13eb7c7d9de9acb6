// A table wider than its region has a hint above it until its last column is in sight.

for (const region of document.querySelectorAll(".scroll")) {
  const hint = region.previousElementSibling.querySelector(".hint");
  const update = () => {
    hint.hidden = region.scrollWidth - region.clientWidth - region.scrollLeft < 2;
  };
  region.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(update).observe(region); // also when a folded part is opened
}
