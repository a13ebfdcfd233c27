// The queue: c claims the selected row; one filter is open at a time.
const form = document.querySelector("[data-claim-form]");

if (form) {
  form.hidden = false;
  form.addEventListener("submit", (event) => {
    const row = document.querySelector("[data-keys=list] tr[aria-selected=true]") ?? document.querySelector("[data-keys=list] tr[data-claim-url]");
    if (!row) return void event.preventDefault();
    form.action = row.dataset.claimUrl;
  });
}

for (const details of document.querySelectorAll("details.filter")) {
  details.addEventListener("toggle", () => {
    if (!details.open) return;
    for (const other of document.querySelectorAll("details.filter[open]")) if (other !== details) other.open = false;
    details.querySelector("input:not([type=hidden])")?.focus();
  });
}

document.addEventListener("click", (event) => {
  for (const open of document.querySelectorAll("details.filter[open]")) if (!open.contains(event.target)) open.open = false;
});
