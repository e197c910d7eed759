/* Two charts: points beside the diagonal, and curves over a threshold. Both are drawn in a square from 0 to 1. */

import { percent } from "./texts.js";

const SIDE = 320, EDGE = 56;
const at = share => share * (SIDE - EDGE - 20);
const left = share => EDGE + at(share), top = share => SIDE - EDGE - at(share);

function shape(tag, fields, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(fields)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/* Return the frame of a chart: its axes with their names, and its title for screen readers. */
function frame(title, x, y) {
  const svg = shape("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, class: "chart", role: "img", "aria-label": title });
  for (const share of [0, .25, .5, .75, 1]) {
    svg.append(shape("line", { class: "grid", x1: left(0), x2: left(1), y1: top(share), y2: top(share) }));
    if (share === .25 || share === .75) continue;
    svg.append(shape("text", { class: "tick", x: left(share), y: SIDE - EDGE + 16, "text-anchor": "middle" }, percent(share)),
      shape("text", { class: "tick", x: EDGE - 6, y: top(share) + 4, "text-anchor": "end" }, percent(share)));
  }
  svg.append(shape("text", { class: "axis", x: left(.5), y: SIDE - 8, "text-anchor": "middle" }, x),
    shape("text", { class: "axis", x: 12, y: top(.5), "text-anchor": "middle", transform: `rotate(-90 12 ${top(.5)})` }, y));
  return svg;
}

/* Return a reliability diagram. points: { said, right, share } of each bin; the area of a point is its share of photos. */
export function reliability(title, x, y, points) {
  const svg = frame(title, x, y);
  svg.append(shape("line", { class: "ideal", x1: left(0), y1: top(0), x2: left(1), y2: top(1) }));
  for (const { said, right, share } of points)
    svg.append(shape("circle", { class: "point", cx: left(said), cy: top(right), r: 3 + 14 * Math.sqrt(share) }));
  return svg;
}

/* Return curves over a threshold. curves: { kind, label, points: [threshold, share] }; at: where the model's threshold is. */
export function curves(title, x, y, lines, threshold) {
  const svg = frame(title, x, y);
  if (threshold > 0) svg.append(shape("line", { class: "ideal", x1: left(threshold), x2: left(threshold), y1: top(0), y2: top(1) }));
  for (const { kind, points } of lines)
    svg.append(shape("polyline", { class: `curve ${kind}`, points: points.map(([from, share]) => `${left(from)},${top(share)}`).join(" ") }));
  return svg;
}
