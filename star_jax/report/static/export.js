// Saves a figure as SVG or PNG with its heading and legend, in the page's light colours. No text is ever parsed as markup.

const PIXELS = 4; // of a PNG, for each unit of the SVG (1/72 inch)
const LINE = 14; // units
const CHARACTER = 5.6; // units of width, about
const MAX_CHARACTERS = 160; // of a legend's entry

function node(tag, attributes, text = "") {
  const made = document.createElementNS(document.querySelector("svg").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

// Programs other than web browsers know no CSS variables: the values of the light theme replace them.
function withPlainColours(svg) {
  const light = [...document.styleSheets[0].cssRules].find((rule) => rule.selectorText === ":root").style;
  const plain = (text) => text
    .replace(/var\((--[\w-]+)\)/g, (_, name) => light.getPropertyValue(name).trim())
    .replaceAll("currentColor", light.getPropertyValue("--ink").trim());
  for (const each of [svg, ...svg.querySelectorAll("*")]) {
    for (const attribute of each.attributes) attribute.value = plain(attribute.value);
  }
}

// The figure as an SVG element: heading, plot, then one line for each entry of the legend.
function standalone(figure) {
  const plot = figure.querySelector(".plot");
  const [, , width, height] = plot.getAttribute("viewBox").split(" ").map(Number);
  const heading = figure.querySelector("h4")?.textContent ?? plot.getAttribute("aria-label");
  const entries = [...figure.querySelectorAll(".legend li")];
  const texts = entries.map((entry) => entry.textContent.trim().replace(/\s+/g, " ").slice(0, MAX_CHARACTERS));
  const longest = Math.max(...[heading, ...texts].map((text) => text.length));
  const size = [Math.max(width, 34 + longest * CHARACTER), height + LINE * (texts.length + 2)];
  const svg = node("svg", { viewBox: `0 0 ${size.join(" ")}`, width: size[0], height: size[1] });
  svg.setAttribute("font-family", "system-ui, sans-serif");
  svg.setAttribute("font-size", 9.5);
  svg.append(node("rect", { width: "100%", height: "100%", fill: "var(--page)" }));
  svg.append(node("text", { x: 8, y: 13, "font-weight": "bold", fill: "currentColor" }, heading));
  const inner = plot.cloneNode(true);
  for (const [name, value] of Object.entries({ y: LINE + 4, width, height })) inner.setAttribute(name, value);
  for (const text of inner.querySelectorAll("text")) text.setAttribute("fill", "currentColor");
  svg.append(inner);
  entries.forEach((entry, index) => {
    const swatch = entry.querySelector("svg");
    const y = LINE + 8 + height + LINE * index;
    const place = { transform: `translate(20 ${y})`, opacity: swatch.style.opacity || 1 };
    const group = node("g", { ...place, stroke: swatch.style.color });
    for (const path of swatch.children) {
      const { shape, d } = { shape: path.getAttribute("class"), d: path.getAttribute("d") };
      const fill = shape === "fill" ? swatch.style.color : "none";
      group.append(node("path", { d, fill, "stroke-width": shape === "outline" ? 0.8 : 1.6, "stroke-dasharray": shape === "dashed" ? "5 3" : "none" }));
    }
    svg.append(group, node("text", { x: 40, y: y + 3.5, fill: "currentColor" }, texts[index]));
  });
  withPlainColours(svg);
  return { text: new XMLSerializer().serializeToString(svg), size };
}

async function toPng({ text, size }) {
  const address = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    image.src = address;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = size.map((length) => Math.round(length * PIXELS));
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  } finally {
    URL.revokeObjectURL(address);
  }
}

async function save({ target }) {
  const picture = standalone(target.closest("figure"));
  const suffix = target.textContent.toLowerCase();
  const blob = suffix === "png" ? await toPng(picture) : new Blob([picture.text], { type: "image/svg+xml" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${target.closest(".tools").dataset.name}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the web browser may still be asking where to save it
}

for (const button of document.querySelectorAll("button.export")) {
  button.hidden = false;
  button.addEventListener("click", save);
}
