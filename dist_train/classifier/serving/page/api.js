/* All that the page asks the server for. Paths are relative: a proxy may serve the page below a path. */

import { problem, t } from "./texts.js";

const ROOT = "api/v1";
let model;

/* Choose the model that all other functions speak of. */
export const open = name => { model = `${ROOT}/models/${encodeURIComponent(name)}`; };

export const models = async () => (await call("GET", `${ROOT}/models`)).models;
export const describe = () => call("GET", model);
export const downloadAddress = () => `${model}/download`;
export const pictureAddress = id => `${model}/pictures/${encodeURIComponent(id)}`;

/* Return the answers for files; one that the server cannot read has a fault in place of it. */
export async function classify(files, progress) {
  const { results } = await call("POST", `${model}/classify`, form(files), progress);
  return results.map(result => result.error ? { fault: { ...result, detail: result.error } } : result);
}
export const predictAgain = async ids => (await call("POST", `${model}/predictions`, { ids })).results;
export const evaluate = photos => call("POST", `${model}/evaluate`, { photos });

export const addClass = (name, files, progress) => call("POST", `${model}/classes`, form(files, name), progress);
export const removeClass = name => call("POST", `${model}/remove`, { name });
export const renameClass = (name, fresh) => call("POST", `${model}/rename`, { name, new: fresh });

export const photosOf = async name => (await call("GET", `${model}/photos?name=${encodeURIComponent(name)}`)).photos;
export const addPhotos = (name, files, progress) => call("POST", `${model}/photos`, form(files, name), progress);
export const removePhotos = (name, ids) => call("POST", `${model}/photos/remove`, { name, ids });

export const undo = () => call("POST", `${model}/undo`, {});
export const history = async () => (await call("GET", `${model}/history`)).changes;

function form(files, name) {
  const fields = new FormData();
  if (name !== undefined) fields.append("name", name);
  for (const file of files) fields.append("images", file, file.name);
  return fields;
}

/* Send a request and return its answer; progress is told the share of the body that has been sent (fetch cannot). */
function call(method, path, body, progress) {
  return new Promise((good, fail) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    request.responseType = "json";
    if (progress) request.upload.onprogress = event => progress(event.loaded / event.total);
    request.onload = () => {
      if (request.status < 300) return good(request.response);
      if (request.status === 401) location.reload();   // the page that asks for the token
      const fault = request.response;
      fail(new Error(typeof fault?.detail === "string" ? problem(fault) : t("error.code", { code: request.status })));
    };
    request.onerror = () => fail(new Error(t("error.unreachable")));
    if (body && !(body instanceof FormData)) { request.setRequestHeader("Content-Type", "application/json"); body = JSON.stringify(body); }
    request.send(body);
  });
}
