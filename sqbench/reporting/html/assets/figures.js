{
  // Figures are drawn when they come near, in the colours of the page.
  const narrow = matchMedia("(max-width: 40rem)");
  const drawn = new Set();

  page.template = () => {
    const colours = getComputedStyle(document.body);
    const text = colours.color;
    const rule = getComputedStyle(page.one("header")).borderBottomColor;
    const axis = { gridcolor: rule, linecolor: rule, zerolinecolor: rule, automargin: true, title: { standoff: 12 } };
    const side = { gridcolor: rule, color: text, showbackground: false };
    return {
      layout: {
        font: { color: text, family: colours.fontFamily, size: narrow.matches ? 12 : 13 },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 60, r: 16, t: 16, b: 50 },
        hoverlabel: { bgcolor: colours.backgroundColor, bordercolor: text, font: { color: text } },
        legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom", font: { size: 12 } },
        xaxis: axis,
        yaxis: axis,
        scene: { xaxis: side, yaxis: side, zaxis: side },
        annotationdefaults: { font: { color: text } },
        dragmode: narrow.matches ? false : "zoom", // a finger scrolls the page
      },
    };
  };
  page.config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
  page.draw = (plot, data, layout) => {
    drawn.add(plot);
    const named = data.filter((trace) => trace.showlegend !== false && trace.name).length;
    const rows = Math.ceil(named / Math.max(1, Math.floor(plot.clientWidth / 190)));
    const height = (narrow.matches ? 280 : 360) + 19 * rows; // a long legend takes nothing from the picture
    return Plotly.react(plot, data, { height, ...layout, template: page.template() }, page.config);
  };

  const draw = (figure) => {
    const source = page.one("script", figure);
    const plot = page.one(".plot", figure);
    if (!source || drawn.has(plot)) return;
    const { data, layout } = JSON.parse(source.textContent);
    page.draw(plot, data, layout);
  };

  const choose = () => {
    const study = page.one("#study")?.value ?? "0";
    for (const part of page.all("[data-study]")) part.hidden = part.dataset.study !== study;
    for (const section of page.all("section")) {
      const metric = page.one("[data-metrics]", section);
      const figures = page.all("figure[data-metric]:not([hidden])", section);
      const wanted = figures.find((figure) => figure.dataset.metric === metric?.value) ?? figures[0];
      for (const figure of figures) figure.hidden = figure !== wanted;
    }
    dispatchEvent(new Event("filterchange"));
  };

  for (const select of page.all("[data-keep]")) {
    const kept = page.asked[select.dataset.keep] ?? page.kept[select.dataset.keep];
    if ([...select.options].some((option) => option.value === kept)) select.value = kept;
    select.addEventListener("change", () => {
      page.keep(select.dataset.keep, select.value);
      if (select.id === "study") page.address({ ...page.asked, study: select.value });
    });
  }
  page.study = () => page.one("#study")?.selectedOptions[0].textContent;
  for (const select of page.all("#study, [data-metrics]")) select.addEventListener("change", choose);
  choose();

  page.ready(() => {
    const near = new IntersectionObserver(
      (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
      { rootMargin: "400px" },
    );
    page.all("figure.chart").forEach((figure) => near.observe(figure));
  });
  addEventListener("themechange", () => drawn.forEach((plot) => Plotly.relayout(plot, { template: page.template() })));
  addEventListener("beforeprint", () => page.all("figure.chart:not([hidden])").forEach(draw));
}
