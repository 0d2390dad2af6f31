// One pair: its prompt, and both completions side by side.

const pairState = { pair: null, measure: null, view: "colour" };

function sideFacts(side, row, arrays) {
  const facts = [];
  const add = (name, value, decimals) => { if (isNumber(value)) facts.push(el("span", {}, `${name} `, el("b", {}, fixed(value, decimals)))); };
  const of = (name) => row[name.replace("*", side)];
  add("reward", of("*_rewards"), 3);
  add("log-prob", of("policy_*_logps"), 2);
  add("reference", of("ref_*_logps"), 2);
  if (isNumber(of("policy_*_logps")) && isNumber(of("ref_*_logps"))) add("log-ratio", of("policy_*_logps") - of("ref_*_logps"), 3);
  add("forward KL", of("*_forward_kl"), 3);
  add("reverse KL", of("*_reverse_kl"), 3);
  add("log-prob", row[`sum_${side}`], 2);
  const tokens = table.pairs[`${side}_tokens`][pairState.pair];
  facts.push(el("span", {}, el("b", {}, count(tokens)), tokens === 1 ? " token" : " tokens"));
  if (table.pairs[`${side}_eos_lost`][pairState.pair]) facts.push(el("span", {}, "end cut off"));
  if (arrays && isNumber(arrays.step)) facts.push(el("span", {}, `tokens as of step ${count(arrays.step)}`));
  return el("div", { class: "facts" }, facts);
}

function plainText(name) {
  const place = table[name][pairState.pair];
  if (place === null) return null;
  const cut = table[`${name}_cut`][pairState.pair];
  const left = cut ? `${plural(cut, "character")} left out` : null;
  return { text: visible(table.texts[place]), left, raw: table.texts[place] };
}

function sideBox(side, tokens, source, row, measure, scale) {
  const label = side === "chosen" ? "Chosen" : "Rejected";
  const found = tokens && tokens[side];
  const arrays = found ? arraysOf(found, source) : null;
  const text = plainText(side);
  const box = el("article", { class: "side", "data-side": side }, el("h3", {}, label));
  if (text === null) {
    box.append(el("p", { class: "muted" }, `Unpaired: this row has no ${side} completion.`));
    return box;
  }
  box.append(sideFacts(side, row, arrays));
  if (arrays) box.append(tokenText(found, text.raw, arrays, measure, scale, `${label} completion`));
  else box.append(el("div", { class: "text plain", dir: "auto" }, text.text), text.left ? el("p", { class: "muted" }, `\u2026 ${text.left}`) : "");
  return box;
}

function measureChoice(measures, redraw) {
  return el("fieldset", { class: "segments" }, el("legend", {}, "Colour by"),
    el("div", { class: "row" }, Object.entries(TOKEN_MEASURES).map(([name, { label, title }]) =>
      el("label", { title }, el("input", {
        type: "radio", name: "measure", value: name, checked: name === pairState.measure, disabled: !measures.includes(name),
        onchange: () => { pairState.wanted = name; redraw(name); },
      }), label))));
}

function whyNoTokens(source) {
  if (values.tokens.num_left_out && table.pairs.has_tokens[pairState.pair]) return note("Token values of this pair were left out, to keep the page under 10 MB.");
  if (typeof source === "string") return note("No token values of this pair: ", command("offpref score STORE --pair-set NAME --model DIR"), " writes the reference's.");
  return note("No token values of this pair in this run: ", command("offpref train ... --log-tokens all"), " keeps them, ", command("--log-tokens eval"), " those of held-out pairs.");
}

