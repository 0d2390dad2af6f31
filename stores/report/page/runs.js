// The runs: numbers of the store, and the chips that switch runs on and off everywhere.

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
  if (store.newest_at) parts.push(`newest record of ${store.newest_at} UTC`);
  $("subtitle").textContent = parts.join(" \u00b7 ");
  if (NUM_RUNS) startRunTable();
  else fill($("runs-body"), leftOutNotes(), note("The store has no runs yet. ", command("offpref train STORE --pair-set NAME --model DIR --output-dir DIR"), " adds one."));
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
