// Keeps relative times true while the page stays open: every <time data-live> younger than a day. Same words as `when` and `ago` of the template tags.
const EVERY_MS = 15_000;
const DAY_S = 86_400;

export function start() {
  setInterval(() => document.querySelectorAll("time[data-live]").forEach(refresh), EVERY_MS);
}

function refresh(el) {
  const seconds = (Date.now() - Date.parse(el.dateTime)) / 1000;
  if (Math.abs(seconds) < DAY_S) el.textContent = (seconds < -1 ? "in " : "") + span(Math.abs(seconds)) + el.dataset.live;
}

function span(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h`;
}
