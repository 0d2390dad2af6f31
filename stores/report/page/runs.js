// The runs: numbers of the store, a table, and the chips that switch runs on and off everywhere.

const NUM_RUNS = values.runs.length;
// Twenty curves are more than an eye can follow: the first ten are on at the start.
const shownRuns = new Set(values.runs.slice(0, 10).map((_, run) => run));
const drawers = [];

const runLabel = (run) => values.runs[run].label;
const differing = (run) => Object.entries(values.runs[run].differs).map(([name, value]) => `${name} ${value}`).join(", ");
const isHeldOut = (run, split) => split !== values.runs[run].train_split;

function drawAll() {
  for (const draw of drawers) draw();
}

function runName(run) {
  return el("span", { class: "name" }, swatch(run), el("bdi", { title: visible(runLabel(run)) }, visible(runLabel(run))));
}

function startRuns() {
  const store = values.store;
  fill($("numbers"), [
    ["Runs", count(NUM_RUNS)],
    ["Pairs", count(store.num_pairs)],
    ["Pair sets", count(store.num_pair_sets)],
    ["Sequences", count(store.num_sequences)],
    ["References", count(store.num_references)],
    ["On disk", bytes(store.num_bytes)],
  ].map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  $("title").textContent = visible(values.title);
  const parts = [`Store ${visible(store.name)}`, plural(NUM_RUNS, "run") + (values.is_part ? " of those it holds" : ""), plural(values.num_pairs, "pair")];
  $("subtitle").textContent = parts.join(" \u00b7 ");
  if (!NUM_RUNS) {
    fill($("runs-body"), note("The store has no runs yet. ", command("offpref train STORE --pair-set NAME --model DIR --output-dir DIR"), " adds one."));
    return;
  }
  const rows = values.runs.map((run, number) => [
    runName(number),
    visible(run.status || "unknown"),
    count(run.steps),
    settingTags(number),
    visible(run.pair_set),
    run.reference === null ? "none" : visible(run.reference),
    run.attempts > 1 ? `${run.started}, ${run.attempts} attempts` : run.started,
  ]);
  const headings = ["Run", "Status", "Steps", NUM_RUNS > 1 ? "Settings that differ" : "Settings", "Pair set", "Reference", "Started (UTC)"];
  const table = figures(headings, rows, [2], "Runs");
  for (const cell of table.querySelectorAll("tbody td:nth-child(4)")) cell.classList.add("wrap");
  fill($("runs-body"), el("div", { class: "card" }, table));
}

function settingTags(run) {
  const settings = Object.entries(values.runs[run].differs);
  if (!settings.length) return NONE;
  return el("span", { class: "tags" }, settings.map(([name, value]) => el("span", { class: "tag", dir: "auto" }, `${visible(name)} `, el("b", {}, visible(value)))));
}

// Checkboxes, one per run; all groups of them are kept in sync.
function runChips() {
  const boxes = values.runs.map((_, run) => {
    const box = el("input", { type: "checkbox", checked: shownRuns.has(run), "data-run": run, onchange: () => {
      if (box.checked) shownRuns.add(run); else shownRuns.delete(run);
      for (const other of document.querySelectorAll(`input[data-run="${run}"]`)) other.checked = box.checked;
      drawAll();
    } });
    return el("label", { class: "chip", title: visible(`${runLabel(run)}: ${differing(run)}`) }, box, swatch(run), el("span", { dir: "auto" }, visible(runLabel(run))));
  });
  return el("fieldset", { class: "chips" }, el("legend", {}, "Runs shown"), boxes);
}
