// The frontier: every run a point, what is gained against what it costs; the best are marked.

const POINT_METRICS = {
  forward_kl: "Forward KL (nats per completion)",
  chosen_forward_kl: "Forward KL of chosen (nats)",
  rejected_forward_kl: "Forward KL of rejected (nats)",
  chosen_reverse_kl: "Reverse KL of chosen (nats)",
  rejected_reverse_kl: "Reverse KL of rejected (nats)",
  accuracy: "Reward accuracy",
  reward_margins: "Reward margin",
  loss: "Loss",
  chosen_logratios: "Log-ratio of chosen (nats)",
  rejected_logratios: "Log-ratio of rejected (nats)",
  reverse_kl: "Reverse KL (nats per completion)",
  on_policy_forward_kl: "Forward KL on the policy's samples (nats)",
  entropy: "Entropy (nats per token)",
  mean_completion_tokens: "Length (tokens)",
};
const SOURCES = { "evaluations": "evaluations of policies", "held out": "held-out pairs", "train": "training pairs" };
const isLessBetter = (metric) => /kl|loss|tokens|self_bleu/i.test(metric);
const pointLabel = (metric) => POINT_METRICS[metric] || visible(metric);

// What two points must share to be ranked against each other in two metrics: which pairs or prompts,
// the reference, how samples were drawn, what a reward is in; a bound of a KL is not a KL.
function measuredAs(point, metrics) {
  const axes = metrics.map((metric) => (point.axes && point.axes[metric]) ?? null);
  const isBound = point.has_bounds && metrics.some((metric) => /kl/i.test(metric));
  return JSON.stringify([point.conditions ?? null, axes, isBound]);
}

// A point is on the frontier unless another, measured in the same way, is at least as good in both and better in one.
function onFrontier(points, x, y) {
  const gain = (point, metric) => (isLessBetter(metric) ? -1 : 1) * point.values[metric];
  const alike = new Map(points.map((point) => [point, measuredAs(point, [x, y])]));
  return points.filter((point) => !points.some((other) => alike.get(other) === alike.get(point)
    && gain(other, x) >= gain(point, x) && gain(other, y) >= gain(point, y)
    && (gain(other, x) > gain(point, x) || gain(other, y) > gain(point, y))));
}

// The points by what they share, in their order.
function grouped(points, x, y) {
  const groups = new Map();
  for (const point of points) {
    const key = measuredAs(point, [x, y]);
    groups.set(key, [...(groups.get(key) || []), point]);
  }
  return [...groups.values()];
}

// How points were measured, as far as not all of them alike.
function differingConditions(points, x, y) {
  const told = (point) => ({ ...point.conditions, ...Object.fromEntries([x, y].filter((metric) => point.axes && point.axes[metric]).map((metric) => [pointLabel(metric), point.axes[metric]])) });
  const names = [...new Set(points.flatMap((point) => Object.keys(told(point))))];
  const apart = names.filter((name) => new Set(points.map((point) => String(told(point)[name] ?? ""))).size > 1);
  return (point) => apart.filter((name) => (told(point)[name] ?? null) !== null).map((name) => `${name} ${told(point)[name]}`).join(", ");
}

// What policies were evaluated for: the reward that most of them have, of these the one named first.
function firstObjective(points) {
  const counts = new Map();
  for (const point of points) {
    for (const name of Object.keys(point.values)) if (name.startsWith("reward: ")) counts.set(name, (counts.get(name) || 0) + 1);
  }
  return [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a))[0];
}

const MAX_NAME = 24;
const MAX_NAMED = 40; // of more points, the table has the names
const pointName = ({ label, is_reference: isReference }) => (label.length > MAX_NAME ? label.slice(0, MAX_NAME - 1) + "\u2026" : label) + (isReference ? " (reference)" : "");
// Numbers with their errors, as plotly draws them.
const errorBars = (points, metric) => ({ type: "data", array: points.map((point) => point.errors?.[metric] ?? 0), color: cssColour("--strong-line"), thickness: 1, width: 3 });

