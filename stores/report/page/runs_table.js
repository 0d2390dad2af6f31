// The table of runs: results with their errors and the settings that differ, sorted by its headings.
// A narrow page shows what matters, and each run opens the rest of what is known of it.

const MANY_SETTINGS = 4; // settings shown at first: of more, a button shows the others
const runsState = { sort: null, isDescending: false, hasAllSettings: false, open: new Set() };

const resultOf = (run) => values.runs[run].result;
const objectives = [...new Set(values.runs.flatMap((run) => Object.keys(run.result.rewards || {})))];
const hiddenSettings = () => (values.settings.length > MANY_SETTINGS + 1 ? values.settings.slice(MANY_SETTINGS) : []);

// A number, and below it its standard error.
function measuredCell(value, error, decimals) {
  if (!isNumber(value)) return NONE;
  return el("span", { class: "measured" }, el("span", {}, fixed(value, decimals)),
    isNumber(error) ? el("span", { class: "error" }, `\u00b1\u00a0${fixed(error, decimals)}`) : null);
}

function klCell(run) {
  const { kl, kl_error: error, kl_source: source } = resultOf(run);
  if (source === "definition") return el("span", { class: "measured", title: "the reference itself: 0 by definition" }, "0", el("span", { class: "error" }, "reference"));
  const cell = measuredCell(kl, error, 3);
  return source === "topk-bound" ? el("span", {}, "\u2265\u00a0", cell) : cell;
}

function statusCell(run) {
  const { status, message } = values.runs[run];
  return el("span", { title: message ? visible(message) : null, class: "status" }, visible(status || "unknown"));
}

// Values that a column is sorted by; numbers of settings are text on the page and sort as numbers.
const settingValue = (name) => (run) => {
  const text = values.runs[run].differs[name];
  if (text === undefined) return null;
  return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
};

function runColumns() {
  const isMore = new Set(hiddenSettings());
  const of = (name) => (run) => resultOf(run)[name] ?? null;
  const columns = [
    { key: "run", label: "Run", of: runLabel, cell: runOpener },
    { key: "status", label: "Status", of: (run) => values.runs[run].status, cell: statusCell },
    ...values.settings.map((name) => ({
      key: `setting ${name}`, label: visible(name), isName: true, kind: isMore.has(name) ? "setting more" : "setting", of: settingValue(name),
      cell: (run) => visible(values.runs[run].differs[name] ?? NONE),
    })),
    { key: "accuracy", label: "Accuracy, held\u00a0out", title: "share of held-out pairs, those without a tie, whose chosen completion has the higher reward; with its standard error", isNumeric: true, bestHigh: true, of: of("accuracy"), cell: (run) => measuredCell(resultOf(run).accuracy, resultOf(run).accuracy_error, 3) },
    { key: "loss", label: "Loss, held\u00a0out", title: "losses of unlike kinds cannot be compared", isNumeric: true, of: of("loss"), cell: (run) => measuredCell(resultOf(run).loss, null, 4) },
    { key: "kl", label: "KL", title: "KL(policy || reference) of a completion, nats, with its standard error", isNumeric: true, of: of("kl"), cell: klCell },
    ...objectives.map((name) => ({
      key: `reward ${name}`, label: `Reward, ${visible(name)}`, title: "mean over samples of the policy, with its standard error", isNumeric: true, bestHigh: true,
      kind: "reward", of: (run) => resultOf(run).rewards?.[name]?.[0] ?? null, cell: (run) => measuredCell(...(resultOf(run).rewards?.[name] || [null, null]), 3),
    })),
    { key: "steps", label: "Steps", isNumeric: true, bestHigh: true, of: (run) => values.runs[run].steps, cell: (run) => count(values.runs[run].steps) },
    { key: "started", label: "Started (UTC)", of: (run) => values.runs[run].started, cell: (run) => values.runs[run].started },
  ];
  return columns.filter(({ key, of: value }) => ["run", "status", "accuracy", "kl"].includes(key) || values.runs.some((_, run) => isNumber(value(run)) || value(run)));
}

function sortedRuns(columns) {
  const all = values.runs.map((_, run) => run);
  const column = columns.find(({ key }) => key === runsState.sort);
  if (!column) return all;
  const sign = runsState.isDescending ? -1 : 1;
  return all.sort((a, b) => {
    const one = column.of(a), other = column.of(b);
    if (one === null || other === null) return (one === null) - (other === null) || a - b; // what is not there stays last
    if (isNumber(one) && isNumber(other)) return sign * (one - other) || a - b;
    if (isNumber(one) !== isNumber(other)) return isNumber(one) ? -1 : 1; // numbers before words
    return sign * String(one).localeCompare(String(other), "en", { numeric: true }) || a - b;
  });
}

// At first what is best: the highest accuracy, the lowest KL; the same heading again turns it round.
function sortRuns(column) {
  runsState.isDescending = runsState.sort === column.key ? !runsState.isDescending : Boolean(column.bestHigh);
  runsState.sort = column.key;
  drawRunTable();
  [...document.querySelectorAll("#run-table thead button")].find((each) => each.dataset.key === column.key).focus();
}

function runHeading(column) {
  const isSorted = runsState.sort === column.key;
  const arrow = isSorted ? (runsState.isDescending ? "\u00a0\u2193" : "\u00a0\u2191") : "";
  return el("th", { scope: "col", class: cellClass(column), "aria-sort": isSorted ? (runsState.isDescending ? "descending" : "ascending") : null },
    el("button", { type: "button", title: column.title, "data-key": column.key, onclick: () => sortRuns(column) }, column.isName ? breakable(column.label) : column.label, arrow));
}

