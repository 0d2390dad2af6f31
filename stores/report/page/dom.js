// Elements, and numbers and texts as a person reads them. Text of a store goes through `el` as a
// text node, so that no browser looks for markup in it.

const $ = (id) => document.getElementById(id);

function el(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function fill(parent, ...children) {
  parent.replaceChildren(...children.flat().filter(Boolean));
}

const NONE = "\u2013";
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const withMinus = (text) => text.replace("-", "\u2212");

// Four significant digits, for numbers that stand alone.
function short(value) {
  if (!isNumber(value)) return NONE;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 10000) return count(Math.round(value));
  if (size < 0.0001) return withMinus(value.toExponential(2));
  return withMinus(String(Number(value.toPrecision(4))));
}

// So many decimals, for numbers in a column.
function fixed(value, decimals) {
  if (!isNumber(value)) return NONE;
  const text = value.toFixed(decimals);
  return withMinus(Number(text) === 0 ? text.replace("-", "") : text);
}

const count = (value) => (isNumber(value) ? withMinus(value.toLocaleString("en-US")) : NONE);

function bytes(value) {
  if (!isNumber(value)) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (value >= 1000 && place < units.length - 1) { value /= 1000; place += 1; }
  return `${Number(value.toPrecision(3))} ${units[place]}`;
}

const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : many || one + "s"}`;

// Characters that would act instead of being seen: controls, and those that turn the direction.
// Joiners stay, emoji are made of them.
function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u202a-\u202e\u2066-\u2069\ufeff]/g, (character) => {
    const code = character.codePointAt(0);
    if (code < 32) return String.fromCodePoint(0x2400 + code);
    return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

// What plotly draws it reads for tags and entities first.
const plotText = (text) => visible(String(text)).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function note(...parts) {
  return el("p", { class: "note" }, ...parts);
}

const command = (text) => el("code", {}, text);

function control(label, input, isWide) {
  return el("label", { class: isWide ? "control wide" : "control" }, el("span", {}, label), input);
}

function choice(options, chosen, onchange) {
  const select = el("select", { onchange: () => onchange(select.value) });
  for (const [value, label] of options) {
    select.append(el("option", { value, selected: value === chosen }, label));
  }
  return select;
}

// A table of figures: headings, rows of cells, and which columns are numbers.
function figures(headings, rows, numeric, caption) {
  const cell = (tag, content, column) => el(tag, { class: numeric.includes(column) ? "number" : null, scope: tag === "th" ? "col" : null }, content);
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {},
      el("thead", {}, el("tr", {}, headings.map((heading, column) => cell("th", heading, column)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((content, column) => cell("td", content, column)))))));
}