function startFrontier(frontiers) {
  const body = $("frontier-body");
  if (!frontiers.length) {
    fill(body, note("Nothing to compare yet. ", command("offpref train STORE ..."), " measures rewards of pairs, ", command("--kl-metrics"), " the KL they cost."));
    return;
  }
  const state = { source: frontiers[0].source, x: null, y: null };
  const controls = el("div", { class: "controls" });
  const table = el("div");
  const missing = el("div");
  fill(body, runChips(), el("div", { class: "card" }, controls,
    chart("frontier-chart", "Runs as points; the figures are in the table below."), missing,
    el("p", { class: "caption" }, "Filled points joined by the dotted line: no other run that was measured in the same way is better in both. Bars are one standard error. Hover over a point to see its settings."),
    el("details", { class: "figures", open: values.runs.length <= 12 }, el("summary", {}, "Figures"), table)));

  let named = [];
  const current = () => frontiers.find((each) => each.source === state.source);
  function choose() {
    const found = inOrder([...new Set(current().points.flatMap((point) => Object.keys(point.values)))], POINT_METRICS);
    const first = (names) => names.find((name) => found.includes(name));
    const numMeasured = (name) => current().points.filter((point) => isNumber(point.values[name])).length;
    const most = (names) => names.filter((name) => found.includes(name)).sort((a, b) => numMeasured(b) - numMeasured(a))[0];
    if (!found.includes(state.x)) state.x = most(["reverse_kl", "forward_kl"]) || found.find((name) => /kl/i.test(name)) || first(["chosen_logratios"]) || found[0];
    if (!found.includes(state.y)) state.y = firstObjective(current().points) || first(["accuracy", "reward_margins"]) || found.find((name) => name !== state.x) || found[0];
    const options = found.map((name) => [name, pointLabel(name)]);
    const set = (name) => (value) => { state[name] = value; if (name === "source") choose(); draw(); };
    fill(controls,
      frontiers.length > 1 ? control("Measured on", choice(frontiers.map((each) => [each.source, SOURCES[each.source]]), state.source, set("source"))) : null,
      control("Across", choice(options, state.x, set("x"))), control("Up", choice(options, state.y, set("y"))));
  }

  function draw() {
    const { x, y } = state;
    const points = current().points.filter((point) => point.run === null || shownRuns.has(point.run));
    const drawn = points.filter((point) => isNumber(point.values[x]) && isNumber(point.values[y]));
    const best = onFrontier(drawn, x, y);
    const colour = (point) => (point.run === null ? cssColour("--muted") : runColour(point.run));
    const hover = (point) => [
      `<b>${plotText(point.label)}</b>${best.includes(point) ? " (frontier)" : ""}`,
      ...[y, x].map((metric) => `${plotText(pointLabel(metric))}: ${withError(point, metric)}`),
      ...(point.is_reference ? ["the reference itself: its KL is 0 by definition"] : []),
      ...(point.run === null ? [] : Object.entries(values.runs[point.run].differs).slice(0, 12).map(([name, value]) => plotText(`${name}: ${value}`.slice(0, 80)))),
      plotText(point.note), ...(point.has_bounds ? ["KLs are lower bounds (tier topk)"] : []),
    ].join("<br>");
    const groups = grouped(drawn, x, y);
    const line = groups.flatMap((group, place) => [
      ...(place ? [{ values: { [x]: null, [y]: null } }] : []),  // a gap: no line joins two groups
      ...best.filter((point) => group.includes(point)).sort((a, b) => a.values[x] - b.values[x]),
    ]);
    Plotly.react("frontier-chart", [
      { x: line.map((point) => point.values[x]), y: line.map((point) => point.values[y]), mode: "lines", hoverinfo: "skip", line: { color: cssColour("--strong-line"), width: 1.5, dash: "dot" } },
      {
        x: drawn.map((point) => point.values[x]), y: drawn.map((point) => point.values[y]), mode: "markers", cliponaxis: false,
        error_x: errorBars(drawn, x), error_y: errorBars(drawn, y),
        marker: {
          size: 13, color: drawn.map((point) => (best.includes(point) ? colour(point) : cssColour("--surface"))),
          symbol: drawn.map((point) => (point.run === null ? "x" : runSymbol(point.run))), line: { width: 2.2, color: drawn.map(colour) },
        },
        customdata: drawn.map(hover), hovertemplate: "%{customdata}<extra></extra>",
      },
    ], framed(layout(axisTitle(x, "\u2190", "\u2192"), axisTitle(y, "\u2193", "\u2191")), drawn, x, y), PLOTLY);
    named = [...drawn].sort((a, b) => best.includes(b) - best.includes(a)).slice(0, MAX_NAMED)
      .map((point) => ({ x: point.values[x], y: point.values[y], errorX: point.errors?.[x] ?? 0, errorY: point.errors?.[y] ?? 0, text: pointName(point) }));
    nameData($("frontier-chart"), named);
    const without = points.filter((point) => !drawn.includes(point));
    fill(missing,
      groups.length > 1 ? note(`Measured in different ways, so not ranked against each other: ${visible(groups.map((group) => `${group.map((point) => point.label).join(", ")} (${differingConditions(drawn, x, y)(group[0])})`).join("; "))}.`) : null,
      without.length ? note(`Not drawn, not measured both ways: ${visible(without.map((point) => point.label).join(", "))}.`) : null,
      /kl/i.test(x) || state.source === "evaluations" ? null : note("No KL is measured here: ", command("offpref score STORE ... --tier hidden"), ", then ", command("offpref train STORE ... --kl-metrics"), "."));
    const rows = [...drawn].sort((a, b) => a.values[x] - b.values[x]);
    fill(table, figures(["Run", pointLabel(x), pointLabel(y), "Frontier", "Measured on"], rows.map((point) => [
      point.run === null ? visible(point.label) : runName(point.run), withError(point, x), withError(point, y),
      best.includes(point) ? "yes" : NONE, visible(point.note),
    ]), [1, 2], "Figures of the frontier"));
  }
  drawers.push(draw);
  themeListeners.push(draw);
  choose();
  draw();
  // Another size, or a stretch that a reader zoomed to, has other places for names.
  $("frontier-chart").on("plotly_relayout", (change) => { if (!("annotations" in change)) nameData($("frontier-chart"), named); });
}

function withError(point, metric) {
  const value = short(point.values[metric]), error = point.errors?.[metric];
  return error ? `${value} \u00b1 ${Number(error.toPrecision(2))}` : value;
}

function axisTitle(metric, less, more) {
  return `${plotText(pointLabel(metric))}, better ${isLessBetter(metric) ? less : more}`;
}

// Room around the points and their errors for names.
function framed(found, points, x, y) {
  for (const [axis, metric, share] of [["xaxis", x, 0.14], ["yaxis", y, 0.18]]) {
    const ends = (point) => [-1, 1].map((sign) => point.values[metric] + sign * (point.errors?.[metric] ?? 0));
    const numbers = points.flatMap(ends);
    if (!numbers.length) continue;
    const low = Math.min(...numbers), high = Math.max(...numbers);
    const room = (high - low || Math.abs(high) || 1) * share;
    found[axis].range = [low - room, high + room];
  }
  return found;
}
