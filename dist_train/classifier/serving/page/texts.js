/* Texts of the page, from texts.json: a table for each language, all with the same keys. A text that depends on a number n
   has a key for each plural form (.one, .other). Nothing that a visitor reads is written anywhere else. */

import { $, make } from "./dom.js";

const KEPT = "dist_train-language";
const tables = await (await fetch(new URL("texts.json", import.meta.url))).json();
let language = choose();

function choose() {
  const wanted = [localStorage.getItem(KEPT), ...navigator.languages.map(name => name.slice(0, 2))];
  return wanted.find(name => name in tables) || "en";
}

/* Return a text with its values filled in. */
export function t(key, values = {}) {
  const table = tables[language];
  const text = table[key] ?? table[`${key}.${new Intl.PluralRules(language).select(values.n)}`];
  return text.replace(/\{(\w+)\}/g, (_, name) => typeof values[name] === "number" ? number(values[name]) : values[name]);
}

/* Return the line for what the server could not do: by its code, or in the server's English where it has none. */
export function problem({ code, values, detail }) {
  const known = [`error.${code}`, `error.${code}.other`].some(key => key in tables[language]);
  return known ? t(`error.${code}`, values) : t("error.english", { detail });
}

/* Return what a change of the model did; in English where an older version has made it. */
export function deeds({ text, parts, more }) {
  if (!parts.length) return text;
  const lines = parts.map(({ kind, name, new: fresh, photos: n, undone }) => {
    const line = t(`deed.${kind}`, { name, fresh, n });
    return undone ? t("deed.undone", { line }) : line;
  });
  return [...lines, ...(more ? [t("deed.more", { n: more })] : [])].join("; ");
}

export const number = (value, digits = 0) => new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);

/* Return a share of 1 in percent. */
export const percent = (share, digits = 0) => new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: digits }).format(share);

export const moment = time => new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(new Date(time));

/* Return the first names of a list, and an ellipsis for the others. */
export const names = (list, count = 3) => list.slice(0, count).join(", ") + (list.length > count ? ", …" : "");

/* Fill in the texts of the document. */
export function translate() {
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", t(node.dataset.label));
  for (const node of document.querySelectorAll("[data-hint]")) node.placeholder = t(node.dataset.hint);
}

/* Fill in the texts, and let the visitor switch the language, which this browser remembers; show: what else to write anew. */
export function offerLanguages(show) {
  const options = Object.keys(tables).map(code => make("option", { value: code, lang: code, selected: code === language }, tables[code]["language.name"]));
  $("language").replaceChildren(...options);
  $("language").onchange = () => { language = $("language").value; localStorage.setItem(KEPT, language); translate(); show(); };
  translate();
}
