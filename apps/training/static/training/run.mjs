// A run's page: draws the charts, keeps them and the log fresh while the run is open. The page works without it.
import uPlot from "../vendor/uplot/uPlot.esm.js";

const HEIGHT = 132;
const COLOURS = { loss: ["--accent"], align: ["--accent", "--risk-3", "--good"], validation: ["--good", "--accent", "--risk-3", "--muted"], lr: ["--muted"] };
const panels = document.getElementById("run-charts");
const log = document.getElementById("run-log");
const plots = new Map();
let known = [];

const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const short = (value) => (value === 0 ? "0" : Math.abs(value) < 0.001 || Math.abs(value) >= 1e5 ? value.toExponential(1) : String(+value.toPrecision(3)));

function options(chart, width) {
  const axis = { stroke: token("--muted"), grid: { stroke: token("--line"), width: 1 }, ticks: { show: false }, font: `11px ${token("--font-text")}` };
  const colours = COLOURS[chart.key] ?? ["--accent"];
  return {
    width,
    height: HEIGHT,
    padding: [6, 16, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { time: false } },
    axes: [{ ...axis, size: 22, space: 60 }, { ...axis, size: 44, space: 32, values: (_plot, ticks) => ticks.map(short) }],
    series: [{}, ...chart.names.map((name, i) => ({ label: name, stroke: token(colours[i % colours.length]), width: 1.8, spanGaps: true, points: { show: chart.steps.length < 3, size: 6 } }))],
  };
}

function draw(chart) {
  const panel = panels.querySelector(`[data-chart="${chart.key}"]`);
  if (!panel) return;
  panel.querySelector("[data-latest]").textContent = chart.latest || "–";
  const box = panel.querySelector(".training-plot");
  const rows = [chart.steps, ...chart.series];
  const shape = `${chart.names.join()}|${chart.steps.length < 3}`;
  const old = plots.get(chart.key);
  if (old && old.shape === shape) return old.plot.setData(rows);
  old?.plot.destroy();
  plots.delete(chart.key);
  if (!chart.steps.length) return;
  plots.set(chart.key, { shape, plot: new uPlot(options(chart, box.clientWidth), rows, box) });
}

async function load() {
  const answer = await fetch(panels.dataset.url, { headers: { Accept: "application/json" } });
  if (!answer.ok) return;
  known = (await answer.json()).charts;
  known.forEach(draw);
}

function redraw() {
  plots.forEach(({ plot }) => plot.destroy());
  plots.clear();
  known.forEach(draw);
}

function refreshLog() {
  const fresh = document.getElementById("run-log-new");
  if (!fresh || !log) return;
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
  log.replaceChildren(fresh.content.cloneNode(true));
  if (follows) log.scrollTop = log.scrollHeight;
}

if (log) log.scrollTop = log.scrollHeight;
load();
document.body.addEventListener("htmx:afterSwap", () => {
  refreshLog();
  load();
});
document.addEventListener("assay:theme", redraw);
new ResizeObserver(() => plots.forEach(({ plot }, key) => {
  const width = panels.querySelector(`[data-chart="${key}"] .training-plot`).clientWidth;
  if (width && width !== plot.width) plot.setSize({ width, height: HEIGHT });
})).observe(panels);
