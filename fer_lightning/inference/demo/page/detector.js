// BlazeFace full-range (MediaPipe, Apache-2.0), run as fer_lightning.inference.faces does: the same boxes give the same
// crops.

import { toOnnx } from "./tflite.js";

const SIDE = 192; // the network's input
const GRID = 48; // an anchor at the centre of each cell
const VALUES = 16; // per anchor: centre, size, six points
const CERTAIN = 0.5, CERTAIN_IN_PART = 0.6; // scores from which a box counts
const OVERLAP = 0.45; // share of the smaller of two boxes from which both are one face
const PART = 480; // side in pixels of the smallest part of a photo that is searched on its own

/**
 * The detector in a TensorFlow Lite file, run by onnxruntime.
 *
 * @returns {Promise<Function>} maps an ImageData to the faces {x, y, width, height, score, points} in its pixels. One
 *     pass finds faces of 1/13 of the longer side or more; unless `fast` is set, parts of a photo are searched as well.
 */
export async function loadDetector(ort, file) {
  const { model, input, outputs } = toOnnx(file);
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });

  // Logits and values of the anchors in a part of the image.
  const run = async (pixels) => {
    const results = await session.run({ [input]: new ort.Tensor("float32", pixels, [1, SIDE, SIDE, 3]) });
    return outputs.map((name) => results[name].data).sort((a, b) => a.length - b.length);
  };

  // The faces of a score above `certain` in overlapping square parts of `side` pixels, or less in a narrower image.
  const search = async (image, side, certain) => {
    const small = scaled(image, SIDE / side);
    const toX = image.width / small.width, toY = image.height / small.height;
    const faces = [];
    for (const top of starts(small.height)) {
      for (const left of starts(small.width)) {
        const { pixels, before, above } = part(small, left, top);
        const [logits, values] = await run(pixels);
        logits.forEach((logit, i) => {
          const score = 1 / (1 + Math.exp(-logit));
          if (score <= certain) return;
          const column = (((i % GRID) + 0.5) * SIDE) / GRID - before + left;
          const row = ((Math.floor(i / GRID) + 0.5) * SIDE) / GRID - above + top;
          const [dx, dy, width, height, ...rest] = values.subarray(i * VALUES, (i + 1) * VALUES);
          const x = dx + column - width / 2, y = dy + row - height / 2;
          if (width <= 0 || height <= 0) return;
          if (cut(x, x + width, left, small.width) || cut(y, y + height, top, small.height)) return;
          const points = Array.from({ length: rest.length / 2 },
            (_, k) => [(rest[2 * k] + column) * toX, (rest[2 * k + 1] + row) * toY]);
          faces.push({ x: x * toX, y: y * toY, width: width * toX, height: height * toY, score, points });
        });
      }
    }
    return faces;
  };

  return async (image, fast = false) => {
    const { width, height } = image, longer = Math.max(width, height);
    const faces = await search(image, longer, CERTAIN);
    if (!fast && longer > PART) {
      const side = Math.max(PART, Math.min(height, width, Math.floor(longer / 3)));
      faces.push(...await search(image, side, CERTAIN_IN_PART));
    }
    return distinct(faces);
  };
}

// Where parts start that cover `length` pixels and overlap by a quarter or more.
function starts(length) {
  const steps = Math.max(Math.ceil((length - SIDE) / (0.75 * SIDE)), 0);
  return steps ? Array.from({ length: steps + 1 }, (_, i) => roundToEven((i * (length - SIDE)) / steps)) : [0];
}

// Whether a box touches an edge of its part that is none of the image: another part or pass has the complete face.
function cut(first, last, start, size) {
  return (first < start + 1 && start > 0) || (last > start + SIDE - 1 && start + SIDE < size);
}

// A part of the image in the middle of a black square, float RGB in [-1, 1].
function part({ width, height, data }, left, top) {
  const columns = Math.min(SIDE, width - left), rows = Math.min(SIDE, height - top);
  const before = Math.floor((SIDE - columns) / 2), above = Math.floor((SIDE - rows) / 2);
  const pixels = new Float32Array(SIDE * SIDE * 3).fill(-1);
  for (let j = 0; j < rows; j++) {
    const from = 3 * ((top + j) * width + left), to = 3 * ((above + j) * SIDE + before);
    for (let i = 0; i < 3 * columns; i++) pixels[to + i] = data[from + i] / 127.5 - 1;
  }
  return { pixels, before, above };
}

// The image with its sides multiplied by `scale`, as 8-bit RGB.
function scaled(image, scale) {
  const width = Math.max(roundToEven(image.width * scale), 1), height = Math.max(roundToEven(image.height * scale), 1);
  const columns = shares(image.width, width), rows = shares(image.height, height);
  const result = new Uint8ClampedArray(width * height * 3); // rounds
  const sums = new Float64Array(width * 3); // of one row
  for (let j = 0; j < height; j++) {
    sums.fill(0);
    for (let k = 0; k < rows[j].factors.length; k++) {
      const row = 4 * image.width * (rows[j].first + k), ofRow = rows[j].factors[k];
      for (let i = 0, at = 0; i < width; i++) {
        const { first, factors } = columns[i];
        let red = 0, green = 0, blue = 0;
        for (let l = 0, from = row + 4 * first; l < factors.length; l++, from += 4) {
          red += factors[l] * image.data[from];
          green += factors[l] * image.data[from + 1];
          blue += factors[l] * image.data[from + 2];
        }
        sums[at++] += ofRow * red;
        sums[at++] += ofRow * green;
        sums[at++] += ofRow * blue;
      }
    }
    result.set(sums, 3 * j * width);
  }
  return { width, height, data: result };
}

// Which pixels of an axis make each pixel of the scaled one: averages when it shrinks, linear between two when it grows.
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
    const factors = first + 1 < from ? [1 - centre + first, centre - first] : [1];
    return { first, factors: Float64Array.from(factors) };
  });
}

// Python's round().
function roundToEven(value) {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}

// The faces without those that overlap one of a higher score.
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
  return (Math.max(width, 0) * Math.max(height, 0)) / Math.min(a.width * a.height, b.width * b.height);
}
