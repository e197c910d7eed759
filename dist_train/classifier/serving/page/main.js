/* The page: which view is shown, which model, which language; files that are dropped or pasted. */

import * as answers from "./answers.js";
import * as api from "./api.js";
import * as camera from "./camera.js";
import * as classes from "./classes.js";
import * as measure from "./measure.js";
import { $, make } from "./dom.js";
import { dropped } from "./files.js";
import { fault, say } from "./message.js";
import { about, refresh, watch } from "./model.js";
import { deeds, number, offerLanguages, percent, t } from "./texts.js";

const VIEWS = ["photos", "classes", "measure"];

/* Show the view that the address names. */
function route() {
  const view = location.hash.slice(1);
  if (!VIEWS.includes(view) && location.hash) return;   // a link inside a view
  for (const name of VIEWS) $(name).hidden = name !== (view || "photos");
  for (const link of document.querySelectorAll("nav a"))
    link.hash === `#${view || "photos"}` ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  if (view && view !== "photos") camera.stop();
}

/* Show what the model is: a line in the header, and more of it behind the button beside it. */
function describe() {
  document.title = t("title", { name: about.name });
  $("name").textContent = about.name;
  $("line").textContent = t("line", { n: about.classes.length });
  const { upload, pixels, classes: most } = about.limits;
  const facts = {
    classes: t("about.added", { n: about.classes.length, added: about.classes.filter(entry => entry.added).length }),
    method: about.method,
    prior: about.prior && t(`about.prior.${about.prior}`),
    threshold: about.threshold ? percent(about.threshold) : "",
    limits: t("about.limits.text", { upload: number(upload / 1e6), pixels: number(pixels / 1e6), classes: most }),
    last: about.last && deeds(about.last),
  };
  $("facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value)
    .flatMap(([key, value]) => [make("dt", {}, t(`about.${key}`)), make("dd", {}, value)]));
}

/* Open the model that the address names, or the first; where there are several, let the visitor pick. */
async function openModel() {
  const models = await api.models(), wanted = new URLSearchParams(location.search).get("model");
  const { name } = models.find(entry => entry.name === wanted) ?? models[0];
  api.open(name);
  $("download").href = api.downloadAddress();
  if (models.length > 1) {
    $("models").replaceChildren(...models.map(entry => make("option", { value: entry.name, selected: entry.name === name }, entry.name)));
    $("models").onchange = () => { location.search = new URLSearchParams({ model: $("models").value }); };
    $("models").hidden = false;
    $("name").hidden = true;
  }
  await refresh();
}

/* Return what takes files: the view that is shown. It is asked before folders are read, as a visitor may go on meanwhile. */
function taker() {
  if ($("dialog").open) return () => {};   // its tray takes them
  return $("measure").hidden ? showPhotos : measure.take;
}

function showPhotos(files) {
  location.hash = "#photos";
  return answers.show(files).catch(fault);
}

/* Let the visitor give photos: chosen, taken, dropped, pasted, or an example. */
function offerPhotos() {
  for (const input of [$("files"), $("take")]) input.onchange = () => { const files = [...input.files]; input.value = ""; showPhotos(files); };
  for (const example of document.querySelectorAll(".example")) example.onclick = async () => {
    const source = example.querySelector("img").src, bytes = await (await fetch(source)).blob();
    showPhotos([new File([bytes], source.slice(source.lastIndexOf("/") + 1), { type: bytes.type })]);
  };
  addEventListener("paste", event => { if (event.clipboardData.files.length) taker()([...event.clipboardData.files]); });
  // dragenter too: files that are let go before a dragover has come to what they are on are lost otherwise.
  for (const kind of ["dragenter", "dragover"]) addEventListener(kind, event => { event.preventDefault(); document.body.classList.add("over"); });
  addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  addEventListener("drop", async event => {
    event.preventDefault();
    document.body.classList.remove("over");
    const take = taker();
    try { take(await dropped(event.dataTransfer)); } catch { fault(new Error(t("dropped.fault"))); }
  });
}

/* Write everything in another language. */
function redraw() {
  say("");
  describe();
  classes.draw();
  answers.redraw();
  measure.draw();
}

watch(describe);
offerLanguages(redraw);
offerPhotos();
classes.offerClasses();
camera.offerLive(fault);
measure.offerMeasure();
addEventListener("hashchange", route);
route();
await openModel().catch(fault);
let opened = Date.now();
addEventListener("focus", () => {   // another visitor may have changed the classes
  if (Date.now() - opened > 5000) { opened = Date.now(); refresh().catch(() => {}); }
});
document.body.dataset.ready = "";
