// A run's page: draws the charts, keeps them and the log fresh while the run is open. The page works without it.
import uPlot from "../vendor/uplot/uPlot.esm.js";

const HEIGHT = 132;
const COLOURS = { loss: ["--accent"], lr: ["--muted"] };
const SERIES = ["--accent", "--risk-3", "--good", "--muted", "--risk-2", "--risk-4"]; // as .training-c1 … .training-c6
const panels = document.getElementById("run-charts");
const log = document.getElementById("run-log");
const plots = new Map();
let known = [];

const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const short = (value) => (value === 0 ? "0" : Math.abs(value) < 0.001 || Math.abs(value) >= 1e5 ? value.toExponential(1) : String(+value.toPrecision(3)));

function options(chart, width) {
  const axis = { stroke: token("--muted"), grid: { stroke: token("--line"), width: 1 }, ticks: { show: false }, font: `11px ${token("--font-text")}` };
  const colours = COLOURS[chart.key] ?? SERIES;
  return {
    width,
    height: HEIGHT,
    padding: [6, 16, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { time: false } },
    axes: [{ ...axis, size: 22, space: 60 }, { ...axis, size: 44, space: 32, values: (_plot, ticks) => ticks.map(short) }],
    series: [{}, ...chart.names.map((name, i) => ({ label: name, stroke: token(colours[i % colours.length]), width: 1.8, spanGaps: true, points: { show: chart.steps.length < 3, size: 7, fill: token(colours[i % colours.length]) } }))],
  };
}

function draw(chart) {
  const panel = panels.querySelector(`[data-chart="${chart.key}"]`);
  if (!panel) return;
  tell(panel, chart);
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

function tell(panel, chart) {
  const many = chart.names.length > 1;
  panel.querySelector("[data-latest]").textContent = many ? "" : chart.latest || "–";
  panel.querySelector("[data-legend]").replaceChildren(...(many ? chart.names : []).map((name, i) => {
    const last = chart.series[i].findLast((value) => value !== null);
    const item = Object.assign(document.createElement("li"), { className: `training-c${(i % SERIES.length) + 1}`, textContent: `${name} ` });
    item.append(Object.assign(document.createElement("span"), { className: "num", textContent: last === undefined ? "–" : String(+last.toPrecision(3)) }));
    return item;
  }));
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
