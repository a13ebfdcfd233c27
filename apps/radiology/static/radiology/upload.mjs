// Sends a folder, files or a zip piece by piece, then goes to the batch's page, where results arrive file by file.
const GROUP_FILES = 8;
const GROUP_BYTES = 24 * 1024 * 1024;
const form = document.querySelector("[data-upload]");
const drop = form.querySelector("[data-drop]");
const folder = form.querySelector("[data-folder-input]");
form.querySelector("[data-folder]").hidden = false;
folder.addEventListener("change", () => send([...folder.files].map((file) => ({ file, name: file.webkitRelativePath || file.name }))));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const files = [...form.elements.files.files];
  if (files.length) send(files.map((file) => ({ file, name: file.name })));
  else say("Choose files first, or drop them here.");
});
for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => (event.preventDefault(), drop.classList.add("over")));
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
drop.addEventListener("drop", async (event) => {
  event.preventDefault();
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const found = entries.length ? (await Promise.all(entries.map(walk))).flat() : [...event.dataTransfer.files].map((file) => ({ file, name: file.name }));
  await send(found);
});

async function walk(entry) {
  if (entry.isFile) return [{ file: await new Promise((done, failed) => entry.file(done, failed)), name: entry.fullPath.slice(1) }];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const part = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!part.length) return (await Promise.all(found.map(walk))).flat();
    found.push(...part);
  }
}

function groups(files) {
  const all = [[]];
  let bytes = 0;
  for (const one of files) {
    if (all.at(-1).length && (all.at(-1).length >= GROUP_FILES || bytes + one.file.size > GROUP_BYTES)) {
      all.push([]);
      bytes = 0;
    }
    all.at(-1).push(one);
    bytes += one.file.size;
  }
  return all.filter((group) => group.length);
}

async function send(files) {
  if (!files.length) return say("There is no file in it.");
  form.querySelectorAll("button, input[type=file]").forEach((item) => (item.disabled = true));
  const bar = form.querySelector("progress");
  bar.max = files.length;
  try {
    const { page, files: address } = await post(form.dataset.create, { priority: form.elements.priority.value });
    let sent = 0;
    for (const group of groups(files)) {
      say(`Sending ${sent + 1}–${sent + group.length} of ${files.length}`);
      await post(address, {}, group);
      sent += group.length;
      bar.value = sent;
    }
    location.assign(page);
  } catch (error) {
    say(`${error.message}. What was sent before is kept; send the rest again: duplicates are recognised.`);
    form.querySelectorAll("button, input[type=file]").forEach((item) => (item.disabled = false));
  }
}

async function post(address, fields, group = []) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  for (const { file, name } of group) {
    body.append("files", file, file.name);
    body.append("name", name);
  }
  const token = form.elements.csrfmiddlewaretoken.value;
  const answer = await fetch(address, { method: "POST", body, headers: { "X-CSRFToken": token }, credentials: "same-origin" });
  if (!answer.ok || answer.redirected) throw new Error(answer.redirected ? "You are signed out" : `The server answered ${answer.status}`);
  return answer.json();
}

function say(words) {
  form.querySelector("[data-sending]").hidden = false;
  form.querySelector("[data-words]").textContent = words;
}
