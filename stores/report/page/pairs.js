// The table of pairs: sorted by its headings, searched, filtered, and walked through by keys.

const ROWS_PER_PAGE = 50;
const pairsState = { source: null, sort: null, isDescending: false, search: "", split: "", pairSet: "", kind: "", page: 0, order: [], pair: null };

let table = null; // the columns of the pairs, from the page's block
let measured = []; // by run: columns with one value per pair

const COLUMNS = [
  { name: "prompt", label: "Prompt" },
  { name: "pair_set", label: "Pair set" },
  { name: "split", label: "Split" },
  { name: "margin", label: "Margin", decimals: 3, title: "reward of chosen minus rejected" },
  { name: "chosen_rewards", label: "Reward, chosen", decimals: 3 },
  { name: "rejected_rewards", label: "Reward, rejected", decimals: 3 },
  { name: "sum_chosen", label: "Log-prob, chosen", decimals: 2 },
  { name: "sum_rejected", label: "Log-prob, rejected", decimals: 2 },
  { name: "chosen_forward_kl", label: "KL, chosen", decimals: 3 },
  { name: "rejected_forward_kl", label: "KL, rejected", decimals: 3 },
  { name: "loss", label: "Loss", decimals: 3 },
  { name: "chosen_tokens", label: "Tokens, chosen", decimals: 0 },
  { name: "rejected_tokens", label: "Tokens, rejected", decimals: 0 },
];

// Everything the table knows of a pair under a source, a run's number or "reference 0".
function rowOf(pair, source) {
  const row = { split: table.pairs.split[pair], pair_set: table.pairs.pair_set[pair], chosen_tokens: table.pairs.chosen_tokens[pair], rejected_tokens: table.pairs.rejected_tokens[pair] };
  row.prompt = table.prompt[pair] === null ? "" : table.texts[table.prompt[pair]];
  if (typeof source === "string") {
    const sums = table.sums[source.split(" ")[1]];
    if (sums) { row.sum_chosen = sums.chosen[pair]; row.sum_rejected = sums.rejected[pair]; }
    return row;
  }
  const place = measured[source]?.places.get(pair);
  if (place === undefined) return row;
  for (const [name, column] of Object.entries(measured[source].columns)) if (name !== "split" && name !== "pair") row[name] = column[place];
  if (isNumber(row.chosen_rewards) && isNumber(row.rejected_rewards)) row.margin = row.chosen_rewards - row.rejected_rewards;
  return row;
}

const searchTexts = new Map();
function searchText(pair) {
  if (!searchTexts.has(pair)) {
    const texts = ["prompt", "chosen", "rejected"].map((name) => (table[name][pair] === null ? "" : table.texts[table[name][pair]]));
    const columns = ["pair_set", "source_file", "source", "pair_key"].map((name) => table.pairs[name][pair]);
    searchTexts.set(pair, [...texts, ...columns].join("\n").toLowerCase());
  }
  return searchTexts.get(pair);
}

// Whether every run that saw the pair gives the rejected completion more reward, and two or more did.
// Such a pair may have its labels swapped; the question `label_noise` finds the same.
function isAlwaysWrong(pair) {
  const margins = measured.map(({ columns, places }) => {
    const place = places.get(pair);
    const chosen = columns.chosen_rewards?.[place], rejected = columns.rejected_rewards?.[place];
    return isNumber(chosen) && isNumber(rejected) ? chosen - rejected : null;
  }).filter((margin) => margin !== null);
  return margins.length >= 2 && margins.every((margin) => margin < 0);
}

let rows = [];
function isFound(pair) {
  const { search, split, pairSet, kind } = pairsState;
  const row = rows[pair];
  if (split && row.split !== split) return false;
  if (pairSet && row.pair_set !== pairSet) return false;
  if (kind === "wrong" && !(row.margin < 0)) return false;
  if (kind === "always wrong" && !isAlwaysWrong(pair)) return false;
  if (kind === "tokens" && values.tokens.block_of_pair[pair] === undefined) return false;
  if (kind === "unpaired" && table.chosen[pair] !== null && table.rejected[pair] !== null) return false;
  return !search || searchText(pair).includes(search.toLowerCase());
}

function order() {
  const { sort, isDescending } = pairsState;
  const found = rows.map((_, pair) => pair).filter(isFound);
  if (sort) {
    const sign = isDescending ? -1 : 1;
    const isText = COLUMNS.find((column) => column.name === sort).decimals === undefined;
    const isMissing = (value) => value === null || value === undefined || value === "";
    found.sort((a, b) => {
      const one = rows[a][sort], other = rows[b][sort];
      if (isMissing(one) || isMissing(other)) return isMissing(one) - isMissing(other) || a - b; // the missing stay last
      return sign * (isText ? one.localeCompare(other, "en") : one - other) || a - b;
    });
  }
  pairsState.order = found;
}

