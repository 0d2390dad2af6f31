// Light and dark: the system's wish unless a reader chooses, which a browser may remember.

const THEME_KEY = "offpref-theme";
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const themeListeners = [];

function rememberedTheme() {
  // A page opened from disk may have no storage, and asking for it may throw.
  try { return localStorage.getItem(THEME_KEY); } catch { return null; }
}

let chosenTheme = rememberedTheme();

const isDark = () => (chosenTheme ? chosenTheme === "dark" : prefersDark.matches);

function applyTheme() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  $("theme").textContent = isDark() ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", isDark() ? "Use the light theme" : "Use the dark theme");
  for (const listener of themeListeners) listener();
}

function startTheme() {
  $("theme").addEventListener("click", () => {
    chosenTheme = isDark() ? "light" : "dark";
    try { localStorage.setItem(THEME_KEY, chosenTheme); } catch { /* not remembered, then */ }
    applyTheme();
  });
  prefersDark.addEventListener("change", applyTheme);
  applyTheme();
}

const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// How a run looks, wherever it is drawn: its number goes by its start, and says which colour,
// which shape and, after as many runs as there are colours, which dash.
const runLook = (run) => values.runs[run].number;
const runColour = (run) => {
  const colours = values.looks[isDark() ? "dark" : "light"];
  return colours[runLook(run) % colours.length];
};
const runDash = (run) => values.looks.dashes[Math.floor(runLook(run) / values.looks.light.length) % values.looks.dashes.length];
const runSymbol = (run) => {
  const { symbols, light } = values.looks;
  return symbols[(runLook(run) + Math.floor(runLook(run) / light.length)) % symbols.length];  // as symbol_of does
};

// Corners of a shape around the origin, as plotly draws it; a circle has many.
function corners(symbol, size) {
  const around = (count, turn, radius = () => size) => Array.from({ length: count }, (_, place) => {
    const angle = (2 * Math.PI * place) / count + turn - Math.PI / 2;
    return [radius(place) * Math.cos(angle), radius(place) * Math.sin(angle)];
  });
  const arm = size / 3;
  return {
    "circle": () => around(24, 0), "square": () => around(4, Math.PI / 4), "diamond": () => around(4, 0),
    "triangle-up": () => around(3, 0), "star": () => around(10, 0, (place) => (place % 2 ? size * 0.45 : size)),
    "pentagon": () => around(5, 0), "hexagon": () => around(6, 0),
    "cross": () => [[-arm, -size], [arm, -size], [arm, -arm], [size, -arm], [size, arm], [arm, arm], [arm, size], [-arm, size], [-arm, arm], [-size, arm], [-size, -arm], [-arm, -arm]],
  }[symbol]();
}

function svg(tag, properties) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  return element;
}

// The line and the shape of a run, beside its name.
function swatch(run) {
  const dash = { solid: "none", dash: "6 3", dot: "2 2.5", dashdot: "6 2 2 2" }[runDash(run)];
  const line = svg("line", { x1: 0, x2: 28, y1: 7, y2: 7, "stroke-width": 2.5, "stroke-dasharray": dash });
  const shape = svg("polygon", { points: corners(runSymbol(run), 6).map(([x, y]) => `${(14 + x).toFixed(2)},${(7 + y).toFixed(2)}`).join(" ") });
  const picture = svg("svg", { class: "swatch", viewBox: "0 0 28 14", preserveAspectRatio: "xMidYMid slice", "aria-hidden": "true" });
  picture.append(line, shape);
  const paint = () => { line.setAttribute("stroke", runColour(run)); shape.setAttribute("fill", runColour(run)); };
  paint();
  themeListeners.push(paint);
  return picture;
}