// Draw the pair; only the last one requested is shown, however long its tokens take to unpack.
async function drawPair(pair, source) {
  pairState.pair = pair;
  const tokens = await tokensOfPair(pair);
  if (pairState.pair !== pair) return;
  const body = $("pair");
  const row = rowOf(pair, source);
  const found = tokens ? Object.values(tokens).map((side) => arraysOf(side, source)) : [];
  const measures = measuresIn(found);
  pairState.measure = measures.includes(pairState.wanted) ? pairState.wanted : measures[0] || null;
  const prompt = plainText("prompt");
  const redraw = async (name) => {
    await drawPair(pair, source);
    body.querySelector(`input[value="${name}"]`)?.focus();
  };
  hideTip();
  const runs = changedRuns(tokens);
  const isChange = pairState.view === "change" && runs.length > 0;
  const shown = isChange ? changeView(tokens, source, runs) : colourView(tokens, source, row, found, measures, redraw);
  fill(body,
    el("div", { class: "pair-head" }, el("div", {}, el("h3", { id: "pair-title" }, `Pair ${table.pairs.pair_key[pair].slice(0, 8)}`), pairMeta(pair, row)),
      el("div", { class: "steps" },
        el("button", { type: "button", class: "quiet", id: "previous", onclick: () => step(-1) }, "\u2190 Previous"),
        el("button", { type: "button", class: "quiet", id: "next", onclick: () => step(1) }, "Next \u2192"))),
    el("p", { class: "label" }, "Prompt"),
    el("div", { class: "prompt", dir: "auto", tabindex: "0", role: "region", "aria-label": "Prompt" }, prompt === null ? NONE : (prompt.left ? `[${prompt.left}] \u2026` : "") + prompt.text.trim()),
    runs.length ? el("div", { class: "controls view" }, viewChoice(pair, source), isChange ? runChoice(runs, source) : null) : null,
    shown, sourceBox(pair));
}

// Redraw with another view or run, and give the control that asked for it the focus back.
async function again(pair, source, id) {
  await drawPair(pair, source);
  $(id)?.focus();
}

function viewChoice(pair, source) {
  const select = choice([["colour", "chosen and rejected"], ["change", "before and after"]], pairState.view, (view) => { pairState.view = view; again(pair, source, "pair-view"); });
  select.id = "pair-view";
  return control("Tokens", select);
}

function runChoice(runs, source) {
  const select = choice(runs.map((run) => [String(run), visible(runLabel(run))]), String(runs.includes(source) ? source : runs[0]), (run) => {
    chooseSource(Number(run)).then(() => $("pair-run")?.focus());
  });
  select.id = "pair-run";
  return control("After training by", select);
}

function changeView(tokens, source, runs) {
  return el("div", { class: "sides whole" }, changeBoxes(tokens, runs.includes(source) ? source : runs[0]));
}

function colourView(tokens, source, row, found, measures, redraw) {
  const measure = pairState.measure;
  const scale = measure ? scaleOf(measure, found) : 1;
  return [
    measures.length ? el("div", { class: "controls" }, measureChoice(measures, redraw), legendOf(measure, scale, found.some((arrays) => arrays?.uncounted))) : whyNoTokens(source),
    el("div", { class: "sides" }, ["chosen", "rejected"].map((side) => sideBox(side, tokens, source, row, measure, scale))),
  ];
}

function pairMeta(pair, row) {
  const columns = table.pairs;
  const parts = [
    `${columns.pair_set[pair]}, split ${columns.split[pair]}`,
    `row ${count(columns.source_row[pair])} of ${columns.source_file[pair]}`,
    columns.weight[pair] === 1 ? null : `weight ${short(columns.weight[pair])}`,
    isNumber(row.margin) ? `reward margin ${fixed(row.margin, 3)}` : null,
    isNumber(row.loss) ? `loss ${fixed(row.loss, 3)}` : null,
  ];
  return el("div", { class: "meta" }, visible(parts.filter(Boolean).join(" \u00b7 ")));
}

function sourceBox(pair) {
  const source = table.pairs.source[pair];
  const key = `pair_key ${table.pairs.pair_key[pair]}`;
  return el("details", { class: "source" }, el("summary", {}, "Key and other columns of the source"), el("pre", { tabindex: "0" }, source ? `${key}\n${visible(source)}` : key));
}
