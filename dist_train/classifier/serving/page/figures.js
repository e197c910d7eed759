/* The figures of a measurement, drawn: headline, confusions, mistakes, calibration, thresholds, classes. */

import { curves, reliability } from "./charts.js";
import { make, picture } from "./dom.js";
import { number, percent as share, t } from "./texts.js";

const percent = (value, digits) => share(value / 100, digits);   // figures come in percent
const MISTAKES = 12, PAIRS = 8, PICTURES = 4;

const block = (title, ...content) => make("section", { className: "block" }, make("h3", {}, title), ...content);
const cells = (tag, values) => make("tr", {}, ...values.map(value => make(value ? tag : "td", {}, value)));
const rows = (head, body) => make("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": head.filter(Boolean).join(", ") },
  make("table", {}, make("thead", {}, cells("th", head)), make("tbody", {}, ...body)));

/* Return what a visitor wants to know first. */
export function headline(figures) {
  const fact = (value, text, more = "") => make("div", { className: "fact" }, make("b", {}, percent(value, 1)), make("span", {}, text), make("small", { className: "soft" }, more));
  const { photos: n, classes, of_classes: all, mean, low, high } = figures;
  return make("div", { className: "facts" },
    fact(figures.top1, t("measure.right"), t("measure.count", { n, classes, all })),
    fact(mean, t("measure.mean"), t("measure.interval", { low: percent(low, 1), high: percent(high, 1) })),
    ...(all > 5 ? [fact(figures.top5, t("measure.right.top", { n: 5 }))] : []),
    ...(figures.sure ? [fact(figures.sure_right, t("measure.sure"), t("measure.sure.share", { share: percent(figures.sure) }))] : []));
}

/* Return the pairs of classes that are confused most often, with pictures. */
export function confusions({ confusions: pairs, results }, photos) {
  const items = pairs.slice(0, PAIRS).map(({ truth, answer, photos: n }) => {
    const faces = photos.filter((_, place) => results[place].truth === truth && results[place].answer === answer);
    return make("li", {}, make("div", { className: "faces" }, ...faces.slice(0, PICTURES).map(photo => picture(photo.url))),
      make("span", {}, t("measure.confusion", { truth, answer })), make("span", { className: "soft" }, t("measure.times", { n })));
  });
  return block(t("measure.confusions"), items.length ? make("ul", { className: "pairs" }, ...items) : make("p", {}, t("measure.confusions.none")));
}

/* Return the wrong answers that the model was surest of. */
export function mistakes({ results }, photos) {
  const wrong = results.map((result, place) => ({ ...photos[place], ...result })).filter(({ rank }) => rank !== 1);
  wrong.sort((one, other) => other.probability - one.probability);
  if (!wrong.length) return "";
  return block(t("measure.worst"), make("ul", { className: "mistakes" }, ...wrong.slice(0, MISTAKES).map(({ url, file, truth, answer, probability }) =>
    make("li", {}, picture(url), make("span", {}, t("measure.worst.line", { truth, answer })), make("span", { className: "soft" }, share(probability)),
      make("span", { className: "file" }, file.name)))));
}

/* Return the reliability diagram. */
export function calibration({ calibration_error: error, bins, photos }) {
  const title = t("measure.calibration"), points = bins.map(bin => ({ said: bin.said / 100, right: bin.right / 100, share: bin.photos / photos }));
  const body = bins.map(({ said, right, photos: n }) => cells("td", [percent(said), percent(right), number(n)]));
  return block(title, make("p", { className: "soft" }, t("measure.calibration.text", { ece: percent(error, 1) })),
    reliability(title, t("measure.calibration.x"), t("measure.calibration.y"), points),
    table([t("measure.said"), t("measure.class.right"), t("measure.class.photos")], body));
}

/* Return what each threshold gives; threshold: the model's own. */
export function thresholds({ curve }, threshold) {
  const title = t("measure.thresholds");
  const line = kind => ({ kind, points: curve.map(point => [point.threshold, point[kind] / 100]) });
  const body = curve.map(point => cells("td", [share(point.threshold), percent(point.answered), percent(point.right)]));
  const legend = make("p", { className: "legend" }, make("span", { className: "right" }, t("measure.answered.right")), make("span", { className: "answered" }, t("measure.answered")));
  return block(title, make("p", { className: "soft" }, t("measure.thresholds.text")),
    curves(title, t("measure.thresholds.x"), t("measure.thresholds.y"), [line("answered"), line("right")], threshold), legend,
    table([t("measure.thresholds.x"), t("measure.answered"), t("measure.answered.right")], body));
}

/* Return the figures of a chart, collapsed to a line. */
const table = (head, body) => make("details", {}, make("summary", {}, t("measure.table")), rows(head, body));

/* Return the accuracy of each class, the worst first. */
export function classTable({ per_class: classes }) {
  const body = [...classes].sort((one, other) => one.top1 - other.top1).map(({ name, photos, top1, low, high }) => {
    const bar = make("i");
    bar.style.inlineSize = `${top1}%`;
    return make("tr", {}, make("th", { scope: "row" }, name), make("td", { className: "bar" }, bar), make("td", {}, percent(top1)),
      make("td", { className: "soft" }, `${percent(low)} – ${percent(high)}`), make("td", {}, number(photos)));
  });
  const head = [t("measure.class"), "", t("measure.class.right"), t("measure.class.interval"), t("measure.class.photos")];
  return block(t("measure.classes"), rows(head, body));
}
