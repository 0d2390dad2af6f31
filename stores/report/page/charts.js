// Curves of steps and distributions of pairs, drawn by plotly; beside each the figures as a table.

const METRICS = {
  "loss": "Loss",
  "rewards/margins": "Reward margin",
  "rewards/accuracies": "Reward accuracy",
  "rewards/chosen": "Reward of chosen",
  "rewards/rejected": "Reward of rejected",
  "logps/chosen": "Log-prob of chosen (nats)",
  "logps/rejected": "Log-prob of rejected (nats)",
  "forward_kl/chosen": "Forward KL of chosen (nats)",
  "forward_kl/rejected": "Forward KL of rejected (nats)",
  "reverse_kl/chosen": "Reverse KL of chosen (nats)",
  "reverse_kl/rejected": "Reverse KL of rejected (nats)",
  "entropy": "Entropy (nats per token)",
  "grad_norm": "Gradient norm",
  "learning_rate": "Learning rate",
};
const MEASURES = {
  reward_margins: ["Reward margin", "chosen minus rejected"],
  chosen_rewards: ["Reward of chosen", ""],
  rejected_rewards: ["Reward of rejected", ""],
  chosen_logratios: ["Log-ratio of chosen", "nats, policy to reference"],
  rejected_logratios: ["Log-ratio of rejected", "nats, policy to reference"],
  chosen_forward_kl: ["Forward KL of chosen", "nats, summed over the completion"],
  rejected_forward_kl: ["Forward KL of rejected", "nats, summed over the completion"],
  chosen_reverse_kl: ["Reverse KL of chosen", "nats, summed over the completion"],
  rejected_reverse_kl: ["Reverse KL of rejected", "nats, summed over the completion"],
  loss: ["Loss", "of a pair"],
};
const inOrder = (found, known) => [...Object.keys(known).filter((name) => found.includes(name)), ...found.filter((name) => !(name in known)).sort()];
const metricLabel = (name) => METRICS[name] || visible(name);

