// The alert page: a verdict without a chosen reason takes its own first; a half-typed note is not lost by leaving.
const form = document.getElementById("verdict");

if (form) {
  const reason = form.elements.reason_code;
  document.addEventListener("submit", (event) => {
    if (event.target !== form) return;
    const verdict = event.submitter?.value;
    const fits = [...reason.options].filter((option) => option.value.startsWith(`${verdict}:`));
    if (!reason.value.startsWith(`${verdict}:`) && fits.length) reason.value = fits[0].value;
  });
  const key = `assay:note:${form.action}`;
  const note = form.elements.note;
  if (!note.value) note.value = sessionStorage.getItem(key) ?? "";
  note.addEventListener("input", () => sessionStorage.setItem(key, note.value));
  form.addEventListener("submit", () => sessionStorage.removeItem(key));
}
