/* Density and kurtosis as points, drawn by WebGL over the server's bins and on its axes. A click or Enter opens a latent, a
   drag or Space filters the table by a range; plotly.js comes only to whoever asks to zoom. docs/architecture.md has why. */
(() => {
"use strict";
const { $, $$, el, color, onTheme, toast } = window.app;
const host = $("#scatter"), chart = host && $(".ph", host);
if (!host) return;
const NEAR = 14, STEPS = 40; // pixels to a point that is meant; steps of an arrow key along an axis
const numbers = text => text.split(" ").map(Number), bound = x => Number((10 ** x).toPrecision(4));
const [x0, x1] = numbers(host.dataset.x), [y0, y1] = numbers(host.dataset.y);
const clamp = v => Math.min(1, Math.max(0, v));

/* ---- drawing --------------------------------------------------------------------------------- */
const VERTEX = `attribute vec4 p; uniform float ratio; varying float opacity;
void main() { gl_Position = vec4(p.xy * 2. - 1., 0., 1.); gl_PointSize = p.z * ratio; opacity = p.w; }`;
const FRAGMENT = `precision mediump float; uniform vec3 ink; varying float opacity;
void main() { vec2 d = gl_PointCoord - .5; if (dot(d, d) > .25) discard; gl_FragColor = vec4(ink * opacity, opacity); }`;
const EACH = 4; // numbers of a point: its place, size and opacity
const compiled = (gl, kind, source) => { const s = gl.createShader(kind); gl.shaderSource(s, source); gl.compileShader(s); return s; };
const program = (gl, points) => {
  const made = gl.createProgram();
  gl.attachShader(made, compiled(gl, gl.VERTEX_SHADER, VERTEX)); gl.attachShader(made, compiled(gl, gl.FRAGMENT_SHADER, FRAGMENT));
  gl.linkProgram(made); gl.useProgram(made);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer()); gl.bufferData(gl.ARRAY_BUFFER, points, gl.STATIC_DRAW);
  const p = gl.getAttribLocation(made, "p");
  gl.enableVertexAttribArray(p); gl.vertexAttribPointer(p, EACH, gl.FLOAT, false, 0, 0);
  gl.enable(gl.BLEND); gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  return made;
};
const OPACITY = .5; // of a latent
const withGl = (gl, points) => {
  const made = program(gl, points);
  return (rgb, ratio) => {
    gl.viewport(0, 0, gl.canvas.width, gl.canvas.height); gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform1f(gl.getUniformLocation(made, "ratio"), ratio);
    gl.uniform3f(gl.getUniformLocation(made, "ink"), ...rgb.map(c => c / 255));
    gl.drawArrays(gl.POINTS, 0, points.length / EACH);
  };
};
const without = (flat, points) => (rgb, ratio) => { // no WebGL here: squares instead
  const { width, height } = flat.canvas;
  flat.clearRect(0, 0, width, height); flat.fillStyle = `rgb(${rgb})`;
  for (let i = 0; i < points.length; i += EACH) {
    const size = ratio * points[i + 2];
    flat.globalAlpha = points[i + 3];
    flat.fillRect(points[i] * width - size / 2, (1 - points[i + 1]) * height - size / 2, size, size);
  }
};
const painter = (canvas, points) => {
  const gl = canvas.getContext("webgl", { antialias: false });
  const draw = gl ? withGl(gl, points) : without(canvas.getContext("2d"), points);
  return () => {
    const ratio = devicePixelRatio || 1, box = chart.getBoundingClientRect();
    canvas.width = Math.round(box.width * ratio); canvas.height = Math.round(box.height * ratio);
    draw(color("--bar").match(/[\d.]+/g).slice(0, 3).map(Number), ratio);
  };
};

/* ---- what is meant --------------------------------------------------------------------------- */
/* the same list without what the chart decides, with the range drawn */
const filter = (from, to) => {
  const query = new URLSearchParams(location.search);
  query.delete("after");
  const at = (share, low, high) => bound(low + share * (high - low));
  for (const [key, value] of [["dmin", at(Math.min(from.x, to.x), x0, x1)], ["dmax", at(Math.max(from.x, to.x), x0, x1)],
    ["kmin", at(Math.min(from.y, to.y), y0, y1)], ["kmax", at(Math.max(from.y, to.y), y0, y1)]]) query.set(key, value);
  location.href = `${location.pathname}?${query}#latents`;
};
const shares = data => { // each point's place in the box, from its lower left; a bin is larger and darker the more it holds
  const points = new Float32Array(EACH * data.x.length), most = Math.log(data.count.reduce((a, b) => Math.max(a, b), 2));
  const look = n => data.binned ? [4 + 2 * Math.log(n) / most, .4 + .6 * Math.log(n) / most] : [4, OPACITY];
  data.x.forEach((x, i) => points.set([(x - x0) / (x1 - x0), (data.y[i] - y0) / (y1 - y0), ...look(data.count[i])], EACH * i));
  return points;
};
const named = (data, i) => data.count[i] > 1 ? `${data.count[i]} latents` : `latent ${data.index[i]}`;
const said = (data, i) => `${named(data, i)}, density ${bound(data.x[i]).toExponential(1)}, kurtosis ${bound(data.y[i])}`;
const opened = (data, points, i) => {
  const w = data.cell / 2 / (x1 - x0), h = data.cell / 2 / (y1 - y0), x = points[EACH * i], y = points[EACH * i + 1];
  if (data.count[i] === 1) location.href = host.dataset.latent.replace(/\d+$/, data.index[i]);
  else filter({ x: x - w, y: y - h }, { x: x + w, y: y + h });
};

const interact = (canvas, data, points) => {
  const ring = el("i", { className: "ring", hidden: true }), range = el("i", { className: "range", hidden: true });
  const tip = el("span", { className: "said", hidden: true }), live = el("span", { className: "vh" });
  live.setAttribute("role", "status");
  chart.append(range, ring, tip, live);
  let at = { x: .5, y: .5 }, from = null, hit = -1;
  const place = (node, x, y) => { node.style.left = `${100 * x}%`; node.style.bottom = `${100 * y}%`; };
  const nearest = (p, within) => {
    const { width, height } = canvas.getBoundingClientRect();
    let best = -1, least = within * within;
    for (let i = 0; i < points.length; i += EACH) {
      const dx = (points[i] - p.x) * width, dy = (points[i + 1] - p.y) * height, far = dx * dx + dy * dy;
      if (far < least) { least = far; best = i / EACH; }
    }
    return best;
  };
  const point = i => {
    hit = i; ring.hidden = tip.hidden = i < 0; canvas.style.cursor = i < 0 ? "crosshair" : "pointer";
    if (i < 0) return;
    place(ring, points[EACH * i], points[EACH * i + 1]); place(tip, points[EACH * i], points[EACH * i + 1]);
    tip.textContent = said(data, i); tip.classList.toggle("l", points[EACH * i] > .5);
  };
  const frame = () => {
    range.hidden = !from;
    if (!from) return;
    place(range, Math.min(from.x, at.x), Math.min(from.y, at.y));
    range.style.width = `${100 * Math.abs(from.x - at.x)}%`; range.style.height = `${100 * Math.abs(from.y - at.y)}%`;
  };
  const where = ev => { const b = canvas.getBoundingClientRect(); return { x: clamp((ev.clientX - b.left) / b.width), y: clamp(1 - (ev.clientY - b.top) / b.height) }; };
  let down = null;
  canvas.addEventListener("pointerdown", ev => { if (ev.button === 0) { down = ev; from = where(ev); canvas.setPointerCapture(ev.pointerId); } });
  canvas.addEventListener("pointermove", ev => {
    at = where(ev);
    if (down && Math.hypot(ev.clientX - down.clientX, ev.clientY - down.clientY) > 4) { point(-1); frame(); } else point(nearest(at, NEAR));
  });
  canvas.addEventListener("pointerup", ev => {
    const start = from, far = down && Math.hypot(ev.clientX - down.clientX, ev.clientY - down.clientY) > 4;
    at = where(ev); down = from = null; frame();
    if (far) return filter(start, at);
    if (start && (hit = nearest(at, NEAR)) >= 0) opened(data, points, hit);
  });
  const left = () => { down = from = null; frame(); point(-1); };
  canvas.addEventListener("pointercancel", left);
  canvas.addEventListener("pointerleave", () => { if (!down && document.activeElement !== canvas) point(-1); });
  canvas.addEventListener("blur", left);
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const act = {
    " ": () => { if (from) { const start = from; from = null; filter(start, at); } else { from = at; live.textContent = "Range begun: arrows widen it, Space filters"; } },
    Enter: () => { if (from) act[" "](); else if (hit >= 0) opened(data, points, hit); },
    Escape: () => { from = null; frame(); },
  };
  canvas.addEventListener("keydown", ev => {
    if (ev.ctrlKey || ev.metaKey || ev.altKey) return;
    const by = step[ev.key];
    if (by) {
      at = { x: clamp(at.x + by[0] / STEPS), y: clamp(at.y + by[1] / STEPS) };
      point(nearest(at, Infinity)); frame(); live.textContent = said(data, hit);
    } else if (act[ev.key]) act[ev.key](); else return;
    ev.preventDefault(); ev.stopPropagation();
  });
};

/* ---- zooming: plotly.js, for whoever asks ---------------------------------------------------- */
const load = src => new Promise((done, failed) => document.head.append(el("script", { src, onload: done, onerror: failed })));
const axis = (title, low, high) => ({ title: { text: title, font: { size: 11 }, standoff: 6 }, range: [low, high], gridcolor: color("--line"),
  linecolor: color("--line"), zeroline: false, tickprefix: "1e", dtick: high - low > 2 ? 1 : undefined, tickfont: { size: 11 } });
const layout = () => ({
  margin: { l: 44, r: 8, t: 8, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
  font: { family: getComputedStyle(document.body).fontFamily, color: color("--ink-3") }, dragmode: "zoom", hovermode: "closest",
  xaxis: axis("density", x0, x1), yaxis: axis("kurtosis", y0, y1),
});
const trace = data => ({
  type: "scattergl", mode: "markers", x: data.x, y: data.y, text: data.x.map((_, i) => said(data, i)), hoverinfo: "text",
  marker: { size: data.binned ? data.count.map(n => 3 + 2 * Math.log10(n)) : 4, color: color("--bar"), opacity: OPACITY },
});
const zoom = data => async ev => {
  ev.currentTarget.hidden = true;
  try {
    await load(host.dataset.plotly);
    const box = el("div"), shown = data(), points = shares(shown);
    const paint = () => window.Plotly.react(box, [trace(shown)], layout(), { displayModeBar: true, displaylogo: false, responsive: true, scrollZoom: true,
      modeBarButtonsToRemove: ["autoScale2d", "toImage", "lasso2d"] });
    host.append(box); chart.hidden = true;
    await paint(); onTheme.push(paint);
    box.on("plotly_click", ({ points: [p] }) => opened(shown, points, p.pointIndex));
    box.on("plotly_selected", found => { if (found?.range) { const at = (v, low, high) => (v - low) / (high - low), { x, y } = found.range;
      filter({ x: at(x[0], x0, x1), y: at(y[0], y0, y1) }, { x: at(x[1], x0, x1), y: at(y[1], y0, y1) }); } });
  } catch { toast("The chart that zooms did not load"); }
};

const draw = async () => {
  try {
    const reply = await fetch(host.dataset.points);
    if (!reply.ok) throw new Error(reply.status);
    const data = await reply.json(), points = shares(data), canvas = el("canvas", { tabIndex: 0 });
    canvas.setAttribute("role", "application"); canvas.setAttribute("aria-label", host.dataset.keys);
    chart.removeAttribute("role"); chart.removeAttribute("aria-label");
    chart.append(canvas); $$("svg .b", chart).forEach(bin => bin.remove());
    const paint = painter(canvas, points);
    paint(); onTheme.push(paint); new ResizeObserver(paint).observe(chart);
    interact(canvas, data, points);
    host.dataset.drawn = data.x.length;
    $$("[data-zoom]").forEach(button => { button.hidden = false; button.addEventListener("click", zoom(() => data)); });
  } catch { toast("The chart's points did not load; its bins stay"); }
};
new IntersectionObserver((seen, watch) => { if (seen.some(s => s.isIntersecting)) { watch.disconnect(); draw(); } }, { rootMargin: "200px" }).observe(host);
})();
