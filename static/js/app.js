/* What every page shares. Progressive enhancement only: pages read, link and submit without it.
   Other scripts use window.app; a page's own keys go into app.keys before any is pressed. */
(() => {
"use strict";
const $ = (s, r = document) => r.querySelector(s), $$ = (s, r = document) => [...r.querySelectorAll(s)];
const root = document.documentElement;

/* ---- small things --------------------------------------------------------------------------- */
const el = (tag, props = {}, ...kids) => { const x = Object.assign(document.createElement(tag), props); x.append(...kids); return x; };
/* put a parameter into the page's address (null takes it out), so that Copy link gives what is on the screen */
const put = (key, value) => {
  const query = new URLSearchParams(location.search);
  if (value == null || value === "") query.delete(key); else query.set(key, value);
  history.replaceState(history.state, "", location.pathname + (query.size ? "?" + query : "") + location.hash);
};
let toastTimer;
const toast = message => {
  const box = $(".toast");
  box.textContent = message; box.classList.add("on");
  clearTimeout(toastTimer); toastTimer = setTimeout(() => box.classList.remove("on"), 1800);
};
const copy = async (text, what = "Copied") => {
  try { await navigator.clipboard.writeText(text); }
  catch { const area = el("textarea", { value: text }); document.body.append(area); area.select(); document.execCommand("copy"); area.remove(); }
  toast(what);
};
/* a colour of the theme as the browser resolves it, for what draws on its own */
const color = name => { const probe = el("i"); probe.style.color = `var(${name})`; document.body.append(probe);
  const found = getComputedStyle(probe).color; probe.remove(); return found; };

/* ---- theme: follows the system until told otherwise ------------------------------------------ */
const onTheme = [], system = matchMedia("(prefers-color-scheme:dark)");
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
const theme = () => {
  root.dataset.theme = dark() ? "light" : "dark";
  try { localStorage.theme = root.dataset.theme; } catch { /* not kept, then */ }
  onTheme.forEach(f => f());
};
system.addEventListener("change", () => onTheme.forEach(f => f()));

/* ---- what a click does: data-do names it, data-copy carries the text ------------------------- */
const actions = { theme, help: () => $("#help").showModal(), link: () => copy(location.href, "Copied link to this view") };
document.addEventListener("click", ev => {
  const action = ev.target.closest("[data-do]"), text = ev.target.closest("[data-copy]");
  if (action && actions[action.dataset.do]) { $("details.menu[open]")?.removeAttribute("open"); return actions[action.dataset.do](); }
  if (text) return copy(text.dataset.copy);
  if (ev.target.matches("dialog")) ev.target.close();
});

/* a link to the page that says how to cite: what is on it, in a dialog here; as the address says what is on the screen */
const cite = async link => {
  const url = new URL(link.href); url.search = location.search;
  try {
    const reply = await fetch(url, { method: "POST", headers: { Accept: "text/html" } }); // which keeps the run
    if (!reply.ok) throw new Error(reply.statusText);
    const said = new DOMParser().parseFromString(await reply.text(), "text/html").getElementById("cite-body");
    const close = el("form", { method: "dialog", className: "right" }, el("button", { className: "btn", textContent: "Close" }));
    [...said.querySelectorAll(".row")].pop().append(close);
    const box = el("dialog", { id: "cite", onclose: () => box.remove() }, said);
    box.setAttribute("aria-labelledby", "cite-h");
    document.body.append(box); box.showModal();
  } catch { location.href = url; }
};
/* a reader of a pinned page, told from a crawler by the first gesture: what the address shows is kept from now on */
const pinned = location.pathname.match(/^(\/s\/[^/]+@r\d+)(\/\d+)?$/);
if (pinned) {
  const gestures = ["pointerdown", "keydown", "wheel", "touchstart"];
  const keep = () => { gestures.forEach(g => removeEventListener(g, keep)); fetch(`${pinned[1]}${pinned[2] || ""}/cite.json`, { method: "POST" }).catch(() => {}); };
  gestures.forEach(g => addEventListener(g, keep, { passive: true }));
}
document.addEventListener("click", ev => {
  const link = ev.target.closest("a[data-cite]");
  if (!link || ev.ctrlKey || ev.metaKey || ev.shiftKey || ev.altKey) return;
  ev.preventDefault(); cite(link);
});

/* ---- tables: a field that narrows what is already on the page -------------------------------- */
const show = (row, on) => { if (row) row.hidden = !on; };
const within = (text, range) => { const [low, high] = range.split("-"); return text && +text >= +low && (!high || +text < +high); };
const chosen = (row, table) => $$(`[data-narrow="${table.id}"]`).every(({ value, dataset }) =>
  !value || (dataset.on === "l0" ? within(row.dataset.l0, value) : row.dataset[dataset.on] === value));
const narrow = (table, typed) => {
  let group, hook;
  const picked = $$(`[data-narrow="${table.id}"]`).some(field => field.value), words = typed || (picked ? " " : "");
  for (const row of table.tBodies[0].rows) {
    if (row.classList.contains("grp")) { group = row; show(row, !words); continue; }
    if (row.classList.contains("sgrp")) { hook = row; show(row, !words); continue; }
    const hit = [row, hook, group].map(r => r?.textContent ?? "").join(" ").toLowerCase().includes(typed) && chosen(row, table) && (words || !("folded" in row.dataset));
    show(row, hit);
    if (hit) { show(group, true); show(hook, true); }
  }
  const n = $$("tbody tr:not([hidden]):not(.grp):not(.sgrp)", table).length;
  $$(`[data-count="${table.id}"]`).forEach(c => { c.textContent = n; });
};
$$("[data-filter]").forEach(field => {
  const run = () => narrow($("#" + field.dataset.filter), field.value.trim().toLowerCase());
  field.addEventListener("input", () => { run(); put("q", field.value); });
  $$(`[data-narrow="${field.dataset.filter}"]`).forEach(select => select.addEventListener("change", run));
  $$(`[data-unfold="${field.dataset.filter}"]`).forEach(link => link.addEventListener("click", ev => {
    ev.preventDefault();
    $$("[data-folded]", link.closest("table")).forEach(row => { delete row.dataset.folded; });
    $$("[data-unfold]", link.closest("table")).forEach(one => one.remove());
    run(); put("all", 1);
  }));
  if (field.value) run();
});
/* a form that only narrows: its empty fields stay out of the address */
$$("form[data-clean]").forEach(form => form.addEventListener("submit", () => {
  $$("input,select", form).forEach(field => { if (field.value === "" || field.value === field.dataset.default) field.disabled = true; });
  addEventListener("pageshow", () => $$(":disabled", form).forEach(field => { field.disabled = false; }), { once: true });
}));
$$("select[data-submit]").forEach(field => field.addEventListener("change", () => field.form.requestSubmit()));

/* ---- live parts: fetched again from their own address while they say so ---------------------- */
/* what was focused is so again in what takes its part's place: the same id, or else the same link or button */
const keyOf = x => x.id || [x.localName, x.name, x.getAttribute("href"), x.textContent].join(" ");
const refocus = (key, part) => $$("a[href],button,input,select,summary,[tabindex]", part).find(x => keyOf(x) === key)?.focus({ preventScroll: true });
const busy = part => { const words = getSelection(); return !words.isCollapsed && part.contains(words.anchorNode); };
const poll = async part => {
  if (!part.isConnected) return; // the page has become another
  if (document.hidden || busy(part)) return setTimeout(poll, 2000, part); // words selected in it are to be copied
  let next = part;
  try {
    const reply = await fetch(part.dataset.poll, { headers: { Accept: "text/html" } });
    if (reply.ok) {
      next = el("template", { innerHTML: await reply.text() }).content.firstElementChild;
      const log = $(".log", part), at = log?.scrollTop, follows = $("[data-follow]", part)?.checked ?? true;
      const follow = !log || (follows && log.scrollTop + log.clientHeight > log.scrollHeight - 24);
      const focused = part.contains(document.activeElement) && keyOf(document.activeElement);
      part.replaceWith(next);
      if (focused) refocus(focused, next);
      if ("reload" in next.dataset) return location.reload();
      const fresh = $(".log", next);
      if (fresh) fresh.scrollTop = follow ? fresh.scrollHeight : at;
      $$("[data-follow]", next).forEach(box => { box.checked = follow; });
    }
  } catch { toast("No answer from the server; trying again"); }
  if (next.dataset.poll) setTimeout(poll, +next.dataset.every || 2000, next);
};
$$("[data-poll]").forEach(part => setTimeout(poll, +part.dataset.every || 2000, part));
/* the end of a log is in view as long as nobody scrolls up or says so */
document.addEventListener("change", ev => {
  if (!ev.target.matches("[data-follow]") || !ev.target.checked) return;
  const log = $(".log", ev.target.closest("section")); log.scrollTop = log.scrollHeight;
});
$$(".log").forEach(log => { log.scrollTop = log.scrollHeight; });

/* ---- keyboard -------------------------------------------------------------------------------- */
const go = selector => { const link = $(selector); if (link) location.href = link.href; };
const rows = () => $$("[data-rows] tbody tr:not([hidden]):not(.grp):not(.sgrp),[data-rows]>.hit");
let listRows = rows;
const step = by => {
  const list = listRows(), at = list.indexOf(document.activeElement?.closest("tr,.ctx,.hit"));
  const next = list[Math.max(0, Math.min(list.length - 1, at + by))];
  if (next) { next.tabIndex = -1; next.focus(); }
};
const keys = {
  "/": () => $("#j").focus(), "?": actions.help, d: theme, c: actions.link, f: () => $("[data-filter],[data-focus]")?.focus(),
  "[": () => go("[rel=prev]"), "]": () => go("[rel=next]"), r: () => go("a[data-random]"), j: () => step(1), k: () => step(-1),
};
/* who dictates, or shakes, turns single keys off (WCAG 2.1.4) */
const single = $("#single");
try { single.checked = localStorage.keys !== "off"; } catch { /* then they are on */ }
single.addEventListener("change", () => { try { localStorage.keys = single.checked ? "on" : "off"; } catch { /* for this page, then */ } });
document.addEventListener("keydown", ev => {
  if (ev.ctrlKey || ev.metaKey || ev.altKey || (ev.key.length === 1 && !single.checked)) return;
  const at = document.activeElement;
  if (ev.key === "Escape") { $("details.menu[open]")?.removeAttribute("open"); if (at?.matches("input,textarea,select")) at.blur(); return; }
  if (at?.matches("input:not([type=checkbox]),textarea,select") || $("dialog[open]")) return;
  if (ev.key === "Enter" && at?.matches("tr,.hit")) { $("a", at)?.click(); return ev.preventDefault(); }
  const act = Object.hasOwn(keys, ev.key) && keys[ev.key];
  if (act && act(ev) !== false) ev.preventDefault();
});

window.app = { $, $$, el, put, toast, copy, color, dark, onTheme, actions, keys, set rows(f) { listRows = f; } };
})();
