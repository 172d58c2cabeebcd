// Keyboard, help, and what to say when the network fails. htmx sends the forms; without this file they still work.
"use strict";
(() => {
  const work = () => document.getElementById("work");
  const help = () => document.getElementById("help");
  const reason = () => document.getElementById("rationale");
  const status = (text) => { document.getElementById("status").textContent = text; };
  let pending = null; // the choice that waits for its reason

  const trouble = (text) => {
    const box = document.getElementById("trouble");
    box.firstElementChild.textContent = text;
    box.hidden = !text;
  };

  const press = (key) => work().querySelector(`[data-key="${key}"]:not([disabled])`);

  const needsReason = (choice) =>
    reason() && !reason().value.trim() &&
    (choice === "both_bad" || work().querySelector(".flags input:checked") !== null);

  const askForReason = (button) => {
    pending = button;
    work().querySelectorAll(".choice").forEach((one) => one.classList.toggle("waiting", one === button));
    work().querySelector("details.more").open = true;
    reason().focus();
    status("Say why, then press Enter.");
    trouble(button.value === "both_bad" ? "Say in a few words why both are bad." : "Say in a few words what is unsafe.");
  };

  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-open]");
    if (opener) { document.getElementById(opener.dataset.open).showModal(); return; }
    const button = event.target.closest(".choice");
    if (button && needsReason(button.value)) { event.preventDefault(); event.stopImmediatePropagation(); askForReason(button); }
  }, true);

  const inReason = (event) => {
    if (event.key === "Escape") { event.target.blur(); work().focus(); return; }
    if (event.key === "Enter" && !event.shiftKey && pending && event.target === reason() && !event.isComposing) {
      event.preventDefault();
      pending.click();
    }
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help().open) return;
    if (event.target.matches("textarea, input[type=text]")) { inReason(event); return; }
    const key = event.key.toLowerCase();
    if (key === "?") { event.preventDefault(); help().showModal(); return; }
    if (event.repeat) return;
    if (key === "enter" && event.target.matches("button, a, summary")) return;
    if (key === "r" && reason()) {
      event.preventDefault();
      work().querySelector("details.more").open = true;
      reason().focus();
      return;
    }
    const button = press(key);
    if (button) { event.preventDefault(); button.click(); }
  });

  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target.id !== "work") return;
    pending = null;
    trouble("");
    status(work().dataset.said || "");
    const first = work().querySelector("[autofocus]") || work();
    first.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  });

  document.addEventListener("htmx:sendError", () => trouble("No connection: nothing was stored. Try again."));
  document.addEventListener("htmx:responseError", () => trouble("The service failed: nothing was stored. Try again."));
})();
