// A page that is written again while runs go on tells its age, and loads itself anew from disk. What a
// reader has chosen, opened and scrolled to stays: it is kept in the history of the tab.

const controlKey = (control) => [control.closest("section")?.id, control.closest("label, fieldset")?.innerText, control.id, control.dataset.run, control.name, control.value].map((part, place) =>
  (place === 5 && control.type !== "radio" ? "" : part ?? "")).join("|").replace(/\n[^|]*/, "");

const keptControls = () => [...document.querySelectorAll("main select, main input")];
const detailsKey = (each, place) => `${each.closest("section")?.id}|${place}`;

function keptState() {
  const details = [...document.querySelectorAll("main details")];
  return {
    scroll: [scrollX, scrollY],
    controls: keptControls().map((each) => [controlKey(each), /radio|checkbox/.test(each.type) ? each.checked : each.value]),
    details: details.map((each, place) => [detailsKey(each, place), each.open]),
    runs: { sort: runsState.sort, isDescending: runsState.isDescending, hasAllSettings: runsState.hasAllSettings, open: [...runsState.open].map((run) => values.runs[run].id) },
    pairs: { sort: pairsState.sort, isDescending: pairsState.isDescending, page: pairsState.page, pair: table && pairsState.pair !== null ? table.pairs.pair_key[pairsState.pair] : null },
    pairView: { view: pairState.view, wanted: pairState.wanted },
    focus: document.activeElement?.id || null,
    isPaused,
  };
}

async function restore(state) {
  const places = new Map(values.runs.map((run, place) => [run.id, place]));
  if (state.runs.hasAllSettings) $("more-settings")?.click();
  Object.assign(runsState, { sort: state.runs.sort, isDescending: state.runs.isDescending, open: new Set(state.runs.open.filter((id) => places.has(id)).map((id) => places.get(id))) });
  if (NUM_RUNS) drawRunTable();
  Object.assign(pairState, state.pairView);
  for (const [key, value] of state.controls) {
    const found = keptControls().find((each) => controlKey(each) === key);
    if (!found || found.type === "radio") continue;
    const isBox = found.type === "checkbox";
    if ((isBox ? found.checked : found.value) === value) continue;
    if (!isBox && found.options && ![...found.options].some((option) => option.value === value)) continue;
    if (isBox) found.checked = value; else found.value = value;
    found.dispatchEvent(new Event(found.type === "search" ? "input" : "change"));
  }
  const pair = table && state.pairs.pair !== null ? table.pairs.pair_key.indexOf(state.pairs.pair) : -1;
  if (table) {
    Object.assign(pairsState, { sort: state.pairs.sort, isDescending: state.pairs.isDescending });
    drawTable();
    pairsState.page = Math.min(state.pairs.page, Math.max(0, Math.ceil(pairsState.order.length / ROWS_PER_PAGE) - 1));
    drawPage();
    if (pair >= 0) await select(pair);
  }
  const open = new Map(state.details);
  [...document.querySelectorAll("main details")].forEach((each, place) => { each.open = open.get(detailsKey(each, place)) ?? each.open; });
  if (state.focus) $(state.focus)?.focus({ preventScroll: true });
  scrollTo({ left: state.scroll[0], top: state.scroll[1], behavior: "instant" });
}

let isPaused = false;

function age(seconds) {
  if (seconds < 90) return plural(Math.round(seconds), "second");
  if (seconds < 5400) return plural(Math.round(seconds / 60), "minute");
  return seconds < 172800 ? plural(Math.round(seconds / 3600), "hour") : plural(Math.round(seconds / 86400), "day");
}

async function startWatch() {
  const { watched } = values;
  if (!watched) return;
  const isFromFile = location.protocol === "file:";
  const text = el("span", {});
  const pause = el("button", { type: "button", class: "quiet", id: "pause", onclick: () => { isPaused = !isPaused; tell(); } });
  const loadedAt = Date.now();
  function tell() {
    const seconds = Math.max(0, (Date.now() - Date.parse(watched.written_at)) / 1000);
    text.textContent = `Written ${age(seconds)} ago. `;
    pause.textContent = isPaused ? "Reload again" : "Stop reloading";
  }
  const state = history.state?.offpref;
  isPaused = Boolean(state?.isPaused);
  fill($("watched"), text, ...(isFromFile ? [pause] : []));
  $("watched").hidden = false;
  tell();
  if (state) await restore(state); // last, for it scrolls
  setInterval(() => {
    tell();
    // Not under a reader's hands: while a text is typed or selected, or nobody looks.
    const isBusy = isPaused || document.hidden || document.activeElement?.type === "search" || String(getSelection()) !== "";
    if (!isFromFile || isBusy || Date.now() - loadedAt < watched.interval_seconds * 1000) return;
    history.scrollRestoration = "manual";
    history.replaceState({ offpref: keptState() }, "");
    location.reload();
  }, 1000);
}
