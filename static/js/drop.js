/* Files dropped anywhere on a page, folders with all that is in them. A page without a place for them, such as the home
   page, becomes the upload page: with no journey in between the files stay at hand, whatever their size. */
(() => {
"use strict";
const { $, el, toast } = window.app;
const carries = ev => ev.dataTransfer?.types.includes("Files");
const plain = file => ({ file, name: file.webkitRelativePath || file.name });
const inside = async (entry, path) => {
  if (entry.isFile) return [{ file: await new Promise((good, bad) => entry.file(good, bad)), name: path + entry.name }];
  const reader = entry.createReader(), found = [];
  for (;;) {
    const part = await new Promise((good, bad) => reader.readEntries(good, bad));
    if (!part.length) return found;
    for (const each of part) found.push(...await inside(each, `${path}${entry.name}/`));
  }
};
const dropped = async data => {
  const roots = [...data.items].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!roots.length) return [...data.files].map(plain);
  return (await Promise.all(roots.map(root => inside(root, "")))).flat();
};

let taker, depth = 0; // who takes the files, and where they hover
const over = on => (taker?.zone ?? document.body).classList.toggle("over", on);
const leave = () => { depth = 0; over(false); };
addEventListener("dragenter", ev => { if (carries(ev)) { depth++; over(true); } });
addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); if (!depth) over(false); });
addEventListener("dragover", ev => { if (carries(ev)) ev.preventDefault(); });
addEventListener("drop", async ev => {
  if (!carries(ev)) return;
  ev.preventDefault(); leave();
  const found = await dropped(ev.dataTransfer);
  if (taker) taker.take(found); else if (found.length) become(found);
});
window.app.plain = plain;
window.app.onDrop = (zone, take) => { taker = { zone, take }; };

/* back to a page that has become another, or has come from one: what it was is not in the browser any more */
addEventListener("popstate", () => { if (!location.hash) location.reload(); });
addEventListener("pageshow", ev => { if (ev.persisted && window.app.brought) location.reload(); });

/* the upload page in place of this one: its head's styles, its main part, then its scripts, one after the other */
const become = async found => {
  const address = $("[data-upload]").dataset.upload;
  let page;
  try { const reply = await fetch(address); if (!reply.ok) throw reply; page = new DOMParser().parseFromString(await reply.text(), "text/html"); }
  catch { return toast("No answer from the server; try again"); }
  if (!$("[data-drop]", page)) return location.assign(address); // whoever may not upload is told there
  history.pushState(null, "", address);
  document.title = page.title;
  for (const part of ["main", ".top nav", ".menu nav", ".foot"]) $(part).replaceWith($(part, page));
  const known = new Set([...document.querySelectorAll("link[href],script[src]")].map(each => each.href || each.src));
  const missing = selector => [...page.querySelectorAll(selector)].map(each => new URL(each.getAttribute(each.localName === "link" ? "href" : "src"), location.href).href).filter(url => !known.has(url));
  for (const href of missing("link[rel=stylesheet]")) document.head.append(el("link", { rel: "stylesheet", href }));
  window.app.brought = found;
  for (const src of missing("script[src]")) await new Promise(good => document.head.append(el("script", { src, onload: good })));
  $("h1").tabIndex = -1; $("h1").focus();
};
})();