const shownColumns = () => COLUMNS.filter(({ name }) => {
  if (name === "pair_set") return new Set(table.pairs.pair_set).size > 1;
  return name === "prompt" || rows.some((row) => row[name] !== null && row[name] !== undefined);
});

function heading(column) {
  const isSorted = pairsState.sort === column.name;
  const arrow = isSorted ? (pairsState.isDescending ? "\u00a0\u2193" : "\u00a0\u2191") : "";
  return el("th", { scope: "col", class: column.decimals === undefined ? null : "number", "aria-sort": isSorted ? (pairsState.isDescending ? "descending" : "ascending") : null },
    el("button", { type: "button", title: column.title, "data-sort": column.name, onclick: () => sortBy(column.name) }, column.label + arrow));
}

function sortBy(name) {
  pairsState.isDescending = pairsState.sort === name ? !pairsState.isDescending : false;
  pairsState.sort = name;
  pairsState.page = 0;
  drawTable();
  document.querySelector(`[data-sort="${name}"]`).focus();
}

function tableRow(pair, columns) {
  const isSelected = pair === pairsState.pair;
  const cells = columns.map((column) => {
    const value = rows[pair][column.name];
    if (column.name === "prompt") {
      const text = visible(value.slice(0, 400).replace(/\s+/g, " ").trim()) || "(no text)";
      return el("td", {}, el("button", { type: "button", class: "open", tabindex: isSelected ? "0" : "-1", dir: "auto", onkeydown: moveRow }, text));
    }
    return el("td", { class: column.decimals === undefined ? null : "number" }, column.decimals === undefined ? visible(value) : fixed(value, column.decimals));
  });
  return el("tr", { "data-pair": pair, "aria-selected": isSelected ? "true" : "false", onclick: () => select(pair) }, cells);
}

function drawTable() {
  order();
  drawPage();
}

function drawPage() {
  const columns = shownColumns();
  const first = pairsState.page * ROWS_PER_PAGE;
  const found = pairsState.order.slice(first, first + ROWS_PER_PAGE);
  const body = el("tbody", {}, found.map((pair) => tableRow(pair, columns)));
  fill($("pair-table"), el("table", {}, el("thead", {}, el("tr", {}, columns.map(heading))), body));
  if (found.length && !found.includes(pairsState.pair)) body.querySelector(".open").tabIndex = 0;
  const total = pairsState.order.length;
  const turn = (by) => () => { pairsState.page += by; drawPage(); $("pair-table").scrollTop = 0; };
  fill($("pages"),
    el("button", { type: "button", class: "quiet", disabled: pairsState.page === 0, onclick: turn(-1) }, "Previous page"),
    el("button", { type: "button", class: "quiet", disabled: first + ROWS_PER_PAGE >= total, onclick: turn(1) }, "Next page"),
    el("span", { role: "status" }, total ? `${count(first + 1)} to ${count(first + found.length)} of ${plural(total, "pair")}` : "No pair matches."));
}

function select(pair, takesFocus) {
  pairsState.pair = pair;
  for (const row of document.querySelectorAll("#pair-table tr[data-pair]")) {
    const isSelected = Number(row.dataset.pair) === pair;
    row.setAttribute("aria-selected", String(isSelected));
    const button = row.querySelector(".open");
    button.tabIndex = isSelected ? 0 : -1;
    if (isSelected) {
      const box = $("pair-table"), top = row.offsetTop - 40, bottom = row.offsetTop + row.offsetHeight;
      if (top < box.scrollTop) box.scrollTop = top;
      else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
      if (takesFocus) button.focus({ preventScroll: true });
    }
  }
  return drawPair(pair, pairsState.source).catch(showTrouble);
}

// Move through the pairs in the table's order, turning its pages.
function step(by, takesFocus) {
  const { order: all, pair } = pairsState;
  const place = all.indexOf(pair);
  const next = place < 0 ? 0 : place + by;
  if (next < 0 || next >= all.length) return;
  const page = Math.floor(next / ROWS_PER_PAGE);
  if (page !== pairsState.page) { pairsState.page = page; drawPage(); }
  const had = document.activeElement?.id;
  select(all[next], takesFocus).then(() => { if (had === "previous" || had === "next") $(had).focus(); });
}

function moveRow(event) {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (by === undefined) return;
  event.preventDefault();
  step(by, true);
}

