/* Photos and their answers: a card each. */

import * as api from "./api.js";
import { $, button, make, picture } from "./dom.js";
import { batches, separate } from "./files.js";
import { say, tell } from "./message.js";
import { about, watch } from "./model.js";
import { namingForm } from "./naming.js";
import { names, percent, problem, t } from "./texts.js";

const shown = [];    // { file, url, card, id, answer, fault, before, chosen }, the newest first

/* Show photos of any files, and what the model takes them for. */
export async function show(files) {
  const { photos, passed } = separate(files);
  if (!photos.length) return say(passed, { bad: true });
  const fresh = photos.map(file => ({ file, url: URL.createObjectURL(file) }));
  for (const photo of [...fresh].reverse()) {
    photo.card = make("article", { className: "card", "aria-label": photo.file.name });
    $("cards").prepend(photo.card);
    shown.unshift(photo);
    draw(photo);
  }
  arrange();
  await ask(fresh, passed);
}

/* Ask the server what is on photos, a batch at a time. */
async function ask(photos, passed = "") {
  let done = 0, unread = 0;
  tell(t("looking", { n: photos.length }));
  for (const part of batches(photos)) {
    let results;
    try { results = await api.classify(part.map(photo => photo.file), share => tell((done + share * part.length) / photos.length)); }
    catch (error) { results = part.map(() => ({ fault: error })); }
    part.forEach((photo, place) => take(photo, results[place]));
    unread += results.filter(result => result.fault).length;
    done += part.length;
  }
  const lines = [t("looked", { n: done - unread }), unread ? t("unread", { n: unread }) : "", passed];
  say(lines.filter(Boolean).join(" "), { bad: unread > 0 });
}

/* Ask again after a change of the classes: by the keys that the server remembers, else by another upload. */
async function askAgain() {
  const known = shown.filter(photo => photo.id), forgotten = [];
  if (!known.length) return;
  const ids = known.map(photo => photo.id), most = about.limits.remembered, results = [];
  for (let begin = 0; begin < ids.length; begin += most) results.push(...await api.predictAgain(ids.slice(begin, begin + most)));
  known.forEach((photo, place) => results[place] ? take(photo, { ...results[place], id: photo.id }) : forgotten.push(photo));
  if (forgotten.length) await ask(forgotten);
}

function take(photo, result) {
  const name = photo.answer?.predictions[0].name;
  photo.fault = result.fault;
  photo.answer = result.fault ? undefined : result;
  photo.id = result.id;
  photo.before = name && photo.answer && name !== photo.answer.predictions[0].name ? name : undefined;
  draw(photo);
}

/* Write a photo's card. What a visitor has typed on it stays. */
function draw(photo) {
  const { file, answer, fault, before, card } = photo;
  const typed = card.querySelector("input[type=text]")?.value;
  const choose = make("input", { type: "checkbox", checked: photo.chosen === true, "aria-label": t("card.choose", { name: file.name }) });
  choose.onchange = () => { photo.chosen = choose.checked; arrange(); };
  const close = button("×", () => put(photo), { className: "round", "aria-label": t("card.close", { name: file.name }) });
  const naming = namingForm(() => [file], t("name.label", { name: file.name }), t("name.hint"), () => { photo.chosen = false; arrange(); });
  card.replaceChildren(
    make("div", { className: "photo" }, picture(photo.url), ...(answer ? [choose] : []), close),
    make("div", { className: "says" },
      ...(fault ? [make("p", { className: "fault" }, fault.message ?? problem(fault))] : answer ? [...firstLines(answer), ...(before ? [make("p", { className: "soft" }, t("card.before", { name: before }))] : [])] : [make("p", { className: "answer wait" }, "…")]),
      ...(answer ? [others(answer, naming.teach), naming.form] : []),
      make("p", { className: "file" }, file.name)));
  if (typed) { const field = card.querySelector("input[type=text]"); if (field) { field.value = typed; field.oninput(); } }
}

/* Return the lines of the first answer: its name and share, or that the model is not sure. */
export function firstLines({ predictions: [best], sure, strange }) {
  const share = percent(best.probability);
  if (sure) return [make("p", { className: "answer" }, make("b", {}, best.name), " ", make("span", {}, share))];
  const unlike = strange ? [make("p", { className: "soft" }, t("card.strange"))] : [];
  return [make("p", { className: "answer unsure" }, t("card.unsure")), make("p", {}, t("card.maybe", { name: best.name, share })), ...unlike];
}

/* Return the other answers, collapsed to a line; each can be named the right one. */
function others({ predictions, familiarity }, teach) {
  const rest = predictions.slice(1), list = make("ol");
  for (const { name, probability } of predictions) {
    const bar = make("i");
    bar.style.inlineSize = `${100 * probability}%`;
    list.append(make("li", {}, make("span", { className: "name" }, name), make("span", {}, percent(probability, 1)), bar,
      button(t("card.this"), () => teach(name), { className: "small", "aria-label": t("card.this.label", { name }) })));
  }
  const known = familiarity === undefined ? [] : [make("p", { className: "soft" }, t("card.familiar", { share: percent(familiarity / 100) }))];
  if (!rest.length) return make("div", {}, ...known);
  const line = t("card.or", { names: names(rest.map(({ name }) => name), 4) });
  return make("details", {}, make("summary", { "aria-label": t("card.others", { names: names(rest.map(({ name }) => name), 9) }) }, line), list, ...known);
}

function put(photo) {
  shown.splice(shown.indexOf(photo), 1);
  photo.card.remove();
  URL.revokeObjectURL(photo.url);
  arrange();
}

/* Show what depends on which photos there are: the first view while there are none, and the form for chosen photos. */
function arrange() {
  document.body.classList.toggle("begun", shown.length > 0);
  const chosen = shown.filter(photo => photo.chosen);
  $("chosen").hidden = !chosen.length;
  if (!chosen.length) return $("chosen").replaceChildren();
  const clear = () => { for (const photo of chosen) { photo.chosen = false; draw(photo); } arrange(); };
  const { form } = namingForm(() => chosen.map(photo => photo.file), t("chosen.hint"), t("chosen.hint"), clear);
  const count = make("span", {}, t("chosen", { n: chosen.length }));
  const field = $("chosen").querySelector("input");
  if (field) form.querySelector("input").value = field.value;
  $("chosen").replaceChildren(count, form, button(t("chosen.none"), clear));
  form.querySelector("input").oninput();
}

/* Show the photos again, in another language. */
export function redraw() {
  shown.forEach(draw);
  arrange();
}

watch(askAgain);
