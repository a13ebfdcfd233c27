// The report's editor: autosave, regions on the image, confirm, cut, add, sign. The form works without it.
const AUTOSAVE_MS = 2500;
const viewer = document.getElementById("viewer");
const form = document.querySelector("[data-editor]");
let timer = 0;
let saving = null;
let dirty = false;
let stuck = false;

document.querySelectorAll("[data-region], [data-add], [data-cut]").forEach((item) => (item.hidden = false));
document.addEventListener("click", (event) => {
  const region = event.target.closest("[data-region]");
  if (region) toggleRegion(region);
});

function toggleRegion(button) {
  const row = button.closest(".s, .line");
  const on = row.classList.contains("on");
  document.querySelectorAll(".report .on").forEach((item) => item.classList.remove("on"));
  if (on) return viewer.clearBox();
  row.classList.add("on");
  viewer.box(button.dataset.image, button.dataset.region.split(",").map(Number), button.dataset.label.trim());
}

if (form) start();

function start() {
  form.querySelector("[data-save]").hidden = true;
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => (event.preventDefault(), save()));
  form.addEventListener("click", onClick);
  form.addEventListener("keydown", onEnter);
  document.querySelector("[data-sign]").addEventListener("click", openSign);
  document.querySelector("[data-sign-form]").addEventListener("submit", sign);
  addEventListener("beforeunload", (event) => dirty && event.preventDefault());
  document.addEventListener("visibilitychange", () => document.hidden && dirty && save());
  count();
}

function changed(event) {
  const row = event.target.closest("[data-sentence]");
  if (event.target.matches("textarea, [name=confirmed]") && row?.classList.contains("weak")) row.classList.remove("weak");
  dirty = true;
  say("Typing");
  count();
  if (!timer) timer = setTimeout(save, AUTOSAVE_MS);
}

function onClick(event) {
  const add = event.target.closest("[data-add]");
  const cut = event.target.closest("[data-cut]");
  if (add) addSentence(add.dataset.add);
  if (!cut) return;
  cut.closest("[data-sentence]").remove();
  changed({ target: form });
}

// Enter begins a new sentence; the others of the keys are the page's.
function onEnter(event) {
  if (event.key !== "Enter" || event.ctrlKey || event.shiftKey || !event.target.matches("textarea")) return;
  event.preventDefault();
  const row = event.target.closest("[data-sentence]");
  addSentence(row.parentElement.dataset.section, row);
}

function addSentence(section, after) {
  const row = form.querySelector("[data-blank]").content.firstElementChild.cloneNode(true);
  row.querySelector("[name=section]").value = section;
  row.querySelectorAll("[data-cut]").forEach((item) => (item.hidden = false));
  if (after) after.after(row);
  else form.querySelector(`[data-section=${section}]`).append(row);
  row.querySelector("textarea").focus();
}

async function save() {
  clearTimeout(timer);
  timer = 0;
  if (saving) await saving;
  if (!dirty || stuck) return;
  saving = write();
  await saving;
  saving = null;
}

async function write() {
  dirty = false;
  const body = new FormData(form);
  const rows = [...form.querySelectorAll("[data-sentence]")].map((row) => [row, row.querySelector("textarea").value.trim()]);
  say("Saving");
  try {
    const answer = await fetch(form.action, { method: "POST", body, headers: { Accept: "application/json" }, credentials: "same-origin" });
    if (answer.redirected) throw new Error("you are signed out");
    const said = await answer.json();
    if (!answer.ok) return refuse(said);
    taken(said, rows.filter(([, text]) => text).map(([row]) => row));
  } catch (error) {
    dirty = true;
    timer = setTimeout(save, AUTOSAVE_MS);
    say(`Not saved: ${error.message}. Trying again`);
  }
}

// Each sentence gets the place that it has in the saved version, so that the next save finds it again.
function taken(said, rows) {
  document.querySelectorAll("[name=version]").forEach((field) => (field.value = said.version));
  rows.forEach((row, index) => {
    if (!row.isConnected) return;
    row.querySelector("[name=source]").value = index;
    const mark = row.querySelector("[name=confirmed]");
    if (mark) mark.value = index;
  });
  say(`Saved ${new Date().toLocaleTimeString()}, version ${said.version}`);
}

function refuse(said) {
  stuck = true;
  dirty = true;
  say(said.message);
  form.querySelector("[data-saved]").className = "note bad";
}

function count() {
  const asks = form.querySelectorAll(".s.weak").length;
  form.querySelector("[data-asks]").hidden = !asks;
  form.querySelector("[data-count]").textContent = asks;
}

function say(words) {
  form.querySelector("[data-saved]").textContent = words;
}

function openSign(event) {
  event.preventDefault();
  const box = document.getElementById("sign");
  box.open = true;
  box.scrollIntoView({ block: "nearest" });
  box.querySelector("[type=password]").focus();
}

async function sign(event) {
  event.preventDefault();
  await save();
  if (stuck || dirty) return;
  event.target.submit();
}
