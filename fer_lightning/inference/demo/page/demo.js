// What a person sees: choosing a picture, boxes, bars and messages.

import { crop, frameOf } from "./crop.js";
import { concerns } from "./concerns.js";
import { load, Problem } from "./load.js";

const MAX_PIXELS = 16_000_000; // of a photo; larger canvases fail on phones
const LABEL = 34; // height of a box's label in CSS pixels: with less room above the box, it is put inside
const ANNOUNCE_EVERY = 2000; // milliseconds between messages to screen readers while the webcam is on

const byId = (id) => document.getElementById(id);
const [view, picture, photo, video, boxes] = ["view", "picture", "photo", "video", "boxes"].map(byId);
const [choose, webcam, file, faces] = ["choose", "webcam", "file", "faces"].map(byId);
const hint = faces.firstElementChild;
const frame = document.createElement("canvas").getContext("2d", { willReadFrequently: true }); // of the webcam

let networks; // see load.js
let early; // a photo dropped, pasted or chosen before they are there
let stream = null; // of the webcam, while it is on
let turn = 0; // counts pictures shown and cameras switched on: what is older is dropped
let choice = 0; // counts pictures chosen, which take time to decode, and cameras
let starting = false; // the camera; disabling the button would take the keyboard's focus from it

const status = (text) => { if (byId("status").textContent !== text) byId("status").textContent = text; };
const problem = (text) => { byId("problem").textContent = text; };

async function start() {
  networks = await load(status);
  describeNetwork(networks.about);
  choose.disabled = webcam.disabled = false;
  status("Ready.");
  openPhoto(early);
}

for (const one of [choose, byId("empty")]) one.addEventListener("click", () => file.click());
file.addEventListener("change", () => { openPhoto(file.files[0]); file.value = ""; });
webcam.addEventListener("click", () => { if (!starting) stream ? stopCamera() : guarded(startCamera); });
document.addEventListener("paste", (event) => openPhoto(event.clipboardData.files[0]));
document.addEventListener("drop", (event) => openPhoto(event.dataTransfer.files[0]));

// A photo dropped beside the field must not replace the page.
for (const type of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    view.classList.toggle("over", type === "dragover");
  });
}

async function guarded(action) {
  problem("");
  try {
    await action();
  } catch (error) {
    if (!(error instanceof Problem)) console.error(error);
    problem(error instanceof Problem ? error.message : `Something went wrong: ${error.message}. Reload the page.`);
    status("");
  }
}

function openPhoto(chosen) {
  if (!chosen) return;
  if (!networks) {
    early = chosen;
    return;
  }
  const mine = ++choice;
  guarded(async () => {
    let bitmap;
    try {
      bitmap = await createImageBitmap(chosen); // upright, as its EXIF tag says
    } catch {
      throw new Problem(`${chosen.name} is no picture that this browser can read. Save it as JPEG or PNG.`);
    }
    if (mine !== choice) {
      bitmap.close();
      return;
    }
    stopCamera();
    const own = ++turn;
    const scale = Math.min(Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height)), 1);
    photo.width = Math.max(Math.floor(bitmap.width * scale), 1);
    photo.height = Math.max(Math.floor(bitmap.height * scale), 1);
    const context = photo.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white"; // behind transparent parts
    context.fillRect(0, 0, photo.width, photo.height);
    context.drawImage(bitmap, 0, 0, photo.width, photo.height);
    bitmap.close();
    present(photo, photo.width, photo.height);
    show([], photo);
    photo.setAttribute("aria-label", "Your photo");
    status("Looking for faces…");
    await new Promise((resolve) => { setTimeout(resolve, 50); }); // lets the photo appear first
    const found = await analyse(context.getImageData(0, 0, photo.width, photo.height));
    if (own === turn) {
      show(found, photo);
      status(summary(found));
      photo.setAttribute("aria-label", `Your photo. ${summary(found)}`);
    }
  });
}

