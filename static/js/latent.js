/* The latent page: contexts by interval, layouts, tokens one by one. The server draws all of it; every control is a
   link that works without this file, and the address always says what is on the screen. */
(() => {
"use strict";
const { $, $$, el, put, toast, copy, keys } = window.app;
const box = $("#ctxs"), hist = $("#acth");
if (!box) return;
const query = () => new URLSearchParams(location.search);
const interval = () => query().get("int") || "top";

/* ---- tokens ---------------------------------------------------------------------------------- */
const TOKEN = ".ct span:not(.pre,.post,.in,.far,.bys)";
const toks = row => $$(TOKEN, row);
const tokenAt = node => node instanceof Element ? node.closest(TOKEN) : null;
/* the character that a sign stands for: see browser/tokens.py */
const signed = i => i.dataset.r ?? (i.className === "nl" ? "\n" : i.className === "tb" ? "\t"
  : String.fromCodePoint(i.textContent.startsWith("U+") ? parseInt(i.textContent.slice(2), 16) : i.textContent.codePointAt(0) - 0x2400));
const raw = t => t.dataset.r ?? [...t.childNodes].map(n => n.nodeType === 3 ? n.data : signed(n)).join("");
const plain = root => {
  const copied = root.cloneNode(true);
  $$(".bys", copied).forEach(g => g.replaceWith(g.dataset.r ?? g.dataset.ch));
  $$("span[data-r]", copied).forEach(t => t.replaceWith(t.dataset.r));
  $$("i", copied).forEach(i => i.replaceWith(signed(i)));
  return copied.textContent;
};
const named = t => t.classList.contains("by") ? "bytes " + t.textContent.trim()
  : raw(t).replace(/^ /, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥") || t.textContent;

/* one tooltip for the page; the value also lands on the histogram */
const tip = el("div", { className: "tip", hidden: true, role: "status" });
document.body.append(tip);
let current = null;
const mark = (act, label) => {
  let line = $(".mk", hist);
  if (!act) return line?.remove();
  if (!line) hist.append(line = el("i", { className: "mk" }));
  const at = Math.min(100, 100 * act / hist.dataset.max);
  line.style.setProperty("--x", at); line.classList.toggle("r", at > 70); line.dataset.t = label;
};
const describe = t => {
  const row = t.closest(".ctx"), act = +(t.dataset.a || 0), group = t.closest(".bys"), list = el("dl");
  const add = (name, value) => list.append(el("dt", { textContent: name }), el("dd", { textContent: value }));
  add("activation", act ? String(act) : "0");
  if (act) add("of latent max", Math.round(100 * act / box.dataset.max) + " %");
  if (group) add("part of", group.dataset.ch);
  if (raw(t).length > 24) add("length", raw(t).length + " characters");
  add("from", $(".cm", row).textContent);
  add("position", `${+row.dataset.first + toks(row).indexOf(t)} of 0–${row.dataset.length - 1}`);
  tip.replaceChildren(el("b", { textContent: named(t) }), list);
};
const place = t => {
  const at = t.getClientRects()[0] || t.getBoundingClientRect(), w = tip.offsetWidth, h = tip.offsetHeight;
  tip.style.left = scrollX + Math.max(8, Math.min(document.documentElement.clientWidth - w - 8, at.left + at.width / 2 - w / 2)) + "px";
  tip.style.top = scrollY + (at.top - h - 6 < 56 ? at.bottom + 6 : at.top - h - 6) + "px";
};
const point = (t, byKey = false) => {
  current?.classList.remove("kb");
  current = t; tip.hidden = !t;
  if (!t) return mark(0);
  t.classList.toggle("kb", byKey);
  describe(t); place(t);
  mark(+(t.dataset.a || 0), `${named(t)} ${t.dataset.a}`);
};
document.addEventListener("pointerover", ev => {
  if (ev.pointerType === "touch") return;
  const t = tokenAt(ev.target);
  if (t) point(t); else if (current) point(null);
});
/* a copied selection is the text itself, without the signs */
document.addEventListener("copy", ev => {
  const chosen = getSelection(), from = chosen.anchorNode?.parentElement;
  if (!chosen.rangeCount || !from?.closest(".ct")) return;
  ev.clipboardData.setData("text/plain", plain(chosen.getRangeAt(0).cloneContents()));
  ev.preventDefault();
});

/* ---- what is on the screen: interval, layout, whitespace ------------------------------------- */
const press = (name, is) => $$(`[data-${name}]`).forEach(a => {
  if (is(a.dataset[name])) a.setAttribute("aria-current", "true"); else a.removeAttribute("aria-current");
});
/* links to other latents, and all controls, keep the view that the address now has */
const relink = () => {
  const kept = query(); kept.delete("ctx");
  const to = (a, changes) => { const q = new URLSearchParams(kept); for (const [k, v] of Object.entries(changes)) { q.delete(k); if (v) q.set(k, v); }
    const url = new URL(a.href); url.search = q; a.href = url; };
  $$("[rel=prev],[rel=next],[data-random],.thumb a").forEach(a => to(a, {}));
  $$("[data-int]").forEach(a => to(a, { int: a.dataset.int === "top" ? "" : a.dataset.int }));
  $$("[data-layout]").forEach(a => to(a, { view: a.dataset.layout === "kwic" ? "" : a.dataset.layout }));
  $$("[data-ws]").forEach(a => to(a, { ws: kept.get("ws") ? "" : "1" }));
};
let asked = 0;
const load = async () => {
  const mine = ++asked, wait = setTimeout(() => box.setAttribute("aria-busy", "true"), 150);
  try {
    const reply = await fetch(box.dataset.url + "?" + query(), { headers: { Accept: "text/html" } });
    if (!reply.ok) throw new Error(reply.statusText);
    const text = await reply.text();
    if (mine !== asked) return;
    point(null);
    box.innerHTML = text;
    $$(".ctx[data-open]").forEach(tools);
  } catch { toast("No answer from the server; the contexts are still the ones before"); }
  finally { clearTimeout(wait); if (mine === asked) box.removeAttribute("aria-busy"); }
};
const openInterval = async key => {
  if (!$(`a[data-int="${key}"]`)) return;
  put("int", key === "top" ? null : key); put("ctx", null);
  press("int", k => k === key); hist.dataset.band = key; relink();
  await load();
};
const setLayout = async key => {
  put("view", key === "kwic" ? null : key);
  press("layout", k => k === key); relink();
  if (key === "full" && $(".ctx[data-part]", box)) await load();
  box.dataset.view = key;
};
const setWhitespace = on => {
  put("ws", on ? 1 : null);
  if (on) $$(TOKEN, box).forEach(t => t.classList.toggle("s", /^ /.test(t.textContent)));
  $("#latent").classList.toggle("ws", on);
  press("ws", () => on); relink();
};

/* ---- one context ------------------------------------------------------------------------------ */
const tools = row => {
  const from = $(".cx", row).getAttribute("aria-label").replace(/^[^:]*: /, "");
  let bar = $(".ca", row);
  if (!bar) row.append(bar = el("div", { className: "ca" }, el("span", { textContent: from })));
  const button = (name, act) => el("button", { className: "linkbtn", type: "button", textContent: name, onclick: act });
  if ($("button", bar)) return;
  const here = () => { put("ctx", row.id.slice(1)); return copy(location.href.replace(/#.*/, "") + "#" + row.id, "Copied link to this context"); };
  const pairs = () => toks(row).map(t => [t.closest(".bys") ? t.textContent.trim() : raw(t), +(t.dataset.a || 0)]);
  bar.append(button("Copy text", () => copy(plain($(".ct", row)), "Copied text")),
    button("Copy tokens", () => copy(JSON.stringify(pairs()), "Copied tokens as JSON")), button("Link here", here));
};
/* the same row with its whole window, from the page's own address for it */
const whole = async row => {
  const asks = query(); asks.set("ctx", row.id.slice(1));
  const reply = await fetch(box.dataset.url + "?" + asks, { headers: { Accept: "text/html" } });
  const next = el("template", { innerHTML: await reply.text() }).content.getElementById(row.id);
  const focused = row.contains(document.activeElement);
  next.removeAttribute("data-part");
  row.replaceWith(next);
  if (focused) { next.tabIndex = -1; next.focus(); }
  return next;
};
const toggle = async (row, on = !row.hasAttribute("data-open")) => {
  point(null);
  if (on && row.hasAttribute("data-part")) {
    try { row = await whole(row); } catch { toast("No answer from the server; this is the part that is here"); }
  }
  row.toggleAttribute("data-open", on);
  $(".cx", row).setAttribute("aria-expanded", on);
  if (on) tools(row); else put("ctx", null);
};

/* ---- clicks and keys ---------------------------------------------------------------------------- */
document.addEventListener("click", ev => {
  if (ev.ctrlKey || ev.metaKey || ev.shiftKey || ev.altKey) return;
  const control = ev.target.closest("[data-int],[data-layout],[data-ws],.cx"), row = ev.target.closest(".ctx");
  if (control) {
    ev.preventDefault();
    if (control.dataset.int) return openInterval(control.dataset.int);
    if (control.dataset.layout) return setLayout(control.dataset.layout);
    return control.matches(".cx") ? toggle(row) : setWhitespace(!$("#latent").classList.contains("ws"));
  }
  if (!row || ev.target.closest(".ca")) return;
  const t = tokenAt(ev.target);
  if (row.hasAttribute("data-open")) return t && point(t);
  if (ev.target.closest(".ct") && getSelection().isCollapsed) toggle(row, true);
});
const ORDER = ["top", ...Array.from({ length: 10 }, (_, i) => `b${10 - i}`)]; // strong to weak
const there = key => $(`a[data-int="${key}"]`);
const stronger = by => {
  let at = ORDER.indexOf(interval());
  do at += by; while (ORDER[at] && !there(ORDER[at]));
  if (ORDER[at]) openInterval(ORDER[at]);
};
const walk = by => {
  const row = document.activeElement;
  if (!row?.matches(".ctx")) return false;
  const list = toks(row), rtl = $(".ct", row).dir === "rtl" ? -1 : 1, peak = list.findIndex(t => t.classList.contains("pk"));
  const at = current && row.contains(current) ? list.indexOf(current) + by * rtl : peak;
  point(list[Math.max(0, Math.min(list.length - 1, at))] ?? null, true);
};
const LAYOUTS = ["kwic", "snip", "full"];
Object.assign(keys, {
  ArrowRight: () => walk(1), ArrowLeft: () => walk(-1),
  Enter: () => document.activeElement?.matches(".ctx") ? void toggle(document.activeElement) : false,
  v: () => void setLayout(LAYOUTS[(LAYOUTS.indexOf(box.dataset.view) + 1) % 3]),
  w: () => setWhitespace(!$("#latent").classList.contains("ws")),
  y: () => current ? void copy(raw(current), "Copied token " + named(current)) : false,
  0: () => void openInterval("rnd"), n: () => void openInterval("low"), ",": () => stronger(1), ".": () => stronger(-1),
});
for (let i = 1; i <= 9; i++) keys[i] = () => void openInterval(ORDER[i - 1]);
document.addEventListener("keydown", ev => { if (ev.key === "Escape" || ev.key === "j" || ev.key === "k") point(null); });
window.app.rows = () => $$(".ctx", box);

$$(".ctx[data-open]").forEach(row => { tools(row); row.scrollIntoView({ block: "center" }); });
})();
