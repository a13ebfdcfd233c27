// Keyboard: ? lists the page's keys, g + letter goes to a list, j k Enter Esc work in [data-keys=list], / searches.
// Any element with data-key="c" is clicked by that key; its words in the help are data-key-label or its text.
const GO_WAIT_MS = 700;
let goSince = 0;
let goTimer = 0;

export function listen() {
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-action=keys]")) showHelp();
  });
}

function onKey(event) {
  if (event.defaultPrevented || event.metaKey || event.altKey || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return;
  const typing = event.target.closest("input:not([type=checkbox],[type=radio]), textarea, select, [contenteditable=true]");
  if (event.ctrlKey) return void (event.key === "Enter" && press(event, "Ctrl+Enter"));
  if (typing) return void (event.key === "Escape" && event.target.blur());
  if (Date.now() - goSince < GO_WAIT_MS && go(event)) return;
  if (event.key === "g" && document.querySelector("[data-go]")) return waitForGo(event);
  if (event.key === "?") return act(event, showHelp);
  if (event.key === "/") return act(event, search);
  if (press(event, event.key)) return;
  inList(event);
}

function act(event, does) {
  event.preventDefault();
  does();
}

function search() {
  const box = document.querySelector("input[type=search]");
  box?.focus();
  box?.select();
}

function press(event, key) {
  const target = [...document.querySelectorAll("[data-key]")].find((el) => el.dataset.key === key && el.checkVisibility());
  if (!target || target.disabled) return false;
  act(event, () => (target.matches("input:not([type=checkbox],[type=radio],[type=submit]),textarea,select") ? target.focus() : target.click()));
  return true;
}

// A page may use plain g too (genuine): it acts when no letter of a list follows in time.
function waitForGo(event) {
  event.preventDefault();
  goSince = Date.now();
  clearTimeout(goTimer);
  const own = [...document.querySelectorAll("[data-key=g]")].find((el) => el.checkVisibility());
  if (own) goTimer = setTimeout(() => own.click(), GO_WAIT_MS);
}

function go(event) {
  const target = document.querySelector(`[data-go="${CSS.escape(event.key)}"]`);
  if (!target) return false;
  clearTimeout(goTimer);
  goSince = 0;
  act(event, () => target.click());
  return true;
}

function inList(event) {
  if (event.key === "Escape") return void goBack(event);
  const list = document.querySelector("[data-keys=list]");
  if (!list) return;
  const rows = [...list.querySelectorAll("tbody tr")].filter((row) => row.querySelector("a[href]"));
  const at = rows.findIndex((row) => row.getAttribute("aria-selected") === "true");
  if (event.key === "j" || event.key === "k") act(event, () => select(rows, at, event.key === "j" ? 1 : -1));
  else if (event.key === "Enter" && at >= 0 && !event.target.closest("a,button")) act(event, () => linkOf(rows[at]).click());
  else if (event.key === "x" && at >= 0) act(event, () => rows[at].querySelector("input[type=checkbox]")?.click());
}

function select(rows, at, by) {
  if (!rows.length) return;
  const next = Math.min(rows.length - 1, Math.max(0, at < 0 ? 0 : at + by));
  rows[at]?.removeAttribute("aria-selected");
  rows[next].setAttribute("aria-selected", "true");
  rows[next].scrollIntoView({ block: "nearest" });
  linkOf(rows[next]).focus({ preventScroll: true });
}

function linkOf(row) {
  return row.querySelector("a[data-open]") ?? row.querySelector("a[href]");
}

function goBack(event) {
  const back = document.querySelector("[data-back], .crumbs[href], .crumbs a[href]");
  if (back) act(event, () => back.click());
}

function showHelp() {
  const dialog = document.getElementById("keys");
  if (!dialog) return;
  const rows = [["?", "this help"]];
  if (document.querySelector("input[type=search]")) rows.push(["/", "search"]);
  for (const el of document.querySelectorAll("[data-key]")) if (el.checkVisibility()) rows.push([el.dataset.key, words(el)]);
  if (document.querySelector("[data-keys=list]")) rows.push(["j", "next row"], ["k", "previous row"], ["Enter", "open the row"]);
  if (document.querySelector("[data-keys=list] input[type=checkbox]")) rows.push(["x", "select the row"]);
  if (document.querySelector("[data-back], .crumbs[href], .crumbs a[href]")) rows.push(["Esc", "back to the list"]);
  for (const el of document.querySelectorAll("[data-go]")) rows.push([`g ${el.dataset.go}`, `go to ${el.firstElementChild.textContent}`]);
  for (const el of document.querySelectorAll("[data-help-key]")) rows.push([el.dataset.helpKey, el.dataset.helpText]);
  dialog.querySelector(".keylist").replaceChildren(...rows.flatMap(row));
  dialog.showModal();
}

function row([keys, text]) {
  const dt = document.createElement("dt");
  dt.append(...keys.split(" ").map((key) => Object.assign(document.createElement("kbd"), { textContent: key })));
  return [dt, Object.assign(document.createElement("dd"), { textContent: text })];
}

function words(el) {
  if (el.dataset.keyLabel) return el.dataset.keyLabel;
  const copy = el.cloneNode(true);
  copy.querySelectorAll("kbd").forEach((kbd) => kbd.remove());
  return (copy.textContent.trim() || el.getAttribute("aria-label") || el.placeholder || "").toLowerCase();
}
