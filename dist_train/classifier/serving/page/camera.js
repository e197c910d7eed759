/* The camera: its picture in a video element, photos of it, and answers to what it sees now. */

import * as api from "./api.js";
import { firstLines, show } from "./answers.js";
import { $, make } from "./dom.js";
import { names, problem, t } from "./texts.js";

const SIDE = 640;    // pixels: what a live picture is reduced to, as networks take fewer
const PAUSE = 200;   // milliseconds between an answer and the next picture
const FAULTS = { NotAllowedError: "camera.denied", NotFoundError: "camera.none", NotReadableError: "camera.busy" };
let photos = 0;

/* A camera that shows what it sees in a video element. */
export class Camera {
  constructor(video) { this.video = video; }

  get on() { return Boolean(this.stream); }

  /* Start it; fails with a text for the visitor. */
  async start() {
    if (!navigator.mediaDevices) throw new Error(t("camera.forbidden"));
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
      this.video.srcObject = this.stream;
      await this.video.play();
    } catch (error) { this.stop(); throw new Error(t(FAULTS[error.name] ?? "camera.fault")); }
  }

  stop() {
    this.stream?.getTracks().forEach(track => track.stop());
    this.stream = undefined;
  }

  /* Return what it sees as a JPEG file, at most side pixels wide and high. */
  async photo(side = Infinity) {
    const { videoWidth, videoHeight } = this.video, scale = Math.min(1, side / Math.max(videoWidth, videoHeight));
    const canvas = make("canvas", { width: Math.round(videoWidth * scale), height: Math.round(videoHeight * scale) });
    canvas.getContext("2d").drawImage(this.video, 0, 0, canvas.width, canvas.height);
    const bytes = await new Promise(take => canvas.toBlob(take, "image/jpeg", .9));
    return new File([bytes], t("camera.file", { n: ++photos }), { type: "image/jpeg" });
  }
}

const live = new Camera($("live-video"));

/* Answer what the camera sees, a picture at a time: the next is taken when the answer to the last is there. */
async function look() {
  while (live.on) {
    try {
      const [result] = await api.classify([await live.photo(SIDE)]);
      if (result.fault) throw new Error(problem(result.fault));
      if (live.on) say(result);
    } catch (error) { stop(); $("live").hidden = false; $("live-fault").textContent = error.message; }
    await new Promise(wait => setTimeout(wait, PAUSE));
  }
}

/* Show an answer; a screen reader hears it only where it differs from the last. */
function say(result) {
  const lines = firstLines(result), key = result.sure ? result.predictions[0].name : "";
  if ($("live-answer").dataset.key !== key) { $("live-answer").dataset.key = key; $("live-answer").textContent = result.sure ? key : t("card.unsure"); }
  $("live-rest").textContent = [result.sure ? lines[0].lastChild.textContent : lines[1].textContent,
    t("card.or", { names: names(result.predictions.slice(1).map(({ name }) => name)) })].join(" · ");
}

async function start() {
  $("live").hidden = false;
  $("live-fault").textContent = $("live-rest").textContent = "";
  $("live-answer").textContent = t("live.wait");
  delete $("live-answer").dataset.key;
  try { await live.start(); $("live-keep").focus(); look(); } catch (error) { $("live-answer").textContent = ""; $("live-fault").textContent = error.message; }
}

/* End the live answers, and give the camera back. */
export function stop() {
  live.stop();
  $("live").hidden = true;
}

/* Let the visitor start and stop the live answers. They stop when the page is hidden. */
export function offerLive(fault) {
  $("watch").onclick = () => live.on ? stop() : start();
  $("live-stop").onclick = () => { stop(); $("watch").focus(); };
  $("live-keep").onclick = async () => { if (live.on) show([await live.photo()]).catch(fault); };
  document.addEventListener("visibilitychange", () => { if (document.hidden && live.on) stop(); });
}