function layout(x, y) {
  const axis = (title) => ({
    title: { text: title, font: { size: 13 }, standoff: 10 }, gridcolor: cssColour("--line"), zerolinecolor: cssColour("--strong-line"),
    linecolor: cssColour("--line"), tickfont: { size: 12 }, automargin: true,
  });
  return {
    font: { family: getComputedStyle(document.body).fontFamily, color: cssColour("--ink"), size: 13 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    margin: { l: 56, r: 14, t: 12, b: 48 }, xaxis: axis(x), yaxis: axis(y), hovermode: "closest",
    hoverlabel: { bgcolor: cssColour("--surface"), bordercolor: cssColour("--strong-line"), font: { color: cssColour("--ink"), size: 13 }, align: "left" },
    // A finger that scrolls the page must not zoom into a chart.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  };
}

const PLOTLY = { displayModeBar: false, responsive: true };

function chart(id, label) {
  return el("div", { id, class: "chart", role: "img", "aria-label": label });
}

const rgba = (hex, alpha) => `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},${alpha})`;

function smoothed(numbers, weight) {
  let last = null;
  return numbers.map((value) => {
    if (value === null) return null;
    last = last === null ? value : weight * last + (1 - weight) * value;
    return last;
  });
}

function startCurves(curves) {
  const body = $("curves-body");
  const names = inOrder(Object.keys(curves.metrics), METRICS);
  if (!names.length) {
    fill(body, note("No steps are recorded. ", command("offpref train STORE ..."), " records every step; ", command("--eval-every N"), " measures held-out pairs on the way."));
    return;
  }
  // Losses of several kinds have no common scale; margins nearly do.
  const kinds = new Set(values.runs.map((run) => run.loss_type));
  const state = { metric: kinds.size > 1 && names.includes("rewards/margins") ? "rewards/margins" : names[0], splits: "both", smooth: "0" };
  const hasHeldOut = names.some((name) => curves.metrics[name].some((curve) => isHeldOut(curve.run, curve.split)));
  const set = (name) => (value) => { state[name] = value; draw(); };
  const table = el("div");
  fill(body, runChips(), el("div", { class: "card" },
    el("div", { class: "controls" },
      control("Metric", choice(names.map((name) => [name, metricLabel(name)]), state.metric, set("metric"))),
      hasHeldOut ? control("Pairs", choice([["both", "training and held out"], ["train", "training"], ["held", "held out"]], "both", set("splits"))) : null,
      control("Smoothing of training", choice([["0", "none"], ["0.6", "light"], ["0.9", "strong"]], "0", set("smooth")))),
    chart("curves-chart", "Curves of the runs over steps; the figures are in the table below."),
    el("p", { class: "caption" }, "Thin lines: training. Lines with marks: held-out pairs.",
      curves.is_averaged ? " Long runs are averaged over stretches of steps." : ""),
    el("details", { class: "figures" }, el("summary", {}, "Figures"), table)),
  hasHeldOut ? null : note("No held-out pairs were measured: ", command("offpref score ... --eval-fraction 0.1"), " holds some out, ", command("offpref train ... --eval-every N"), " measures them."));

  const isShown = (curve) => shownRuns.has(curve.run)
    && (state.splits === "both" || (state.splits === "held") === isHeldOut(curve.run, curve.split));
  function draw() {
    const found = curves.metrics[state.metric].filter(isShown);
    const traces = found.map((curve) => {
      const held = isHeldOut(curve.run, curve.split);
      return {
        x: curve.steps, y: held ? curve.values : smoothed(curve.values, Number(state.smooth)), mode: held ? "lines+markers" : "lines",
        line: { color: held ? runColour(curve.run) : rgba(runColour(curve.run), 0.75), width: held ? 2.2 : 1.4, dash: runDash(curve.run) },
        marker: { size: 7, color: runColour(curve.run), symbol: runSymbol(curve.run) },
        customdata: curve.steps.map(() => plotText(`${runLabel(curve.run)}, ${curve.split}`)),
        hovertemplate: "<b>%{customdata}</b><br>step %{x}<br>%{y:.4g}<extra></extra>",
      };
    });
    Plotly.react("curves-chart", traces, layout("Optimizer step", plotText(metricLabel(state.metric))), PLOTLY);
    const last = (numbers) => numbers.filter((value) => value !== null).at(-1);
    const lowest = (numbers) => Math.min(...numbers.filter((value) => value !== null));
    const highest = (numbers) => Math.max(...numbers.filter((value) => value !== null));
    fill(table, figures(["Run", "Split", "Last step", "Last", "Lowest", "Highest"], found.map((curve) => [
      runName(curve.run), visible(curve.split), count(curve.steps.at(-1)), short(last(curve.values)), short(lowest(curve.values)), short(highest(curve.values)),
    ]), [2, 3, 4, 5], "Figures of the curves"));
  }
  drawers.push(draw);
  themeListeners.push(draw);
  draw();
}

// Few values in many bins are noise: about 2 n^(1/3) bins remain.
function merged(counts, numValues) {
  const factor = [1, 2, 3, 4, 5, 6].find((each) => counts.length / each <= 2 * Math.cbrt(numValues)) || 6;
  return Array.from({ length: counts.length / factor }, (_, bin) =>
    counts.slice(bin * factor, (bin + 1) * factor).reduce((sum, number) => sum + number, 0));
}

function startDistributions(distributions) {
  const body = $("distributions-body");
  const names = inOrder(Object.keys(distributions), MEASURES);
  if (!names.length) {
    fill(body, note("Nothing is measured pair by pair yet. ", command("offpref train STORE ..."), " does so in every step."));
    return;
  }
  const splits = [...new Set(names.flatMap((name) => distributions[name].map((each) => each.split)))].sort();
  const heldOut = splits.find((split) => names.some((name) => distributions[name].some((each) => each.split === split && isHeldOut(each.run, split))));
  const state = { measure: names[0], split: heldOut || splits[0] };
  const set = (name) => (value) => { state[name] = value; draw(); };
  const table = el("div");
  const missing = el("div");
  fill(body, runChips(), el("div", { class: "card" },
    el("div", { class: "controls" },
      control("Measure", choice(names.map((name) => [name, MEASURES[name][0]]), state.measure, set("measure"))),
      control("Pairs", choice(splits.map((split) => [split, visible(split)]), state.split, set("split")))),
    chart("distributions-chart", "Distribution over pairs, run by run; the figures are in the table below."),
    missing,
    el("p", { class: "caption" }, "Every pair counts once, as the run saw it last. The area under each outline is 1. What lies more than three interquartile ranges beyond the quartiles is counted at the edge."),
    el("details", { class: "figures" }, el("summary", {}, "Figures"), table)),
  names.some((name) => name.includes("_kl")) ? null : note("No KLs are measured: ", command("offpref score STORE ... --tier hidden"), ", then ", command("offpref train STORE ... --kl-metrics"), " or a loss of the tdpo family."));

  function draw() {
    const found = distributions[state.measure].filter((each) => each.split === state.split && shownRuns.has(each.run));
    const traces = found.filter((each) => each.high > each.low).map((each) => {
      const counts = merged(each.counts, each.num_values);
      const width = (each.high - each.low) / counts.length;
      const density = counts.map((number) => number / each.num_values / width);
      return {
        x: [each.low, ...counts.map((_, bin) => each.low + bin * width), each.high], y: [0, ...density, 0],
        mode: "lines", line: { shape: "hv", color: runColour(each.run), width: 1.8, dash: runDash(each.run) },
        fill: "tozeroy", fillcolor: rgba(runColour(each.run), found.length > 4 ? 0.05 : 0.13),
        customdata: ["", ...counts.map((number) => `${plotText(runLabel(each.run))}</b><br>${plural(number, "pair")} of ${count(each.num_values)}`), ""],
        hovertemplate: "<b>%{customdata}<br>from %{x:.4g}<extra></extra>",
      };
    });
    const [name, unit] = MEASURES[state.measure];
    Plotly.react("distributions-chart", traces, layout(unit ? `${name} (${unit})` : name, "Density"), PLOTLY);
    const alone = found.filter((each) => !(each.high > each.low));
    fill(missing, alone.length ? note("Not drawn, all values are equal: ", visible(alone.map((each) => `${runLabel(each.run)} (${short(each.median)})`).join(", ")), ".") : null,
      found.length ? null : note("No run that is shown has this measure on these pairs."));
    fill(table, figures(["Run", "Pairs", "Mean", "Median", "Lowest", "Highest"], found.map((each) => [
      runName(each.run), count(each.num_values), short(each.mean), short(each.median), short(each.lowest), short(each.highest),
    ]), [1, 2, 3, 4, 5], "Figures of the distributions"));
  }
  drawers.push(draw);
  themeListeners.push(draw);
  draw();
}
