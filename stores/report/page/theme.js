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

// Distinct for colour-blind readers, too; after eight runs lines are dashed as well.
const COLOURS = {
  light: ["#1a5a9e", "#c25e00", "#00796b", "#a3357a", "#6b5b00", "#5a4fcf", "#b3261e", "#4d5a66"],
  dark: ["#7db4f0", "#f2a154", "#4fc3ae", "#e58bc0", "#d1c04a", "#aaa2f7", "#f28b82", "#aeb8c2"],
};
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "star", "pentagon", "hexagon", "cross"];

const runColour = (run) => COLOURS[isDark() ? "dark" : "light"][run % 8];
const runDash = (run) => DASHES[Math.floor(run / 8) % 4];
const runSymbol = (run) => SYMBOLS[run % 8];

function swatch(run) {
  const line = el("span", { class: "line", "aria-hidden": "true" });
  const paint = () => {
    line.style.borderTopColor = runColour(run);
    line.style.borderTopStyle = runDash(run) === "solid" ? "solid" : runDash(run) === "dot" ? "dotted" : "dashed";
  };
  paint();
  themeListeners.push(paint);
  return line;
}