async function startCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Problem("The camera is only available to pages on https or on this computer (127.0.0.1). Choose a photo "
      + "instead.");
  }
  const own = ++turn;
  choice++;
  starting = true;
  try {
    const size = { width: { ideal: 640 }, height: { ideal: 480 } };
    const opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user", ...size } });
    if (own !== turn) { // a photo was chosen meanwhile
      opened.getTracks().forEach((track) => track.stop());
      return;
    }
    stream = opened;
    video.srcObject = stream;
    await video.play();
    if (own !== turn) return;
  } catch (error) {
    if (own !== turn) return; // a photo was chosen, which stops the camera
    stopCamera();
    throw new Problem({
      NotFoundError: "No camera was found. Connect one, or choose a photo.",
      NotAllowedError: "This page may not use the camera. Allow it in the browser's address bar, or choose a photo.",
      NotReadableError: "The camera is in use by another program. Close that, or choose a photo.",
    }[error.name] ?? `The camera could not be started (${error.message}). Choose a photo instead.`);
  } finally {
    starting = false;
  }
  stream.getVideoTracks()[0].addEventListener("ended", () => {
    stopCamera();
    problem("The camera was disconnected.");
  });
  webcam.setAttribute("aria-pressed", "true");
  present(video, video.videoWidth, video.videoHeight);
  status("Webcam on.");
  try {
    await watch(own);
  } catch (error) {
    stopCamera();
    throw error;
  }
}

async function watch(own) {
  let announced = performance.now(), last = announced, interval = 0;
  while (own === turn && stream) {
    const { videoWidth: width, videoHeight: height } = video;
    if (frame.canvas.width !== width || frame.canvas.height !== height) {
      Object.assign(frame.canvas, { width, height });
      present(video, width, height); // a phone was turned
    }
    frame.drawImage(video, 0, 0);
    const found = await analyse(frame.getImageData(0, 0, width, height), true);
    if (own !== turn || !stream) return;
    show(found, video);
    const now = performance.now();
    interval = interval ? 0.9 * interval + 0.1 * (now - last) : now - last;
    last = now;
    byId("rate").textContent = `${(1000 / interval).toFixed(interval > 200 ? 1 : 0)} pictures a second`;
    if (now - announced > ANNOUNCE_EVERY) {
      announced = now;
      status(summary(found, false));
    }
    await new Promise(requestAnimationFrame); // pauses while the page is hidden
  }
}

function stopCamera() {
  if (!stream) return;
  turn++;
  stream.getTracks().forEach((track) => track.stop());
  stream = video.srcObject = null;
  webcam.setAttribute("aria-pressed", "false");
  byId("rate").textContent = "";
  present(null);
  show([], video);
  status("Webcam off.");
}

// The faces in an ImageData, from left to right as they are shown.
async function analyse(image, live = false) {
  const { about, find, classify } = networks;
  const found = (await find(image, live)).sort((a, b) => (live ? b.x - a.x : a.x - b.x)); // live is mirrored
  const frames = found.map((box) => frameOf(box, about.crop));
  const crops = frames.map((where) => crop(image, where, about.size));
  const probabilities = crops.length ? await classify(crops) : [];
  return found.map((box, i) => {
    const best = probabilities[i].indexOf(Math.max(...probabilities[i]));
    return {
      box, pixels: crops[i], probabilities: probabilities[i], label: title(about.classes[best]), best,
      unsure: probabilities[i][best] < about.threshold, notes: concerns(image, box, frames[i], about.limits),
    };
  });
}

function present(media, width = 1, height = 1) {
  byId("empty").hidden = media !== null;
  picture.hidden = media === null;
  photo.hidden = media !== photo;
  video.hidden = media !== video;
  picture.classList.toggle("mirrored", media === video);
  picture.style.setProperty("--ratio", width / height);
}

