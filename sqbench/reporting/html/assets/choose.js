// What to use within a reader's limits: the choice of sqbench.reporting.recommendation, among candidates that Python has described.
for (const box of page.all(".choose")) {
  const { items, speeds } = JSON.parse(page.one("script", box).textContent);
  const form = page.one("form", box);
  const says = page.one(".use strong", box);
  const link = page.one(".use a", box);
  const list = page.one(".picks", box);
  const number = (name) => (form.elements[name]?.value ? Number(form.elements[name].value) : null);
  const least = (places, ...by) =>
    places.reduce((best, at) => {
      for (const key of by) if (key(at) !== key(best)) return key(at) < key(best) ? at : best;
      return best;
    }, places[0]);
  const worse = (at) => items[at].worse ?? Infinity;
  const size = (at) => items[at].mb ?? Infinity;

  const choose = () => {
    const [mb, loss, speed] = ["mb", "loss", "speed"].map(number);
    const of = form.elements.of?.value ?? speeds[0];
    const fits = ({ mb: own, most, speeds: timed }) =>
      (mb === null || (own !== null && own <= mb)) && (loss === null || (most !== null && most <= loss)) && (speed === null || timed[of] >= speed);
    const left = items.map((_, at) => at).filter((at) => fits(items[at]));
    list.replaceChildren();
    const add = (text) => list.append(page.node("li", text));
    link.hidden = !left.length;
    if (!left.length) {
      says.textContent = "No point satisfies all limits.";
      if (speed !== null && items.some((one) => !(of in one.speeds))) add("Points without a measured speed do not count.");
      return;
    }
    const best = least(left, worse);
    const use = least([best, ...(items[best].ties ?? []).filter((at) => left.includes(at))], size, worse);
    const timed = left.filter((at) => of in items[at].speeds);
    const told = (at) => `${items[at].bits} with ${items[at].name}`;
    says.textContent = items[use].says;
    link.href = `#p-${items[use].point}`;
    add(`Most accurate: ${told(best)}, ${items[best].loss}.`);
    const smallest = least(left, size, worse);
    if (items[smallest].mb !== null) add(`Smallest: ${told(smallest)}, ${items[smallest].mb.toFixed(1)} MB.`);
    if (timed.length) {
      const fastest = least(timed, (at) => -items[at].speeds[of], worse);
      add(`Fastest at ${of}: ${told(fastest)}, ${items[fastest].speeds[of].toFixed(2)} times as fast as float.`);
    }
    if (items[use].apart) add(items[use].apart);
    if (left.length < items.length) add(`${items.length - left.length} of ${items.length} points are outside the limits. The far end of the interval counts as the loss.`);
  };
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", choose);
  form.addEventListener("reset", () => setTimeout(choose));
  choose();
}
