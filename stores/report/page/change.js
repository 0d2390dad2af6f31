// A pair's tokens before and after: the reference's log-probs, the policy's, and their difference.

const CHANGES = [
  { name: "reference", measure: "logps", label: "Before", title: "log-prob by the reference" },
  { name: "logps", measure: "logps", label: "After", title: "log-prob by the run's policy" },
  { name: "logratios", measure: "logratios", label: "Difference", title: "after minus before" },
];

// Runs that have both of a pair's tokens.
const changedRuns = (tokens) => values.runs.map((_, run) => run).filter((run) =>
  Object.values(tokens || {}).some((side) => { const found = arraysOf(side, run); return found?.reference && found?.logratios; }));

const total = (numbers) => (numbers.some((value) => value === null) ? null : numbers.reduce((sum, value) => sum + value, 0));

// The strongest of a completion's numbers, on one scale for before and after.
function changeScales(found) {
  const both = found.flatMap((arrays) => [{ ...arrays }, { ...arrays, logps: arrays.reference }]);
  return { logps: scaleOf("logps", both), logratios: scaleOf("logratios", found) };
}

function changeSide(side, found, arrays, text, scales) {
  const label = side === "chosen" ? "Chosen" : "Rejected";
  const box = el("article", { class: "side change", "data-side": side }, el("h3", {}, label));
  box.append(el("div", { class: "changes" }, CHANGES.map(({ name, measure, label: when, title }) => {
    const shown = { ...arrays, [measure]: arrays[name] };
    const sum = found.num_cut ? null : total(arrays[name]);
    return el("div", { class: "change-column", "data-change": name },
      el("p", { class: "label", title }, `${when} `, el("b", {}, isNumber(sum) ? `${fixed(sum, 2)} nats` : "")),
      tokenText(found, text, shown, measure, scales[measure], `${label} completion, ${when.toLowerCase()}`, arrays));
  })));
  const texts = tokenTexts(found.ids, text);
  box.append(el("details", { class: "figures" }, el("summary", {}, "Figures"),
    figures(["Token", ...CHANGES.map((each) => each.label)], texts.map((shown, place) => [
      el("code", {}, shown.mark ?? JSON.stringify(visible(shown.text))), ...CHANGES.map(({ name }) => fixed(arrays[name][place], 3)),
    ]), [1, 2, 3], `${label}: tokens before and after`)));
  return box;
}

// Both completions before and after, one below the other.
function changeBoxes(tokens, run) {
  const sides = ["chosen", "rejected"].filter((side) => tokens[side]);
  const arrays = new Map(sides.map((side) => [side, arraysOf(tokens[side], run)]).filter(([, each]) => each?.reference && each?.logratios));
  const scales = changeScales([...arrays.values()]);
  return [
    el("div", { class: "legends" }, legendOf("logps", scales.logps, false), legendOf("logratios", scales.logratios, [...arrays.values()].some((each) => each.uncounted))),
    ...[...arrays].map(([side, each]) => changeSide(side, tokens[side], each, plainText(side)?.raw ?? null, scales)),
  ];
}
