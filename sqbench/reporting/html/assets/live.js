{
  // A served page looks whether it was built anew, and loads itself again unless the reader is in the middle of something.
  const every = 1000 * Number(page.one('meta[name="live"]')?.content ?? 0);
  const built = page.one('meta[name="built"]').content;
  let touched = 0;
  if (every) {
    const touch = (event) => {
      if (event.type !== "pointermove" || event.buttons) touched = Date.now();
    };
    for (const name of ["pointermove", "keydown", "input"]) addEventListener(name, touch);
    setInterval(async () => {
      const pulse = page.one("#pulse");
      try {
        const now = (await (await fetch("built.txt", { cache: "no-store" })).text()).trim();
        const quiet = Date.now() - touched > 3000; // no drag, no key
        if (now && now !== built && quiet && !document.hidden) location.reload();
      } catch {
        if (pulse) pulse.textContent = "The server has stopped: this page stays as it is.";
      }
    }, every);
  }
}
