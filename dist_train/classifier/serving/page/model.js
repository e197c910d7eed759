/* The model as the server describes it, and its changes. */

import * as api from "./api.js";
import { say, tell } from "./message.js";
import { deeds, t } from "./texts.js";

export let about = { classes: [], limits: {} };
const watchers = [];

/* Have a function called after each change of the model. It may be asynchronous: a change is over when it is. */
export const watch = shown => watchers.push(shown);

/* Ask the server what the model is now, and show it. */
export async function refresh() {
  about = await api.describe();
  for (const shown of watchers) await shown();
}

/* Return the class of a name or wnid. */
export function find(name) {
  const wanted = name.trim().normalize("NFC");
  return about.classes.find(entry => wanted && (entry.name === wanted || entry.wnid === wanted));
}

/* Make a change, show what follows from it, and offer to undo it. */
export async function change(action, text) {
  await action();
  await refresh();
  say(text, { undo });
}

/* Undo the last change, whoever made it. */
export async function undo() {
  const { last } = about;
  await api.undo();
  await refresh();
  say(t("undone", { text: deeds(last) }));
}

/* Make a class learn from photos, a new class or a known one. */
export async function learn(name, files) {
  const known = find(name), n = files.length;
  name = known ? known.name : name.trim();
  tell(t("learning", { name }));
  await change(() => (known ? api.addPhotos : api.addClass)(name, files, tell), t(known ? "learned.more" : "learned.new", { name, n }));
}
