{
  // Weights and activations as surfaces that turn together, by drag or by button.
  const layers = page.data("surface-data");
  const select = page.one("#surface");
  const home = { x: -1.2, y: -1.9, z: 0.9 };
  let eye = home;

  const scenes = () => {
    const layer = layers[select.value];
    const kinds = [["activation", "|input|", "token"], ["weight", "|weight|", "out"]];
    return kinds.flatMap(([field, name, side]) => {
      const top = Math.max(...layer.states.map((state) => Math.max(...state[field].z.map((row) => Math.max(...row)))), 1e-12);
      return layer.states.map((state) => ({ surface: state[field], title: `${name}, ${state.name}`, side, top, channel: field === "weight" ? layer.channel : "channel" }));
    });
  };

  const draw = () => {
    const layer = layers[select.value];
    const figure = page.one(".chart.surfaces");
    const shown = scenes();
    const narrow = matchMedia("(max-width: 40rem)").matches;
    const across = narrow ? 1 : 2;
    const down = shown.length / across;
    const layout = { height: (narrow ? 320 : 370) * down, margin: { l: 0, r: 0, t: 24, b: 0 }, annotations: [] };
    const data = shown.map(({ surface, title, side, top, channel }, at) => {
      const name = at ? `scene${at + 1}` : "scene";
      const [column, row] = [at % across, Math.floor(at / across)];
      const x = [column / across, (column + 1) / across];
      const y = [1 - (row + 1) / down, 1 - row / down];
      layout[name] = {
        domain: { x, y: [y[0], y[1] - 0.03] },
        camera: { eye, center: { x: 0, y: 0, z: -0.12 } },
        aspectmode: "manual",
        aspectratio: { x: 1.5, y: 1.1, z: 0.8 },
        xaxis: { title: { text: page.escaped(channel) } },
        yaxis: { title: { text: side } },
        zaxis: { title: { text: "" }, range: [0, top] },
      };
      layout.annotations.push({ text: `<b>${page.escaped(title)}</b>: largest / median channel ${surface.ratio}`, x: x[0] + 0.01, y: y[1], xref: "paper", yref: "paper", xanchor: "left", yanchor: "top", showarrow: false });
      return {
        type: "surface",
        scene: name,
        x: surface.columns,
        y: surface.rows,
        z: surface.z,
        cmin: 0,
        cmax: top,
        colorscale: "Viridis",
        showscale: false,
        hovertemplate: `${page.escaped(channel)} %{x}, ${side} %{y}: %{z:.3g}<extra></extra>`,
      };
    });
    page.one("strong", figure).textContent = `What ${layer.layer} reads and holds`;
    page.one(".note", figure).textContent = layer.told;
    return page.draw(page.one(".plot", figure), data, layout);
  };

  const turn = (to) => {
    eye = to;
    const plot = page.one(".chart.surfaces .plot");
    const names = scenes().map((_, at) => (at ? `scene${at + 1}` : "scene"));
    return Plotly.relayout(plot, Object.fromEntries(names.map((name) => [`${name}.camera.eye`, eye])));
  };

  const turned = (way) => {
    const radius = Math.hypot(eye.x, eye.y, eye.z);
    let around = Math.atan2(eye.y, eye.x);
    let above = Math.asin(eye.z / radius);
    around += { left: -0.3, right: 0.3 }[way] ?? 0;
    above = Math.min(1.5, Math.max(-0.2, above + ({ up: 0.2, down: -0.2 }[way] ?? 0)));
    return { x: radius * Math.cos(above) * Math.cos(around), y: radius * Math.cos(above) * Math.sin(around), z: radius * Math.sin(above) };
  };

  if (layers && select) {
    page.ready(() => {
      let first = true;
      const begin = () => {
        if (!first) return;
        first = false;
        draw();
        page.one(".chart.surfaces .plot").on("plotly_relayout", (change) => {
          const moved = Object.keys(change).find((key) => key.endsWith(".camera"));
          if (moved) turn(change[moved].eye); // dragged: the others follow
        });
      };
      new IntersectionObserver(([entry]) => entry.isIntersecting && begin(), { rootMargin: "200px" }).observe(page.one(".chart.surfaces"));
      addEventListener("beforeprint", begin);
      select.addEventListener("change", () => first || draw());
      for (const button of page.all("[data-turn]"))
        button.addEventListener("click", () => {
          begin();
          turn(button.dataset.turn === "home" ? home : turned(button.dataset.turn));
        });
    });
  }
}
