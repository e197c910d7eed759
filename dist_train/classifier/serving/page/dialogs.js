/* The dialogs: a new class, a class with its photos, the history. */

import * as api from "./api.js";
import { $, button, make, picture } from "./dom.js";
import { change, find, learn } from "./model.js";
import { makeTray } from "./tray.js";
import { deeds, moment, t } from "./texts.js";

/* Show a dialog with a title and content; closed: called when it is closed. */
function open(title, content, closed = () => {}) {
  const dialog = $("dialog");
  const close = button("×", () => dialog.close(), { className: "round", "aria-label": t("close") });
  dialog.replaceChildren(make("div", { className: "top" }, make("h2", { id: "dialog-title" }, title), close), ...content);
  dialog.onclose = () => { dialog.replaceChildren(); closed(); };
  dialog.onclick = event => { if (event.target === dialog) dialog.close(); };   // beside it
  if (!dialog.open) dialog.showModal();
}

const faultLine = () => make("p", { className: "fault", role: "alert" });

/* Return what runs an action of a form: its button is out of use meanwhile, and what goes wrong is said in its line. */
function guarded(line, send, action) {
  return async event => {
    event?.preventDefault();
    line.textContent = "";
    send.disabled = true;
    try { await action(); } catch (error) { line.textContent = error.message; }
    send.disabled = false;
  };
}

/* Let the visitor add a class. */
export function newClass() {
  const line = faultLine(), send = button(t("new.send"), undefined, { type: "submit", className: "main", disabled: true });
  const name = make("input", { type: "text", autocomplete: "off", maxLength: 200, required: true, id: "new-name" });
  const ready = () => { send.disabled = !name.value.trim() || !tray.files.length; };
  const tray = makeTray(ready, error => { line.textContent = error?.message ?? ""; });
  name.oninput = ready;
  const form = make("form", {}, make("label", {}, t("new.name"), name), make("p", { className: "soft" }, t("new.text")), tray.node, line, send);
  form.onsubmit = guarded(line, send, async () => {
    if (!find(name.value)) await learn(name.value, tray.files);
    else await api.addClass(name.value.trim(), tray.files);   // the server says that it exists
    $("dialog").close();
  });
  open(t("new.title"), [form], tray.close);
  name.focus();
}

/* Show a class: its photos, more photos for it, another name, and its end. */
export async function showClass(entry) {
  const tray = morePhotos(entry);
  open(entry.name, [await keptPhotos(entry), tray.node, renaming(entry), removing(entry)], tray.close);
}

/* Write the dialog of a class anew after a change of it. */
async function showAgain(name) {
  const entry = find(name);
  if (entry) await showClass(entry);
}

/* Return the photos that the model keeps of a class; chosen photos can be removed. */
async function keptPhotos({ name }) {
  const line = faultLine(), chosen = new Set(), grid = make("div", { className: "tray kept" });
  const send = button("", undefined, { className: "danger", hidden: true });
  let photos = [];
  try { photos = await api.photosOf(name); } catch (error) { line.textContent = error.message; }
  for (const photo of photos) {
    const file = photo.name || photo.id, label = photo.added ? t("class.photo", { name: file, day: photo.added }) : file;
    const item = button(photo.picture ? picture(api.pictureAddress(photo.picture)) : file, () => {
      chosen.has(photo.id) ? chosen.delete(photo.id) : chosen.add(photo.id);
      item.setAttribute("aria-pressed", chosen.has(photo.id));
      send.hidden = !chosen.size;
      send.textContent = t("class.photos.remove", { n: chosen.size });
    }, { "aria-label": label, "aria-pressed": "false", title: file });
    grid.append(item);
  }
  send.onclick = guarded(line, send, async () => {
    const n = chosen.size;
    await change(() => api.removePhotos(name, [...chosen]), t("class.photos.removed", { n, name }));
    await showAgain(name);
  });
  const hint = make("p", { className: "soft" }, t(photos.length ? "class.photos.hint" : "class.photos.none"));
  return make("section", {}, make("h3", {}, t("class.photos")), hint, grid, send, line);
}

/* Return the form that adds photos to a class. */
function morePhotos({ name }) {
  const line = faultLine(), send = button(t("class.more.send"), undefined, { type: "submit", className: "main", hidden: true });
  const tray = makeTray(() => { send.hidden = !tray.files.length; }, error => { line.textContent = error?.message ?? ""; });
  const form = make("form", {}, make("h3", {}, t("class.more")), tray.node, line, send);
  form.onsubmit = guarded(line, send, async () => { await learn(name, tray.files); tray.close(); await showAgain(name); });
  return { node: form, close: tray.close };
}

/* Return the form that renames a class. */
function renaming({ name }) {
  const line = faultLine(), send = button(t("class.rename"), undefined, { type: "submit" });
  const field = make("input", { type: "text", autocomplete: "off", maxLength: 200, required: true, value: name });
  const form = make("form", {}, make("label", {}, t("class.name"), make("span", { className: "row" }, field, send)), line);
  form.onsubmit = guarded(line, send, async () => {
    const fresh = field.value.trim();
    if (fresh === name) return;
    await change(() => api.renameClass(name, fresh), t("class.renamed", { name, fresh }));
    await showAgain(fresh);
  });
  return form;
}

/* Return the button that removes a class when it is pressed twice. */
function removing({ name }) {
  const line = faultLine(), send = button(t("class.remove"), undefined, { className: "danger" });
  const remove = guarded(line, send, async () => {
    await change(() => api.removeClass(name), t("class.removed", { name }));
    $("dialog").close();
  });
  send.onclick = () => { send.textContent = t("class.remove.sure", { name }); send.onclick = remove; };
  return make("section", {}, send, line);
}

/* Show what was changed, the newest first. */
export async function showHistory() {
  const list = make("ol", { className: "changes" });
  open(t("history.title"), [list]);
  const changes = await api.history();
  for (const change of [...changes].reverse()) list.append(make("li", {}, make("time", { dateTime: change.time }, moment(change.time)), make("span", {}, deeds(change))));
  if (!changes.length) list.replaceWith(make("p", {}, t("history.none")));
}
