// Completions token by token: each coloured by one measure, with all measures on hover and focus.

const TOKEN_MEASURES = {
  logratios: { label: "Log-ratio", title: "log-prob of the policy minus the reference's, nats", diverges: true },
  forward_kl: { label: "KL", title: "KL from the reference to the policy at this place, nats" },
  entropy: { label: "Entropy", title: "entropy of the policy at this place, nats" },
  logps: { label: "Log-prob", title: "log-prob, nats; the less likely, the stronger the colour" },
};
const STRONGEST = 0.55; // of a colour behind a text: still legible in both themes

const UNCOUNTED = "does not count: left out by the run's mask";

let vocabulary = [];

// The arrays that a source (a run's number, or "reference 0") has of a side's tokens.
function arraysOf(side, source) {
  if (typeof source === "string") {
    const own = side.references[source.split(" ")[1]];
    return own ? { logps: own.logps } : null;
  }
  const run = side.runs[source];
  if (!run) return null;
  const reference = side.references[values.run_reference[source]]?.logps || null;
  const logps = run.logps || run.logratios.map((ratio, place) => (ratio === null || reference[place] === null ? null : ratio + reference[place]));
  const uncounted = run.counted ? uncountedOf(side.ids.length, run.counted) : null;
  return { uncounted, logps, reference, logratios: run.logratios || null, forward_kl: run.forward_kl || null, entropy: run.entropy || null, step: run.step, split: run.split, kl_source: run.kl_source };
}

// Of each token whether the run's mask leaves it out, given the stretches that count.
function uncountedOf(length, stretches) {
  const uncounted = new Array(length).fill(true);
  for (const [first, end] of stretches) uncounted.fill(false, first, end);
  return uncounted;
}

const measuresIn = (found) => Object.keys(TOKEN_MEASURES).filter((name) => found.some((arrays) => arrays && arrays[name]));

// How strong a value is, before it is placed on the scale.
const strength = (measure, value) => (measure === "logps" ? -value : value);

// The colours' range: the 98th percentile, so that one odd token does not pale the others.
function scaleOf(measure, found) {
  const sizes = found.flatMap((arrays) => ((arrays && arrays[measure]) || []).filter((value, place) => value !== null && !arrays.uncounted?.[place]))
    .map((value) => Math.abs(strength(measure, value))).sort((a, b) => a - b);
  if (!sizes.length) return 1;
  return sizes[Math.min(sizes.length - 1, Math.floor(sizes.length * 0.98))] || sizes.at(-1) || 1;
}

function shade(measure, value, scale) {
  if (value === null) return "transparent";
  const size = strength(measure, value) / scale;
  const alpha = (Math.min(Math.abs(size), 1) * STRONGEST).toFixed(3);
  return `rgba(var(${size < 0 ? "--low" : "--high"}), ${alpha})`;
}

function legendOf(measure, scale, hasMask) {
  const { diverges, label } = TOKEN_MEASURES[measure];
  const ramp = el("span", { class: "ramp", "aria-hidden": "true" });
  const end = `rgba(var(--high), ${STRONGEST})`;
  ramp.style.background = diverges ? `linear-gradient(90deg, rgba(var(--low), ${STRONGEST}), transparent, ${end})` : `linear-gradient(90deg, transparent, ${end})`;
  const ends = measure === "logps" ? ["0", `${short(-scale)} or less`] : diverges ? [`${short(-scale)} or less`, `${short(scale)} or more`] : ["0", `${short(scale)} or more`];
  return el("div", { class: "legend" }, el("span", {}, `${label} (nats)`), el("span", {}, ends[0]), ramp, el("span", {}, ends[1]),
    hasMask ? el("span", {}, el("span", { class: "token uncounted" }, "grey"), ` ${UNCOUNTED}`) : "");
}

