/* A tray of photos to learn from: chosen, dropped, or taken by the camera. */

import { Camera } from "./camera.js";
import { button, make, picker, picture } from "./dom.js";
import { separate, takeDrops } from "./files.js";
import { t } from "./texts.js";

/* Return a tray: its node, its files, and how to close it. changed: called when photos come or go; fault: told of errors. */
export function makeTray(changed, fault) {
  const files = [], row = make("div", { className: "tray", role: "group", "aria-label": t("tray.label") });
  const keep = given => {
    const { photos, passed } = separate(given);
    fault(passed ? new Error(passed) : undefined);
    for (const file of photos) {
      const url = URL.createObjectURL(file), name = file.name;
      const item = button(picture(url), () => {
        files.splice(files.indexOf(file), 1);
        item.remove();
        URL.revokeObjectURL(url);
        changed();
      }, { "aria-label": t("tray.leave", { name }), title: name });
      files.push(file);
      row.append(item);
    }
    changed();
  };
  const camera = cameraOf(keep, fault);
  const take = picker(t("take"), keep, { accept: "image/*", capture: "environment", multiple: false });
  take.classList.add("touch");
  const node = make("div", { className: "give" },
    make("div", { className: "row" }, take, picker(t("choose"), keep), camera.open), camera.node, row);
  takeDrops(node, keep, fault);
  return { node, files, close: camera.stop, empty: () => { files.length = 0; row.replaceChildren(); changed(); } };
}

/* Return the camera of a tray: the button that opens it, its node, and how to stop it. */
function cameraOf(keep, fault) {
  const video = make("video", { muted: true, playsInline: true }), camera = new Camera(video);
  const stop = () => { camera.stop(); node.hidden = true; };
  const shoot = button(t("tray.shoot"), async () => { if (camera.on) keep([await camera.photo()]); }, { className: "main" });
  const close = button(t("close"), () => { stop(); open.focus(); });
  const node = make("div", { className: "camera", hidden: true }, video, make("div", { className: "row" }, shoot, close));
  const open = button(t("tray.camera"), async () => {
    try { node.hidden = false; await camera.start(); shoot.focus(); } catch (error) { stop(); fault(error); }
  });
  return { open, node, stop };
}