function setSource(source) {
  pairsState.source = source;
  rows = table.pairs.pair_key.map((_, pair) => rowOf(pair, source));
  if (!shownColumns().some((column) => column.name === pairsState.sort)) pairsState.sort = null;
}

// Let another run, or reference, say what the table and the pair show.
function chooseSource(source) {
  setSource(source);
  $("pair-source").value = String(source);
  pairsState.page = 0;
  drawTable();
  return pairsState.pair === null ? Promise.resolve() : select(pairsState.pair);
}

function sampleNotes() {
  const parts = [];
  if (values.num_pairs_shown < values.num_pairs) parts.push(`${count(values.num_pairs_shown)} of ${count(values.num_pairs)} pairs shown: those with token values first, then in the order of their keys, which are hashes. The charts above count every pair.`);
  if (values.tokens.num_left_out) parts.push(`Token values of ${plural(values.tokens.num_left_out, "pair")} are left out, to keep the page under 10 MB.`);
  if (values.tokens.num_bits === 8 && Object.keys(values.tokens.block_of_pair).length) parts.push("Token values are rounded to about two digits, for the same reason.".replace(", for the same reason", values.tokens.num_left_out ? ", for the same reason" : ", to keep the page under 10 MB"));
  return parts.length ? note(parts.join(" ")) : null;
}

function startPairs(block) {
  const body = $("pairs-body");
  table = block;
  if (!table.pairs.pair_key.length) {
    fill(body, note("The store has no pairs yet. ", command("offpref add STORE --data FILE --pair-set NAME --tokenizer DIR"), " adds some."));
    return;
  }
  measured = table.measured.map((columns) => ({ columns, places: new Map((columns.pair || []).map((pair, place) => [pair, place])) }));
  const sources = [
    ...values.runs.map((_, run) => [String(run), visible(runLabel(run))]),
    ...values.references.map((name, number) => [`reference ${number}`, `reference ${visible(name)}`]),
  ];
  const toSource = (text) => (/^\d+$/.test(text) ? Number(text) : text);
  // At first the run that tells most: margins of the most pairs, else anything of the most.
  const told = (text) => {
    const columns = measured[toSource(text)]?.columns || {};
    return 1e6 * (columns.chosen_rewards && columns.rejected_rewards ? 1 : 0) + (columns.pair || []).length;
  };
  const first = [...sources].sort((a, b) => told(b[0]) - told(a[0]))[0]?.[0] || "reference 0";
  const again = (name) => (value) => { pairsState[name] = value; pairsState.page = 0; drawTable(); };
  const search = el("input", { type: "search", id: "search", placeholder: "text, file, key  ( / )", autocomplete: "off", spellcheck: "false", oninput: () => again("search")(search.value) });
  const distinct = (name) => [...new Set(table.pairs[name])].sort().map((value) => [value, visible(value)]);
  setSource(toSource(first));
  if (rows.some((row) => isNumber(row.margin))) pairsState.sort = "margin";
  const kinds = [["", "all"], ["wrong", "margin below 0"], ...(NUM_RUNS > 1 ? [["always wrong", "wrong in every run"]] : []), ["tokens", "with token values"], ["unpaired", "unpaired"]];
  const sourceSelect = choice(sources, first, (text) => chooseSource(toSource(text)));
  sourceSelect.id = "pair-source";
  fill(body, sampleNotes(), el("div", { class: "card" },
    el("div", { class: "controls" },
      sources.length ? control("Measured by", sourceSelect) : null,
      control("Search", search, true),
      distinct("split").length > 1 ? control("Split", choice([["", "all"], ...distinct("split")], "", again("split"))) : null,
      distinct("pair_set").length > 1 ? control("Pair set", choice([["", "all"], ...distinct("pair_set")], "", again("pairSet"))) : null,
      control("Pairs", choice(kinds, "", again("kind")))),
    el("div", { class: "scroll pair-table", id: "pair-table", role: "region", "aria-label": "Table of pairs" }),
    el("div", { class: "pages", id: "pages" })),
  el("div", { class: "card pair", id: "pair", "aria-labelledby": "pair-title", role: "region" }));
  drawTable();
  select(pairsState.order.slice(0, 10).find((pair) => table.pairs.has_tokens[pair]) ?? pairsState.order[0]);
}

function startKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideTip();
    if (event.ctrlKey || event.metaKey || event.altKey || /^(input|select|textarea)$/i.test(event.target.tagName) && event.target.type !== "radio" && event.target.type !== "checkbox") return;
    if (event.key === "/" && $("search")) { event.preventDefault(); $("search").focus(); }
    if (event.key === "j" && table) step(1);
    if (event.key === "k" && table) step(-1);
  });
}