function show(found, media) {
  const width = media.videoWidth ?? media.width, height = media.videoHeight ?? media.height;
  boxes.replaceChildren(...found.map((face, i) => {
    const { box, unsure } = face;
    const x = media === video ? width - box.x - box.width : box.x; // mirrored
    const [left, right] = [x, x + box.width].map((value) => Math.min(Math.max(value, 0), width));
    const [top, bottom] = [box.y, box.y + box.height].map((value) => Math.min(Math.max(value, 0), height));
    const element = document.createElement("div");
    element.className = "box";
    element.classList.toggle("unsure", unsure);
    element.classList.toggle("top", (top / height) * picture.clientHeight < LABEL);
    element.classList.toggle("right", left > 0.7 * width);
    Object.assign(element.style, {
      left: percent(left / width, 2), top: percent(top / height, 2),
      width: percent((right - left) / width, 2), height: percent((bottom - top) / height, 2),
    });
    const tag = document.createElement("span");
    tag.textContent = (found.length > 1 ? `${i + 1} ` : "") + verdict(face);
    element.append(tag);
    return element;
  }));
  hint.hidden = found.length > 0;
  const cards = [...faces.querySelectorAll(".face")]; // changed in place, so that bars move
  cards.slice(found.length).forEach((card) => card.remove());
  found.forEach((face, i) => fill(cards[i] ?? newCard(), face, i));
}

function newCard() {
  const card = byId("card").content.firstElementChild.cloneNode(true);
  for (const name of networks.about.classes) {
    const row = card.querySelector("tbody").insertRow();
    row.innerHTML = '<th scope="row"></th><td class="bar"><div><i></i></div></td><td></td>';
    row.cells[0].textContent = title(name);
  }
  faces.append(card);
  return card;
}

function fill(card, face, i) {
  const { box, pixels, probabilities, best, unsure } = face;
  card.dataset.box = JSON.stringify([box.x, box.y, box.width, box.height]);
  card.dataset.probabilities = JSON.stringify([...probabilities]);
  card.classList.toggle("unsure", unsure);
  card.querySelector("h2").textContent = `Face ${i + 1}`;
  const small = document.createElement("small");
  small.textContent = (unsure ? `perhaps ${face.label.toLowerCase()}, ` : "") + percent(probabilities[best]);
  card.querySelector(".label").replaceChildren(unsure ? "Unsure" : face.label, " ", small);
  card.querySelector(".note").textContent = face.notes.join("; ");
  [...card.querySelectorAll("tbody tr")].forEach((row, k) => {
    row.classList.toggle("best", k === best);
    row.querySelector("i").style.width = percent(probabilities[k], 2);
    row.cells[2].textContent = percent(probabilities[k], 1);
  });
  const size = networks.about.size, canvas = card.querySelector("canvas");
  if (canvas.width !== size) canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  pixels.forEach((value, k) => image.data.set([value, value, value, 255], 4 * k));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const title = (name) => name.charAt(0).toUpperCase() + name.slice(1);
const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)}%`;
const verdict = (face) => (face.unsure ? "Unsure" : `${face.label} ${percent(face.probabilities[face.best])}`);

function summary(found, exact = true) {
  if (!found.length) return "No face was found.";
  const what = found.map((face) => (exact ? verdict(face) : face.unsure ? "Unsure" : face.label)).join(", ");
  return `${found.length === 1 ? "1 face" : `${found.length} faces`}: ${what}.`;
}

function describeNetwork(about) {
  const urls = Object.values(about.libraries).flatMap((library) => library.urls);
  const hosts = new Set(urls.map((url) => new URL(url, location.href).host));
  hosts.delete(location.host);
  if (hosts.size) byId("hosts").textContent = `its own server and, for the libraries, ${[...hosts].join(" and ")}`;
  const scores = {
    "test/accuracy": "Accuracy", "test/clean/accuracy": "Accuracy without leaked images",
    "test/balanced_accuracy": "Balanced accuracy", "test/f1_macro": "Macro F1",
    "test/ece_calibrated": "Calibration error",
  };
  const known = Object.keys(scores).filter((key) => key in about.scores);
  const rows = [
    ["Name", about.name],
    ["Expressions", about.classes.join(", ")],
    ["Unsure", about.threshold > 1 ? "always" : `below ${percent(about.threshold)}`],
    ...known.map((key) => [scores[key], percent(about.scores[key], 1)]),
  ];
  byId("about").replaceChildren(...rows.flatMap(([name, value]) => {
    const cells = [document.createElement("dt"), document.createElement("dd")];
    cells[0].textContent = name;
    cells[1].textContent = value;
    return cells;
  }));
}

guarded(start);
