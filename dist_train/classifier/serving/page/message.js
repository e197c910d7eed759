/* The line at the foot of the page that says what was done, what goes on, and what went wrong. */

import { $ } from "./dom.js";
import { number } from "./texts.js";

const LASTS = 12_000;   // milliseconds that a line without a fault stays
let timer;

/* Say a line. undo: what its button does; bad: it is a fault, and stays until it is dismissed. */
export function say(text, { bad = false, undo } = {}) {
  $("status").textContent = text;
  $("message").hidden = !text;
  $("message").classList.toggle("bad", bad);
  $("progress").hidden = true;
  $("undo-now").hidden = !undo;
  $("undo-now").onclick = () => undo().catch(fault);
  clearTimeout(timer);
  if (!bad) timer = setTimeout(() => { $("message").hidden = true; }, LASTS);
}

export const fault = error => say(error.message, { bad: true });

/* Say what goes on, as a text or as the share of it that is done. */
export function tell(what) {
  if (typeof what === "string") say(what);
  else { $("progress").hidden = false; $("progress").value = what; $("progress").ariaValueText = number(100 * what); }
  clearTimeout(timer);
  $("message").hidden = false;
}

$("dismiss").onclick = () => { $("message").hidden = true; };