// A name that may be broken where words meet.
const breakable = (name) => name.split(/(?<=_)/).flatMap((part) => [part, el("wbr")]);

const cellClass = ({ key, kind, isNumeric }) => `col-${(kind || key).split(" ").join(" col-")}${isNumeric ? " number" : ""}`;

// The name of a run, which opens what else is known of it.
function runOpener(run) {
  const button = el("button", { type: "button", class: "open-run", "aria-expanded": String(runsState.open.has(run)), "data-run": run, onclick: () => {
    if (!runsState.open.delete(run)) runsState.open.add(run);
    drawRunTable();
    document.querySelector(`#run-table button[data-run="${run}"]`).focus();
  } }, swatch(run), el("bdi", {}, visible(runLabel(run))));
  return button;
}

function runDetails(run, columns) {
  const { shown, result } = { shown: values.runs[run], result: resultOf(run) };
  const facts = columns.filter(({ key }) => key !== "run").map((column) => [column.label, column.cell(run)]);
  const ranked = result.rank === undefined ? null
    : `${count(result.rank)} on ${plural(result.num_pairs, "held-out pair")}` + (result.behind ? `, ${fixed(result.behind, 3)} \u00b1 ${fixed(result.behind_error, 3)} behind the highest accuracy` : ", the highest accuracy") + (result.is_tied && result.behind ? ": tied" : "");
  facts.push(
    ["Rank", ranked], ["KL measured on", { samples: "samples of the policy", exact: "held-out pairs", "topk-bound": "held-out pairs: a lower bound", definition: "the reference itself, 0 by definition" }[result.kl_source]],
    ["Last message", shown.message], ["Labels", shown.tags.join(", ")], ["Pair set", shown.pair_set], ["Reference", shown.reference || "none"],
    ["Attempts", count(shown.attempts)], ["Id", shown.id]);
  return el("dl", { class: "details" }, facts.filter(([, value]) => value && value !== NONE).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", { dir: "auto" }, typeof value === "string" ? visible(value) : value))));
}

function drawRunTable() {
  const columns = runColumns();
  const rows = sortedRuns(columns).flatMap((run) => [
    el("tr", { "data-run-row": run }, columns.map((column) => el("td", { class: cellClass(column) }, column.cell(run)))),
    runsState.open.has(run) ? el("tr", { class: "opened" }, el("td", { colspan: columns.length }, runDetails(run, columns))) : null,
  ]);
  const box = $("run-table");
  box.classList.toggle("all-settings", runsState.hasAllSettings);
  fill(box, el("table", {}, el("thead", {}, el("tr", {}, columns.map(runHeading))), el("tbody", {}, rows.filter(Boolean))));
}

function settingsButton() {
  const more = hiddenSettings();
  if (!more.length) return null;
  const text = () => (runsState.hasAllSettings ? "Show fewer settings" : `Show ${plural(more.length, "more setting")} that differ${more.length === 1 ? "s" : ""}`);
  const button = el("button", { type: "button", class: "quiet", id: "more-settings", "aria-expanded": "false", "aria-controls": "run-table" }, text());
  button.addEventListener("click", () => {
    runsState.hasAllSettings = !runsState.hasAllSettings;
    button.setAttribute("aria-expanded", String(runsState.hasAllSettings));
    button.textContent = text();
    drawRunTable();
  });
  return button;
}

// What the question `best` says, in a sentence.
function bestSentence() {
  const ranked = values.runs.map((_, run) => run).filter((run) => resultOf(run).rank !== undefined);
  const best = ranked.filter((run) => resultOf(run).rank === 1);
  if (best.length !== 1 || ranked.length < 2) return null;
  const tied = ranked.filter((run) => resultOf(run).is_tied && run !== best[0]);
  const name = (run) => visible(runLabel(run));
  const alike = [best[0], ...tied].map(name).join(", ");
  const why = !tied.length ? "the highest held-out accuracy, and no other run is tied with it."
    : isNumber(resultOf(best[0]).kl) ? `of those that cannot be told from the highest accuracy (${alike}) the one with the smallest KL.`
      : `but no KL tells it from those whose accuracy is not clearly lower (${alike}).`;
  return el("p", { class: "caption", id: "best" }, el("b", {}, `Best: ${name(best[0])}`), `, ${why}`);
}

const leftOutLine = (title, id, reasons) => (reasons.length
  ? el("p", { class: "caption", id }, el("b", {}, `${title}: `), visible(reasons.map(({ name, why }) => `${name} (${why})`).join("; ")), ".") : null);

function leftOutNotes() {
  const unlike = values.unlike_objectives;
  return [
    leftOutLine("Left out", "left-out", values.left_out),
    leftOutLine("Without a comparable accuracy", "not-ranked", values.not_ranked),
    unlike.length ? el("p", { class: "caption", id: "unlike" }, el("b", {}, "Measured in different ways, so not comparable: "), visible(`rewards for ${unlike.join(", ")}; the frontier says how.`)) : null,
  ];
}

function startRunTable() {
  if (values.runs.some((_, run) => isNumber(resultOf(run).accuracy))) Object.assign(runsState, { sort: "accuracy", isDescending: true });
  fill($("runs-body"), el("div", { class: "card" },
    el("div", { class: "scroll", id: "run-table", tabindex: "0", role: "region", "aria-label": "Table of runs" }),
    el("div", { class: "pages" }, settingsButton(), el("span", {}, "\u00b1 is one standard error. A name opens what else is known of a run."))),
    bestSentence(), leftOutNotes());
  drawRunTable();
}
