/* The classes that the model tells apart: a tile each, with a picture and the number of photos. */

import * as api from "./api.js";
import { newClass, showClass, showHistory } from "./dialogs.js";
import { $, button, make, picture } from "./dom.js";
import { fault } from "./message.js";
import { about, undo, watch } from "./model.js";
import { deeds, t } from "./texts.js";

const MOST = 240;   // tiles at a time
const STRIP = 9;    // classes in the first view

/* Return the picture of a class, or the first letter of its name. */
function face(entry) {
  if (entry.picture) return picture(api.pictureAddress(entry.picture));
  return make("span", { className: "letter", "aria-hidden": "true" }, [...entry.name][0].toUpperCase());
}

const photos = entry => entry.photos ? t("photos", { n: entry.photos }) : t("photos.none");

function tile(entry) {
  const open = button("", () => showClass(entry).catch(fault), { "aria-label": t("class.open", { name: entry.name, photos: photos(entry) }) });
  open.append(face(entry), make("span", { className: "name" }, entry.name), make("span", { className: "soft" }, photos(entry)));
  return make("li", {}, open);
}

/* Show the classes, those that were added last first. */
export function draw() {
  const added = about.classes.filter(entry => entry.added).reverse();
  const ordered = [...added, ...about.classes.filter(entry => !entry.added)];
  const part = $("filter").value.trim().toLowerCase();
  const matching = ordered.filter(entry => entry.name.toLowerCase().includes(part));
  $("tiles").replaceChildren(...matching.slice(0, MOST).map(tile));
  const more = matching.length - MOST;
  $("more").textContent = more > 0 ? t("classes.more", { n: more }) : matching.length ? "" : t("classes.none");
  $("undo").disabled = !about.last;
  $("last").textContent = about.last ? t("last", { text: deeds(about.last) }) : "";
  $("class-names").replaceChildren(...about.classes.map(entry => make("option", { value: entry.name })));
  drawStrip(ordered);
}

/* Show a few classes in the first view, and the way to all. */
function drawStrip(ordered) {
  const few = ordered.slice(0, STRIP).map(entry => make("li", {}, face(entry), make("span", { className: "name" }, entry.name)));
  $("known").replaceChildren(...few, make("li", {}, make("a", { href: "#classes" }, t("knows.all", { n: ordered.length }))));
}

/* Let the visitor find, add and undo. */
export function offerClasses() {
  $("filter").oninput = draw;
  $("new").onclick = newClass;
  $("history").onclick = () => showHistory().catch(fault);
  $("undo").onclick = async () => {
    $("undo-fault").textContent = "";
    try { await undo(); } catch (error) { $("undo-fault").textContent = error.message; }
  };
}

watch(draw);
