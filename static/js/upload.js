/* Sending files in pieces (tus), and saving what is typed; js/drop.js comes before it. Without it a plain form sends the files, and buttons save. */
(() => {
"use strict";
const { $, $$, el, toast } = window.app;
const zone = $("[data-drop]"), list = $("[data-files]"), form = $("#choices");
const token = () => $("[name=csrfmiddlewaretoken]").value;
const headers = () => ({ "X-CSRFToken": token(), Accept: "application/json" });
const size = n => { for (const [unit, name] of [[2 ** 30, "GB"], [2 ** 20, "MB"], [2 ** 10, "KB"]]) if (n >= unit) return `${(n / unit).toFixed(1)} ${name}`; return `${n} bytes`; };

/* what the server says in a sentence, or that it does not answer */
const sentence = async reply => {
  try { const said = await reply.json(); return said.message || said.error || reply.statusText; } catch { return `The server answers ${reply.status}`; }
};
const post = async (url, body) => {
  const reply = await fetch(url, { method: "POST", headers: headers(), body });
  if (!reply.ok) throw new Error(await sentence(reply));
  return reply;
};

/* ---- what is typed is saved, and a choice that was not checked is checked again ------------------ */
let saving, changed = false;
const saveAt = form?.getAttribute("data-save"); // form.dataset is its field of that name
const save = async () => {
  const note = $("[data-saved]", form);
  try { await post(saveAt, said()); note.textContent = $("[data-go]", form)?.disabled ? "saved; check it again to compute it so" : "saved"; changed = false; }
  catch (error) { note.textContent = error instanceof TypeError ? "not saved: no connection" : error.message; }
};
/* whether the fields say what the check has seen; 0.50 is 0.5 */
const seen = form?.hasAttribute("data-checked") && JSON.parse(form.getAttribute("data-checked"));
const same = (a, b) => a === b || (a !== "" && b !== "" && Number(a) === Number(b));
const OPEN = ["csrfmiddlewaretoken", "go", "name", "dataset", "max_tokens", "series", "step"]; // what the check has nothing to say of
const asFound = field => field.matches(".detected") && same(field.value, field.placeholder) && seen?.[field.name] == null; // typed, and no correction
const asChecked = () => [...form.elements].every(field => !field.name || OPEN.includes(field.name) || asFound(field) || same(field.value, String(seen[field.name] ?? "")));
const said = () => { const data = new FormData(form); for (const field of form.elements) if (field.name && asFound(field)) data.set(field.name, ""); return data; };
const dataOf = {}; // data sets chosen before, by language model
if (form) {
  const fields = form.elements, go = $("[data-go]", form);
  let lm = fields.lm.value;
  form.addEventListener("input", ev => {
    if (ev.target.name === "lm") { // each data set is tokenized for one
      dataOf[lm] = fields.dataset.value; lm = ev.target.value;
      fields.dataset.value = dataOf[lm] ?? "";
    }
    changed = true; clearTimeout(saving); saving = setTimeout(save, 400);
    if (go) { go.disabled = !asChecked(); $("[data-saved]", form).textContent = go.disabled ? "check it again to compute it so" : ""; }
  });
  form.addEventListener("change", ev => { if (asFound(ev.target)) ev.target.value = ""; });
  form.addEventListener("submit", () => { clearTimeout(saving); changed = false; }); // what is sent is saved with it
  addEventListener("pagehide", () => { if (changed) fetch(saveAt, { method: "POST", headers: headers(), body: said(), keepalive: true }); });
}

if (!zone) return;

/* ---- the list of files ---------------------------------------------------------------------------- */
const entries = new Map(); // by name
const lineOf = name => $$("li", list).find(li => li.dataset.name === name);
const newLine = (name, total) => {
  const bar = el("div", { className: "prog" }, el("i"));
  bar.setAttribute("role", "progressbar"); bar.setAttribute("aria-label", name); bar.setAttribute("aria-valuemin", 0); bar.setAttribute("aria-valuemax", 100);
  const li = el("li", {}, el("span", { className: "ell mono", textContent: name, title: name }), bar, el("span", { className: "num mut" }), el("span", { className: "row" }));
  li.dataset.name = name; li.dataset.size = total;
  list.append(li);
  return li;
};
const say = (li, text, wrong = false) => {
  const line = $(".x", li) ?? li.appendChild(el("span"));
  line.className = wrong ? "x e" : "x"; line.textContent = text; line.hidden = !text;
  if (wrong) line.setAttribute("role", "alert"); else line.removeAttribute("role");
};
const progress = (entry, sent) => {
  const share = entry.file.size ? 100 * sent / entry.file.size : 100, bar = $(".prog", entry.li);
  bar.style.setProperty("--v", share); bar.setAttribute("aria-valuenow", Math.round(share));
  bar.className = entry.done ? "prog done" : entry.paused ? "prog idle" : "prog";
  $(".num", entry.li).textContent = entry.done ? size(entry.file.size) : `${size(sent)} of ${size(entry.file.size)}`;
};
const button = (text, label, act) => {
  const made = el("button", { type: "button", className: "btn quiet", textContent: text, onclick: act });
  made.setAttribute("aria-label", label); return made;
};
const tools = entry => {
  const box = $(".row", entry.li), focused = box.contains(document.activeElement);
  const kids = [];
  if (!entry.done) kids.push(entry.paused ? button("Resume", `Resume ${entry.name}`, () => resume(entry)) : button("Pause", `Pause ${entry.name}`, () => pause(entry)));
  kids.push(button("✕", `Remove ${entry.name}`, () => remove(entry.li)));
  box.replaceChildren(...kids);
  if (focused) kids[0].focus();
};

/* ---- sending -------------------------------------------------------------------------------------- */
const AGAIN = [0, 1000, 2000, 3000, 5000, 5000, 10000, 10000, 20000, 30000, 60000], PIECE = 8 * 2 ** 20;
const remember = (url, file) => { try { localStorage["upload:" + url] = file.lastModified; } catch { /* then only name and size tell */ } };
const isAnother = (url, file) => { try { const known = localStorage["upload:" + url]; return known && +known !== file.lastModified; } catch { return false; } };
const passing = error => { const status = error.originalResponse?.getStatus() ?? 0; return !status || status >= 500 || [409, 423, 429, 460].includes(status); };
const why = error => { const body = error.originalResponse?.getBody(); try { return JSON.parse(body).message || body; } catch { return body || "No answer from the server."; } };

const send = entry => {
  const { file, li } = entry;
  entry.upload = new window.tus.Upload(file, {
    endpoint: zone.dataset.import + "/files", uploadUrl: li.dataset.url || null, chunkSize: PIECE, retryDelays: AGAIN, headers: headers(),
    metadata: { filename: entry.name, filetype: file.type }, storeFingerprintForResuming: false,
    onUploadUrlAvailable: () => { li.dataset.url = new URL(entry.upload.url, location.href).pathname; remember(li.dataset.url, file); },
    onShouldRetry: error => { const again = passing(error); if (again) say(li, "The connection is lost; it goes on by itself once it is back."); return again; },
    onProgress: sent => { say(li, ""); progress(entry, sent); },
    onError: error => { entry.failed = true; entry.paused = true; say(li, passing(error) ? "The connection is lost. Resume goes on where it stopped." : why(error), true); tools(entry); },
    onSuccess: () => { entry.done = true; li.dataset.complete = ""; say(li, ""); progress(entry, file.size); tools(entry); finish(); },
  });
  entry.upload.start();
};
const pause = entry => { entry.paused = true; entry.upload.abort(); say(entry.li, "Paused."); tools(entry); $(".prog", entry.li).className = "prog idle"; };
const resume = entry => { entry.paused = entry.failed = false; say(entry.li, ""); tools(entry); send(entry); };
addEventListener("online", () => entries.forEach(entry => { if (entry.failed && !entry.done) resume(entry); }));
addEventListener("beforeunload", ev => { if ([...entries.values()].some(entry => !entry.done && !entry.paused)) ev.preventDefault(); });

const remove = async li => {
  const entry = entries.get(li.dataset.name);
  if (entry && !entry.done) entry.upload?.abort();
  if (li.dataset.url) {
    const reply = await fetch(li.dataset.url, { method: "DELETE", headers: { ...headers(), "Tus-Resumable": "1.0.0" } });
    if (!reply.ok && ![404, 410].includes(reply.status)) return say(li, await sentence(reply), true);
  }
  entries.delete(li.dataset.name); li.remove(); $("#fi").focus();
  return true;
};
const busy = () => [...entries.values()].some(entry => !entry.done);
list.addEventListener("click", async ev => {
  const at = ev.target.closest("[data-remove]"), checked = $("#choices");
  if (at && await remove(at.closest("li")) && checked && !busy()) location.reload(); // what was found was found in that file
});

/* the import that files go to: begun with the first of them; the address is then its own, so that a reload loses nothing */
let opening;
const open = () => opening ??= (async () => {
  if (zone.dataset.import) return;
  const reply = await post(zone.dataset.create, new FormData()), made = await reply.json();
  zone.dataset.import = made.url ? new URL(made.url, location.href).pathname : `/imports/${made.key}`;
  history.replaceState(null, "", zone.dataset.import);
})();

const add = async found => {
  if (!found.length) return;
  try { await open(); } catch (error) { opening = null; return toastWrong(error instanceof TypeError ? "No answer from the server" : error.message); }
  for (const { file, name } of found) {
    let li = lineOf(name);
    if (li && "complete" in li.dataset && +li.dataset.size === file.size && !isAnother(li.dataset.url, file)) { toast(`${name} is here already`); continue; }
    if (li && (+li.dataset.size !== file.size || isAnother(li.dataset.url, file))) { await remove(li); li = null; }
    const before = entries.get(name);
    if (before && !before.paused && !before.done) continue;
    const entry = { file, name, li: li ?? newLine(name, file.size), paused: false, done: false };
    entries.set(name, entry);
    progress(entry, 0); say(entry.li, ""); tools(entry); send(entry);
  }
};
const toastWrong = message => { const note = $("[data-refused]") ?? zone.after(el("div", { className: "note err" })) ?? zone.nextElementSibling; note.dataset.refused = ""; note.setAttribute("role", "alert"); note.textContent = message; };

/* once all is there, a worker looks at it */
let checking;
const finish = () => {
  clearTimeout(checking);
  checking = setTimeout(async () => {
    const lines = $$("li", list);
    if (!lines.length || lines.some(li => !("complete" in li.dataset))) return;
    try { await post(zone.dataset.import + "/check", form ? new FormData(form) : new FormData()); location.replace(zone.dataset.import); }
    catch (error) { toastWrong(error.message); }
  }, 400);
};

/* ---- choosing and dropping ------------------------------------------------------------------------ */
for (const field of [$("#fi"), $("#fo")]) {
  field.addEventListener("change", () => { add([...field.files].map(window.app.plain)); field.value = ""; });
  field.addEventListener("keydown", ev => { if (ev.key === "Enter") { ev.preventDefault(); field.click(); } }); // not every browser does
}

window.app.onDrop(zone, add);
if (window.app.brought) add(window.app.brought); // dropped on another page, which has become this one
})();
