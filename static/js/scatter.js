/* Density and kurtosis as points: plotly.js is fetched when the chart comes near, and the server's bins stay until then. */
(() => {
"use strict";
const { $, $$, el, color, onTheme, toast } = window.app;
const host = $("#scatter");
if (!host) return;
const power = x => `1e${x}`, bound = x => Number((10 ** x).toPrecision(4));

const load = src => new Promise((done, failed) => document.head.append(el("script", { src, onload: done, onerror: failed })));
const axis = (text, values) => {
  const least = values.reduce((a, b) => Math.min(a, b), Infinity), most = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Array.from({ length: Math.ceil(most) - Math.floor(least) + 1 }, (_, i) => Math.floor(least) + i);
  const near = most - least <= 2;
  const ticks = near ? powers.flatMap(p => [p, p + Math.log10(2), p + Math.log10(5)]) : powers;
  return { title: { text, font: { size: 11 }, standoff: 6 }, gridcolor: color("--line"), linecolor: color("--line"), zeroline: false,
    tickvals: ticks, ticktext: ticks.map(near ? x => `${bound(x)}` : power), tickfont: { size: 11 } };
};
const layout = data => ({
  margin: { l: 44, r: 8, t: 8, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
  font: { family: getComputedStyle(document.body).fontFamily, color: color("--ink-3") }, dragmode: "select", hovermode: "closest",
  xaxis: axis("density", data.x), yaxis: axis("kurtosis", data.y),
});
const trace = data => ({
  type: "scatter", mode: "markers", x: data.x, y: data.y, customdata: data.index,
  text: data.count.map((n, i) => n > 1 ? `${n} latents` : `latent ${data.index[i]}`),
  hovertemplate: "<b>%{text}</b><br>density 1e%{x:.2f}, kurtosis 1e%{y:.2f}<extra></extra>",
  marker: { size: data.binned ? data.count.map(n => 3 + 2 * Math.log10(n)) : 4, color: color("--bar"), opacity: .5 },
});
/* the same list without what the chart decides, with the range drawn */
const filter = (x, y) => {
  const query = new URLSearchParams(location.search);
  query.delete("after");
  for (const [key, value] of [["dmin", x[0]], ["dmax", x[1]], ["kmin", y[0]], ["kmax", y[1]]]) query.set(key, bound(value));
  location.href = `${location.pathname}?${query}#latents`;
};
const open = data => ev => {
  const at = ev.points[0].pointIndex, half = data.cell / 2;
  if (data.count[at] === 1) location.href = host.dataset.latent.replace(/\d+$/, data.index[at]);
  else filter([data.x[at] - half, data.x[at] + half], [data.y[at] - half, data.y[at] + half]);
};

const draw = async () => {
  try {
    const [reply] = await Promise.all([fetch(host.dataset.points), load(host.dataset.plotly)]);
    if (!reply.ok) throw new Error(reply.status);
    const data = await reply.json(), box = el("div");
    host.append(box);
    const paint = () => window.Plotly.react(box, [trace(data)], layout(data), { displayModeBar: "hover", displaylogo: false, responsive: true,
      modeBarButtonsToRemove: ["autoScale2d", "toImage", "lasso2d"] });
    await paint();
    $$(".ph", host).forEach(drawn => drawn.remove());
    onTheme.push(paint);
    box.on("plotly_click", open(data));
    box.on("plotly_selected", ev => { if (ev?.range) filter(ev.range.x, ev.range.y); });
  } catch { toast("The chart's points did not load; its bins stay"); }
};
new IntersectionObserver((seen, watch) => { if (seen.some(s => s.isIntersecting)) { watch.disconnect(); draw(); } }, { rootMargin: "200px" }).observe(host);
})();
