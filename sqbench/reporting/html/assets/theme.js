{
  // Auto follows the system; the button goes through auto, light and dark, and the choice stays for all reports.
  const root = document.documentElement;
  const button = page.one("#theme");
  const order = ["auto", "light", "dark"];
  const apply = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    dispatchEvent(new Event("themechange"));
  };
  let theme = "auto";
  try {
    theme = order.find((name) => name === localStorage.getItem("sqbench:theme")) ?? "auto";
  } catch {}
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = order[(order.indexOf(theme) + 1) % order.length];
    try {
      localStorage.setItem("sqbench:theme", theme);
    } catch {}
    apply(theme);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply(theme));
  apply(theme);
}
