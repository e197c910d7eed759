/* Short names for what the page does most with the document. */

export const $ = id => document.getElementById(id);

/* Return a new element. A field with a dash is an attribute, any other a property; children are nodes or texts. */
export function make(tag, fields = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(fields)) key.includes("-") ? node.setAttribute(key, value) : node[key] = value;
  node.append(...children.filter(child => child !== undefined && child !== ""));
  return node;
}

export const button = (text, act, fields = {}) => make("button", { type: "button", onclick: act, ...fields }, text);

/* Return a picture that stays empty where the browser cannot show it, as with HEIC. */
export const picture = (url, alt = "") => make("img", { src: url, alt, loading: "lazy", onerror: event => event.target.classList.add("empty") });

/* Return a label that looks like a button and chooses files; accept: what the chooser offers. */
export function picker(text, take, fields = {}) {
  const input = make("input", { type: "file", className: "hidden", multiple: true, ...fields });
  input.onchange = () => { const files = [...input.files]; input.value = ""; take(files); };
  return make("label", { className: "button pick" }, input, make("span", {}, text));
}
