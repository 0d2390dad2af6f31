// Start: what needs no unpacking first, then charts and pairs. Trouble is shown, never a blank page.

function showTrouble(error) {
  const line = $("trouble");
  line.textContent = `The page could not be drawn: ${error.message}.`;
  line.hidden = false;
  document.documentElement.dataset.state = "failed";
  console.error(error);
}

async function start() {
  startTheme();
  startRuns();
  startKeys();
  const [charts, pairs, tokens] = await Promise.all([blockValues("charts"), blockValues("pairs"), blockValues("vocabulary")]);
  vocabulary = tokens;
  startPairs(pairs);
  await loadPlotly();
  startFrontier(charts.frontiers);
  startCurves(charts.curves);
  startDistributions(charts.distributions);
  await startWatch();
  document.documentElement.dataset.state = "ready";
}

start().catch(showTrouble);
