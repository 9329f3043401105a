{
  // Heat maps over points and layers, and the layers of one point as a table.
  const source = page.data("layer-data");
  const most = 60; // rows that can be told apart
  const column = (point, field) => source.columns[source.points[point][field]];
  const shownField = page.one("#layer-field");
  const chosen = page.one("#layer-point");
  const figure = page.one("#heat");

  const titled = (field) => `${source.fields[field].title}${source.fields[field].unit ? ` (${source.fields[field].unit})` : ""}`;

  const map = () => {
    const field = shownField.value;
    const having = page.filtered().filter((id) => source.points[id]?.[field] !== undefined);
    const study = page.study() ?? source.points[having[0]]?.study;
    const alike = having.filter((id) => source.points[id].study === study);
    const ids = alike.slice(0, most).reverse();
    const names = [...new Set(ids.flatMap((id) => column(id, "layer")))];
    const unit = source.fields[field].unit;
    const log = field === "ratio";
    const values = ids.map((id) => {
      const of = new Map(column(id, "layer").map((layer, at) => [layer, column(id, field)[at]]));
      return names.map((layer) => of.get(layer) ?? null);
    });
    const [short, size] = matchMedia("(max-width: 40rem)").matches ? [24, 9] : [44, 11];
    const notes = [study];
    if (alike.length > most) notes.push(`the first ${most} of ${alike.length} points: filter to see others`);
    if (having.length > alike.length) notes.push(`${having.length - alike.length} points of other studies are not shown`);
    if (!ids.length) notes.splice(0, 1, "no point that passes the filters has it");
    page.one("strong", figure).textContent = titled(field);
    page.one(".note", figure).textContent = `${notes.join("; ")}.`;
    page.draw(
      page.one(".plot", figure),
      [
        {
          type: "heatmap",
          z: log ? values.map((row) => row.map((value) => (value > 0 ? Math.log10(value) : null))) : values,
          y: ids,
          customdata: values.map((row, at) =>
            row.map((value, place) => `${page.escaped(source.points[ids[at]].label)}<br>${page.escaped(names[place])}<br>${value ?? "float"} ${unit}`),
          ),
          hovertemplate: "%{customdata}<extra></extra>",
          colorscale: "Viridis",
          hoverongaps: false,
          colorbar: { title: { text: log ? "log10" : unit, side: "right" }, thickness: 12, len: 1, outlinewidth: 0 },
        },
      ],
      {
        height: 130 + Math.max(4, ids.length) * 20,
        xaxis: { title: { text: "layer, in order of execution" }, showgrid: false },
        yaxis: {
          type: "category",
          showgrid: false,
          tickvals: ids,
          ticktext: ids.map((id) => page.escaped(source.points[id].label.slice(0, short))),
          tickfont: { size },
        },
      },
    );
  };

  // A layer's name as its block and its role: `model.layers.3.mlp.up_proj` is `mlp.up_proj` of block 3.
  const blockAndRole = (name) => {
    const [, before, number, role] = name.match(/^(.*?)\.(\d+)\.(.+)$/) ?? [];
    return role === undefined ? null : { family: before, block: Number(number), role };
  };
  const blocks = page.one("#blocks");
  const byBlock = (id) => {
    const field = shownField.value;
    const places = column(id, "layer").map(blockAndRole);
    const known = places.filter((place) => place);
    const roles = [...new Set(known.map(({ role }) => role))];
    const count = 1 + Math.max(...known.map(({ block }) => block));
    const families = new Set(known.map(({ family }) => family)).size;
    blocks.hidden = source.points[id][field] === undefined || families !== 1 || count < 2 || roles.length > most;
    if (blocks.hidden) return;
    const values = roles.map(() => Array(count).fill(null));
    const names = roles.map(() => Array(count).fill(""));
    places.forEach((place, at) => {
      if (!place) return;
      values[roles.indexOf(place.role)][place.block] = column(id, field)[at];
      names[roles.indexOf(place.role)][place.block] = column(id, "layer")[at];
    });
    const unit = source.fields[field].unit;
    const log = field === "ratio";
    page.one("strong", blocks).textContent = `${titled(field)} by block and role`;
    page.one(".note", blocks).textContent = `${source.points[id].label}.`;
    page.draw(
      page.one(".plot", blocks),
      [
        {
          type: "heatmap",
          z: log ? values.map((row) => row.map((value) => (value > 0 ? Math.log10(value) : null))) : values,
          y: roles.map(page.escaped),
          customdata: values.map((row, at) => row.map((value, block) => `${page.escaped(names[at][block])}<br>${value ?? "float"} ${unit}`)),
          hovertemplate: "%{customdata}<extra></extra>",
          colorscale: "Viridis",
          hoverongaps: false,
          colorbar: { title: { text: log ? "log10" : unit, side: "right" }, thickness: 12, len: 1, outlinewidth: 0 },
        },
      ],
      { height: 130 + Math.max(4, roles.length) * 26, xaxis: { title: { text: "block" }, showgrid: false, dtick: 5 }, yaxis: { autorange: "reversed", showgrid: false } },
    );
  };

  const digits = (value) => (value === null || value === undefined ? "" : String(value));
  const list = (id, layer) => {
    const box = page.one("#layer-table");
    box.hidden = !source.points[id];
    blocks.hidden = true;
    if (box.hidden) return;
    page.ready(() => byBlock(id));
    const fields = Object.keys(source.fields).filter((field) => source.points[id][field] !== undefined);
    const table = page.node("table");
    table.append(page.node("caption", `${source.points[id].label}: every layer`));
    const head = table.createTHead().insertRow();
    for (const [title, by] of [["#", "number"], ["layer", "text"], ["format", "text"], ...fields.map((field) => [titled(field), "number"])])
      head.append(page.node("th", title, { scope: "col", "data-by": by, ...(by === "number" ? { class: "number" } : {}) }));
    const body = table.createTBody();
    column(id, "layer").forEach((name, at) => {
      const row = body.insertRow();
      const cell = (text, order) => {
        const made = page.node("td", text, order === undefined ? {} : { class: "number" });
        if (order !== undefined && order !== null) made.dataset.order = order;
        row.append(made);
      };
      cell(String(at + 1), at);
      cell(name);
      cell(column(id, "format")[at]);
      for (const field of fields) cell(digits(column(id, field)[at]), column(id, field)[at]);
      if (name === layer) row.id = "layer-chosen";
    });
    box.replaceChildren(table);
    page.sortable(table);
    page.one("#layer-chosen", box)?.scrollIntoView({ block: "nearest" });
  };

  // Also from the buttons of points.js.
  page.showLayers = (id) => {
    if (!source?.points[id]) return false;
    chosen.value = id;
    list(id);
    page.keep("point", id);
    return true;
  };
  page.hasLayers = (id) => Boolean(source?.points[id]);

  if (source && shownField) {
    const fields = Object.keys(source.fields).filter((field) => Object.values(source.points).some((point) => point[field] !== undefined));
    shownField.append(...fields.map((field) => page.node("option", titled(field), { value: field })));
    if (fields.includes(page.kept.field)) shownField.value = page.kept.field;
    chosen.append(...Object.entries(source.points).map(([id, point]) => page.node("option", `${point.label} (${id})`, { value: id })));
    if (source.points[page.kept.point]) page.showLayers(page.kept.point);
    chosen.addEventListener("change", () => list(chosen.value));
    page.ready(() => {
      let first = true;
      const near = new IntersectionObserver(
        ([entry]) => {
          if (!entry.isIntersecting || !first) return;
          first = false;
          map();
          page.one(".plot", figure).on("plotly_click", ({ points: [{ y, pointNumber }] }) => {
            page.showLayers(y);
            const name = column(y, "layer")[pointNumber[1]];
            list(y, name);
          });
        },
        { rootMargin: "400px" },
      );
      near.observe(figure);
      shownField.addEventListener("change", () => {
        if (!first) map();
        if (source.points[chosen.value]) byBlock(chosen.value);
      });
      addEventListener("filterchange", () => first || map());
      addEventListener("beforeprint", () => first && map());
    });
  }
}
