// Tables that sort by their titles. Cells sort by data-order where they have it, empty ones last in either direction.
page.sortable = (table, start, changed = () => {}) => {
  const heads = page.all("thead th", table);
  const body = table.tBodies[0];
  const valueOf = (row, at, by) => {
    const cell = row.cells[at];
    if (by === "number") return cell.dataset.order === undefined ? null : Number(cell.dataset.order);
    return cell.textContent.trim() || null;
  };
  const sort = (at, descending) => {
    const by = heads[at].dataset.by;
    const sign = descending ? -1 : 1;
    const rows = [...body.rows].map((row) => [valueOf(row, at, by), row]);
    rows.sort(([one], [other]) => {
      if (one === null || other === null) return (one === null) - (other === null);
      return sign * (by === "number" ? one - other : one.localeCompare(other, "en", { numeric: true }));
    });
    body.append(...rows.map(([, row]) => row));
    heads.forEach((head, place) => {
      if (place === at) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    changed({ at, descending });
  };
  heads.forEach((head, at) => {
    const button = page.node("button", head.textContent, { type: "button" });
    button.addEventListener("click", () => sort(at, head.getAttribute("aria-sort") === "ascending"));
    head.replaceChildren(button);
  });
  if (start && start.at < heads.length) sort(start.at, start.descending);
};

{
  const table = page.one("#points");
  const form = page.one("#filters");
  if (table && form) {
    page.sortable(table, page.kept.sort, (sort) => page.keep("sort", sort));
    const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]);
    const filter = () => {
      const wanted = Object.fromEntries(new FormData(form));
      const text = (wanted.text ?? "").trim().toLowerCase();
      const keys = Object.keys(wanted).filter((name) => name !== "text" && wanted[name]);
      let count = 0;
      for (const [row, content] of rows) {
        const fits = keys.every((name) => row.dataset[name] === wanted[name].slice(1)) && content.includes(text);
        row.hidden = !fits;
        count += fits;
      }
      page.one("output", form).textContent = `${count} of ${rows.length} rows`;
      page.keep("filters", wanted);
      page.address(Object.fromEntries(Object.entries(wanted).filter(([, value]) => value)));
      dispatchEvent(new Event("filterchange"));
    };
    const asked = Object.fromEntries(Object.entries(page.asked).filter(([name]) => form.elements[name]));
    for (const [name, value] of Object.entries(Object.keys(asked).length ? asked : (page.kept.filters ?? {}))) {
      const field = form.elements[name];
      if (field) field.value = value;
      if (field && field.value !== value) field.value = ""; // what was chosen is no longer there
    }
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", filter);
    form.addEventListener("reset", () => setTimeout(filter));
    filter();
  }
  // The points that pass the filters, in the order of the table.
  page.filtered = () => page.all("#points tbody tr[data-point]:not([hidden])").map((row) => row.dataset.point);
}
