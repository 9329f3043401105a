{
  // Links to a point open it; commands can be copied.
  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    if (target.tagName === "DETAILS") target.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", open);
  for (const id of page.kept.open ?? []) {
    const details = document.getElementById(id);
    if (details) details.open = true;
  }
  for (const details of page.all("details[id]"))
    details.addEventListener("toggle", () => page.keep("open", page.all("details[id][open]").map((one) => one.id)));
  if (!page.kept.open) open();

  for (const button of page.all("[data-layers]")) {
    button.hidden = !page.hasLayers(button.dataset.layers);
    button.addEventListener("click", () => {
      page.showLayers(button.dataset.layers);
      page.one("#layer-table").scrollIntoView({ block: "center" });
      page.one("#layer-table").focus();
    });
  }
  if (navigator.clipboard)
    for (const button of page.all(".copy")) {
      button.hidden = false;
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(page.one("code", button.parentElement).textContent);
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy"), 1500);
      });
    }
}
