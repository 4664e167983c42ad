// BlazeFace full-range (MediaPipe, Apache-2.0), as fer_lightning.inference.faces runs it: the same boxes, so the same crops.

import { toOnnx } from "./tflite.js";

const SIDE = 192; // the network's input
const GRID = 48; // an anchor at the centre of each cell
const VALUES = 16; // per anchor: centre, size, six points
const CERTAIN = 0.5; // score from which a box counts
const OVERLAP = 0.3; // intersection over union from which two boxes are one face

/** The detector in a TensorFlow Lite file, run by onnxruntime. */
export async function loadDetector(ort, file) {
  const { model, input, outputs } = toOnnx(file);
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  /** Faces in an ImageData, the largest first: {x, y, width, height, score, points}, in its pixels. */
  return async (image) => {
    const { pixels, width, height, left, top } = letterbox(image);
    const results = await session.run({ [input]: new ort.Tensor("float32", pixels, [1, SIDE, SIDE, 3]) });
    const [values, logits] = outputs.map((name) => results[name].data).sort((a, b) => b.length - a.length);
    const faces = [];
    logits.forEach((logit, i) => {
      const score = 1 / (1 + Math.exp(-logit));
      if (score <= CERTAIN) return;
      const [x, y, w, h, ...rest] = values.subarray(i * VALUES, (i + 1) * VALUES);
      const column = (((i % GRID) + 0.5) * SIDE) / GRID, row = ((Math.floor(i / GRID) + 0.5) * SIDE) / GRID;
      const toX = (value) => ((value + column - left) * image.width) / width;
      const toY = (value) => ((value + row - top) * image.height) / height;
      const points = Array.from({ length: rest.length / 2 }, (_, k) => [toX(rest[2 * k]), toY(rest[2 * k + 1])]);
      const box = { width: (w * image.width) / width, height: (h * image.height) / height };
      faces.push({ x: toX(x) - box.width / 2, y: toY(y) - box.height / 2, ...box, score, points });
    });
    return distinct(faces).sort((a, b) => b.width * b.height - a.width * a.height || a.y - b.y || a.x - b.x);
  };
}

// The image in the middle of a black square, float RGB in [-1, 1].
function letterbox(image) {
  const scale = SIDE / Math.max(image.width, image.height);
  const width = Math.max(roundToEven(image.width * scale), 1), height = Math.max(roundToEven(image.height * scale), 1);
  const left = Math.floor((SIDE - width) / 2), top = Math.floor((SIDE - height) / 2);
  const columns = shares(image.width, width), rows = shares(image.height, height);
  const pixels = new Float32Array(SIDE * SIDE * 3).fill(-1);
  const { data } = image;
  const sums = new Float64Array(width * 3); // of one row
  for (let j = 0; j < height; j++) {
    sums.fill(0);
    for (let k = 0; k < rows[j].factors.length; k++) {
      const row = 4 * image.width * (rows[j].first + k), ofRow = rows[j].factors[k];
      for (let i = 0, at = 0; i < width; i++) {
        const { first, factors } = columns[i];
        let red = 0, green = 0, blue = 0;
        for (let l = 0, from = row + 4 * first; l < factors.length; l++, from += 4) {
          red += factors[l] * data[from];
          green += factors[l] * data[from + 1];
          blue += factors[l] * data[from + 2];
        }
        sums[at++] += ofRow * red;
        sums[at++] += ofRow * green;
        sums[at++] += ofRow * blue;
      }
    }
    const start = 3 * ((top + j) * SIDE + left);
    for (let i = 0; i < sums.length; i++) pixels[start + i] = Math.round(sums[i]) / 127.5 - 1;
  }
  return { pixels, width, height, left, top };
}

// Which pixels of an axis make each pixel of the scaled one: averages when shrinking, linear between two when enlarging.
function shares(from, to) {
  const scale = from / to;
  return Array.from({ length: to }, (_, i) => {
    if (scale >= 1) {
      const start = i * scale, end = Math.min(start + scale, from), first = Math.floor(start + 1e-9);
      const length = Math.max(Math.ceil(end - 1e-9) - first, 1);
      const cover = (k) => Math.min(end, first + k + 1) - Math.max(start, first + k);
      return { first, factors: Float64Array.from({ length }, (_, k) => cover(k) / (end - start)) };
    }
    const centre = Math.min(Math.max((i + 0.5) * scale - 0.5, 0), from - 1), first = Math.floor(centre);
    return { first, factors: Float64Array.from(first + 1 < from ? [1 - centre + first, centre - first] : [1]) };
  });
}

// Python's round().
function roundToEven(value) {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}

// Of boxes that overlap, the one with the highest score.
function distinct(faces) {
  const kept = [];
  for (const face of faces.sort((a, b) => b.score - a.score)) {
    if (kept.every((other) => overlap(face, other) <= OVERLAP)) kept.push(face);
  }
  return kept;
}

function overlap(a, b) {
  const width = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
  const height = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
  const both = Math.max(width, 0) * Math.max(height, 0);
  return both / (a.width * a.height + b.width * b.height - both);
}