// What each token shows. A token may be a part of a character: it shows its bytes, and the one
// that completes the character shows it. Where the text is known, the space that a tokenizer
// leaves out between tokens comes from there.
function tokenTexts(ids, text) {
  const decoder = new TextDecoder("utf-8");
  let at = 0;
  return ids.map((id) => {
    const [latin, isSpecial] = vocabulary[id];
    if (isSpecial) return { mark: visible(latin) };
    const content = Uint8Array.from(latin, (character) => character.charCodeAt(0));
    const decoded = decoder.decode(content, { stream: true });
    if (!decoded) return { mark: [...content].map((byte) => byte.toString(16).padStart(2, "0")).join(" ") || "empty", isPart: true };
    if (text === null) return { text: decoded };
    const gap = /^\s*/.exec(text.slice(at, at + 80))[0];
    const lead = text.startsWith(decoded, at) ? "" : gap;
    if (!text.startsWith(decoded, at + lead.length)) { text = null; return { text: decoded }; }
    at += lead.length + decoded.length;
    return { text: lead + decoded };
  });
}

// `told` are the arrays that the tip shows, where they are not those that colour the tokens.
function tokenText(side, text, arrays, measure, scale, label, told = arrays) {
  const box = el("div", { class: "text", role: "group", "aria-label": `${label}, token by token; arrows move` });
  const texts = tokenTexts(side.ids, text);
  texts.forEach((shown, place) => {
    const isUncounted = arrays.uncounted?.[place];
    const token = el("span", { class: isUncounted ? "token uncounted" : "token", title: isUncounted ? UNCOUNTED : null, tabindex: place ? "-1" : "0", "data-place": place });
    if (shown.mark !== undefined) token.append(el("span", { class: "mark", title: shown.isPart ? "bytes of a character that the next tokens complete" : null }, shown.mark));
    else token.append(visible(shown.text).replace(/\n/g, "\u21b5\n"));
    if (!isUncounted) token.style.background = measure && arrays[measure] ? shade(measure, arrays[measure][place], scale) : "transparent";
    box.append(token);
  });
  if (side.num_cut) box.append(el("span", { class: "muted" }, ` \u2026 ${plural(side.num_cut, "more token")}`));
  const tell = (event) => {
    const token = event.target.closest?.(".token");
    if (token) showTip(token, texts[token.dataset.place], side, told, Number(token.dataset.place));
  };
  box.addEventListener("mouseover", tell);
  box.addEventListener("focusin", tell);
  box.addEventListener("mouseout", hideTip);
  box.addEventListener("focusout", hideTip);
  box.addEventListener("keydown", moveToken);
  return box;
}

function moveToken(event) {
  const token = event.target.closest(".token");
  const all = [...event.currentTarget.querySelectorAll(".token")];
  const place = all.indexOf(token);
  const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined || !all[to]) return;
  event.preventDefault();
  token.tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
}

function showTip(token, shown, side, arrays, place) {
  const tip = $("tip");
  const [latin, isSpecial] = vocabulary[side.ids[place]];
  const rows = [
    ["Log-ratio", arrays.logratios], ["Log-prob, policy", typeof arrays.step === "number" ? arrays.logps : null],
    ["Log-prob, reference", typeof arrays.step === "number" ? arrays.reference : arrays.logps],
    [arrays.kl_source === "topk-bound" ? "KL, lower bound" : "KL", arrays.forward_kl], ["Entropy", arrays.entropy],
  ].filter(([, numbers]) => numbers);
  const head = shown.mark !== undefined ? shown.mark : JSON.stringify(visible(shown.text));
  fill(tip,
    el("div", { class: "head" }, `${head}${isSpecial ? " special token" : shown.isPart ? " part of a character" : ""}`),
    el("dl", {}, rows.flatMap(([name, numbers]) => [el("dt", {}, name), el("dd", {}, short(numbers[place]))])),
    arrays.uncounted?.[place] ? el("div", {}, UNCOUNTED) : "",
    el("div", {}, `token ${place + 1} of ${side.ids.length + side.num_cut}`));
  tip.hidden = false;
  token.setAttribute("aria-describedby", "tip");
  const spot = token.getClientRects()[0], size = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(spot.left, innerWidth - size.width - 8))}px`;
  tip.style.top = `${spot.top > size.height + 12 ? spot.top - size.height - 8 : spot.bottom + 8}px`;
}

function hideTip() {
  $("tip").hidden = true;
}
