/* Files that a visitor gives: which of them are photos, which folder each lies in, and how many go into an upload. */

import { about } from "./model.js";
import { names, t } from "./texts.js";

const BATCH = 16;

/* Separate photos from other files by the ends of their names, as the program does; a file of unknown type counts as a
   photo, and the server looks at its bytes. The text names the others. */
export function separate(files) {
  const photos = [], others = [];
  for (const file of files) {
    const end = file.name.slice(file.name.lastIndexOf(".")).toLowerCase();
    const inSystem = folders(file).some(name => isSystem(name, about.system.folders)) || isSystem(file.name, about.system.files);
    (!inSystem && (about.suffixes.includes(end) || !file.type) ? photos : others).push(file);
  }
  const passed = others.length ? t("passed", { n: others.length, names: names(others.map(file => file.name)) }) : "";
  return { photos, passed: photos.length ? passed : `${t("passed.none")} ${passed}` };
}

const isSystem = (name, list) => name.startsWith(".") || list.includes(name.toLowerCase());

/* Return the folders of a file, the outermost first, as far as the browser tells them. */
export const folders = file => (file.place ?? file.webkitRelativePath ?? "").split("/").filter(Boolean).slice(0, -1);

/* Return the files that were dropped, those in folders included; their place is kept. */
export async function dropped(data) {
  const entries = [...data.items].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some(entry => entry.isDirectory)) return [...data.files];
  const files = [];
  const walk = async entry => {
    if (entry.isFile) {
      const file = await new Promise((take, fail) => entry.file(take, fail));
      file.place = entry.fullPath;
      files.push(file);
      return;
    }
    const reader = entry.createReader();   // it gives a hundred entries at a time
    for (let inside; (inside = await new Promise((take, fail) => reader.readEntries(take, fail))).length;)
      for (const inner of inside) await walk(inner);
  };
  for (const entry of entries) await walk(entry);
  return files;
}

/* Let a node take dropped files. */
export function takeDrops(node, take, fault) {
  const over = on => event => { event.preventDefault(); event.stopPropagation(); node.classList.toggle("over", on); };
  for (const kind of ["dragenter", "dragover"]) node.addEventListener(kind, over(true));
  node.addEventListener("dragleave", event => { if (!node.contains(event.relatedTarget)) node.classList.remove("over"); });
  node.addEventListener("drop", async event => {
    over(false)(event);
    try { take(await dropped(event.dataTransfer)); } catch { fault(new Error(t("dropped.fault"))); }
  });
}

/* Cut photos into batches by number and size, so that no upload is over the server's limit. A photo that is over it by
   itself gets a batch of its own, and the server's answer. */
export function* batches(photos) {
  let part = [], size = 0;
  for (const photo of photos) {
    if (part.length === BATCH || (part.length && size + photo.file.size > .9 * about.limits.upload)) { yield part; part = []; size = 0; }
    part.push(photo);
    size += photo.file.size;
  }
  if (part.length) yield part;
}
