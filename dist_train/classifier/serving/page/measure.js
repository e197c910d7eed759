/* How good the model is on a visitor's photos: a folder of folders in, figures out. */

import * as api from "./api.js";
import { $, button, make } from "./dom.js";
import * as figured from "./figures.js";
import { batches, folders, separate } from "./files.js";
import { about, find } from "./model.js";
import { names, t } from "./texts.js";

let result;            // { figures, photos in their order, lines that account for the files }
let stopped = false;

/* Measure on the photos of a folder of folders. */
export async function take(files) {
  $("measure-fault").textContent = "";
  try { await run(files); } catch (error) { $("measure-fault").textContent = error.message; }
  $("measuring").hidden = true;
  $("ask").hidden = false;
  draw();
}

async function run(files) {
  const { photos, lines } = label(files), limit = about.limits.remembered;
  if (photos.length > limit) throw new Error(t("measure.many", { n: photos.length, limit }));
  result?.photos.forEach(photo => URL.revokeObjectURL(photo.url));
  result = undefined;
  draw();
  $("ask").hidden = true;
  $("measuring").hidden = false;
  const unread = await ask(photos);
  if (stopped) throw new Error(t("measure.stopped"));
  if (unread.length) lines.push(t("measure.unread", { n: unread.length, names: names(unread.map(photo => photo.file.name)) }));
  if (unread.length === photos.length) throw new Error(lines.join(" "));
  const seen = new Set(), read = photos.filter(({ id }) => id && !seen.has(id) && seen.add(id));
  const twice = photos.length - unread.length - read.length;
  if (twice) lines.push(t("measure.twice", { n: twice }));
  $("measured-text").textContent = t("measure.computing");
  const figures = await api.evaluate(read.map(({ id, label: truth }) => ({ id, label: truth })));
  result = { figures, lines, photos: read };
  for (const photo of read) photo.url = URL.createObjectURL(photo.file);
}

/* Return the photos that lie in folders of classes, with their class, and lines that account for all others. A folder that
   holds all others is not a class. */
function label(files) {
  const { photos, passed } = separate(files);
  const tops = new Set(photos.map(file => folders(file)[0]));
  const depth = tops.size === 1 && photos.some(file => folders(file).length > 1) ? 1 : 0;
  const labelled = [], others = new Set();
  let loose = 0;
  for (const file of photos) {
    const name = folders(file)[depth];
    if (name === undefined) loose++;
    else if (find(name)) labelled.push({ file, label: find(name).name });
    else others.add(name);
  }
  if (!photos.length || !labelled.length) throw new Error(others.size ? t("measure.none", { names: names([...others], 9) }) : loose ? t("measure.loose", { n: loose }) : passed);
  const lines = [passed, others.size ? t("measure.skipped", { n: others.size, names: names([...others], 9) }) : "", loose ? t("measure.loose", { n: loose }) : ""];
  return { photos: labelled, lines: lines.filter(Boolean) };
}

/* Have the server look at photos; return those that it cannot read. */
async function ask(photos) {
  const unread = [], n = photos.length, begun = Date.now();
  let done = 0;
  stopped = false;
  for (const part of batches(photos)) {
    if (stopped) break;
    const left = done ? duration((Date.now() - begun) / done * (n - done)) : "…";
    $("measured").value = done / n;
    $("measured-text").textContent = t("measure.progress.text", { done, n, left });
    const results = await api.classify(part.map(photo => photo.file), share => { $("measured").value = (done + share * part.length) / n; });
    part.forEach((photo, place) => {
      photo.id = results[place].id;
      if (results[place].fault) unread.push(photo);
    });
    done += part.length;
  }
  return unread;
}

function duration(milliseconds) {
  const seconds = Math.ceil(milliseconds / 1000);
  return seconds < 100 ? `${seconds} s` : `${Math.ceil(seconds / 60)} min`;
}

/* Show the figures. */
export function draw() {
  document.body.classList.toggle("measured", Boolean(result));
  if (!result) return $("result").replaceChildren();
  const { figures, photos, lines } = result;
  const told = figures.known ? [...lines, t("measure.known", { n: figures.known })] : lines;
  const save = button(t("measure.save"), () => {
    const url = URL.createObjectURL(new Blob([JSON.stringify(figures, undefined, 2)], { type: "application/json" }));
    make("a", { href: url, download: `${about.name}.json` }).click();
    URL.revokeObjectURL(url);
  });
  $("result").replaceChildren(
    make("div", { className: "soft" }, ...told.map(line => make("p", {}, line))),
    figured.headline(figures),
    figured.confusions(figures, photos),
    figured.mistakes(figures, photos),
    make("div", { className: "pair" }, figured.calibration(figures), figured.thresholds(figures, about.threshold)),
    figured.classTable(figures),
    make("div", { className: "row" }, save));
}

/* Let the visitor choose a folder, and stop. */
export function offerMeasure() {
  $("folder").onchange = () => { const files = [...$("folder").files]; $("folder").value = ""; take(files); };
  $("measure-stop").onclick = () => { stopped = true; };
}
