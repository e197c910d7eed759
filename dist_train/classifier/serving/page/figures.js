/* The figures of a measurement, drawn: headline, confusions, mistakes, calibration, thresholds, classes. */

import { curves, reliability } from "./charts.js";
import { make, picture } from "./dom.js";
import { number, percent, t } from "./texts.js";

const MISTAKES = 12, PAIRS = 8, PICTURES = 4;

const block = (title, ...content) => make("section", { className: "block" }, make("h3", {}, title), ...content);
const cells = (tag, values) => make("tr", {}, ...values.map(value => make(value ? tag : "td", {}, value)));
const rows = (head, body) => make("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": head.join(", ") },
  make("table", {}, make("thead", {}, cells("th", head)), make("tbody", {}, ...body)));

/* Return what a visitor wants to know first. */
export function headline(figures) {
  const fact = (value, text, more) => make("div", { className: "fact" }, make("b", {}, value), make("span", {}, text), make("small", { className: "soft" }, more));
  const { low, high } = figures.interval;
  return make("div", { className: "facts" },
    fact(percent(figures.top1, 1), t("measure.right"), t("measure.interval", { low: percent(low, 1), high: percent(high, 1) })),
    fact(percent(figures.top5, 1), t("measure.right.top", { n: 5 }), t("measure.count", { n: figures.photos, classes: figures.classes.length })),
    fact(percent(figures.sure.right, 1), t("measure.sure", { share: percent(figures.sure.answered) }), ""));
}

/* Return the pairs of classes that are confused most often, with pictures; photo: returns the photo of a key. */
export function confusions(figures, photo) {
  const pairs = figures.confusions.slice(0, PAIRS).map(({ truth, answer, photos }) => make("li", {},
    make("div", { className: "faces" }, ...photos.slice(0, PICTURES).map(id => picture(photo(id).url))),
    make("span", {}, t("measure.confusion", { truth, answer })), make("span", { className: "soft" }, t("measure.times", { n: photos.length }))));
  return block(t("measure.confusions"), pairs.length ? make("ul", { className: "pairs" }, ...pairs) : make("p", {}, t("measure.confusions.none")));
}

/* Return the wrong answers that the model was surest of. */
export function mistakes(figures, photo) {
  if (!figures.worst.length) return make("div");
  return block(t("measure.worst"), make("ul", { className: "mistakes" }, ...figures.worst.slice(0, MISTAKES).map(({ id, truth, answer, probability }) =>
    make("li", {}, picture(photo(id).url), make("span", {}, t("measure.worst.line", { truth, answer })), make("span", { className: "soft" }, percent(probability)),
      make("span", { className: "file" }, photo(id).file.name)))));
}

/* Return the reliability diagram. */
export function calibration({ calibration: { error, bins }, photos }) {
  const title = t("measure.calibration"), points = bins.map(bin => ({ ...bin, share: bin.photos / photos }));
  const body = bins.map(({ said, right, photos: n }) => cells("td", [percent(said), percent(right), number(n)]));
  return block(title, make("p", { className: "soft" }, t("measure.calibration.text", { ece: percent(error, 1) })),
    reliability(title, t("measure.calibration.x"), t("measure.calibration.y"), points),
    make("details", {}, make("summary", {}, t("measure.table")), rows([t("measure.said"), t("measure.class.right"), t("measure.class.photos")], body)));
}

/* Return what each threshold gives. */
export function thresholds(figures, threshold) {
  const title = t("measure.thresholds"), given = figures.thresholds;
  const line = (kind, label) => ({ kind, label, points: given.filter(point => point[kind] !== null).map(point => [point.threshold, point[kind]]) });
  const body = given.map(point => cells("td", [percent(point.threshold), percent(point.answered), point.right === null ? "–" : percent(point.right)]));
  const legend = make("p", { className: "legend" }, make("span", { className: "right" }, t("measure.answered.right")), make("span", { className: "answered" }, t("measure.answered")));
  return block(title, make("p", { className: "soft" }, t("measure.thresholds.text")),
    curves(title, t("measure.thresholds.x"), t("measure.thresholds.y"), [line("answered"), line("right")], threshold), legend,
    make("details", {}, make("summary", {}, t("measure.table")), rows([t("measure.thresholds.x"), t("measure.answered"), t("measure.answered.right")], body)));
}

/* Return the accuracy of each class, the worst first. */
export function classTable({ classes }) {
  const body = [...classes].sort((one, other) => one.right / one.photos - other.right / other.photos).map(({ name, photos, right }) => {
    const bar = make("i");
    bar.style.inlineSize = `${100 * right / photos}%`;
    return make("tr", {}, make("th", { scope: "row" }, name), make("td", { className: "bar" }, bar), make("td", {}, percent(right / photos)), make("td", {}, `${number(right)} / ${number(photos)}`));
  });
  const head = [t("measure.class"), "", t("measure.class.right"), t("measure.class.photos")];
  return block(t("measure.classes"), rows(head, body));
}
