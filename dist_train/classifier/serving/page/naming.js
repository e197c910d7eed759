/* The form that says what is on photos: with the name of a class they are added to it, with a new name they make a class. */

import { button, make } from "./dom.js";
import { find, learn } from "./model.js";
import { t } from "./texts.js";

/* Return the form. files: returns the photos to learn from; label and hint: of the field; done: called afterwards. */
export function namingForm(files, label, hint, done = () => {}) {
  const field = make("input", { type: "text", autocomplete: "off", maxLength: 200, placeholder: hint, "aria-label": label });
  field.setAttribute("list", "class-names");   // its property cannot be set
  const send = button("", undefined, { type: "submit", className: "main", hidden: true });
  const fault = make("p", { className: "fault", role: "alert" });
  const form = make("form", { className: "naming" }, field, send, fault);
  field.oninput = () => {
    send.hidden = !field.value.trim();
    send.textContent = t(find(field.value) ? "name.add" : "name.new");
    fault.textContent = "";
  };
  form.onsubmit = async event => {
    event.preventDefault();
    if (field.value.trim() && !send.disabled) await teach(field.value);
  };
  const teach = async name => {
    const typed = field.value;
    send.disabled = true;
    field.value = fault.textContent = "";   // before the answers are drawn anew, which keeps what is typed
    try { await learn(name, files()); send.hidden = true; done(); } catch (error) { field.value = typed; fault.textContent = error.message; }
    send.disabled = false;
  };
  return { form, teach };
}
