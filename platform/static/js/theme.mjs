// Theme: switches at once and saves to the user; without script the same form posts and reloads.
export function listen() {
  document.querySelector("[data-theme-form]")?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    const button = form.querySelector("button[name=theme]");
    const body = new FormData(form, button);
    document.documentElement.dataset.theme = button.value;
    const next = button.value === "dark" ? "light" : "dark";
    button.value = next;
    button.textContent = next === "dark" ? "Dark theme" : "Light theme";
    document.dispatchEvent(new CustomEvent("assay:theme"));
    await fetch(form.action, { method: "POST", body, headers: { "X-Requested-With": "fetch" } });
  });
}
