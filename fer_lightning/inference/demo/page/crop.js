// From a box around a face to the grey frame that the network is trained on, pixel for pixel as
// fer_lightning.inference.faces does it: ITU-R BT.601 luma and Pillow's bicubic filter in its fixed-point arithmetic.
// Scaling on a canvas would differ between browsers.

const BITS = 22; // fractional bits of Pillow's weights for 8-bit images

/** Left edge, upper edge and side of the square that is cut out, in pixels. */
export function frameOf(box, rule) {
  const side = (rule.side * (box.width + box.height)) / 2;
  return {
    left: box.x + box.width / 2 - side / 2,
    top: box.y + box.height / 2 + rule.shift * box.height - side / 2,
    side,
  };
}

/**
 * The face as grey pixels; beyond the image, the nearest pixel is repeated.
 *
 * @param {ImageData} image
 * @param {{left: number, top: number, side: number}} frame
 * @param {number} size side of the result
 * @returns {Uint8Array} size * size pixels
 */
export function crop(image, { left, top, side }, size) {
  const margin = Math.ceil(2 * Math.max(side / size, 1)) + 1; // what the filter reads beyond the frame
  const [x, columns] = pixels(left, side, margin, image.width);
  const [y, rows] = pixels(top, side, margin, image.height);
  const horizontal = weights(left - x, left - x + side, columns.length, size);
  const vertical = weights(top - y, top - y + side, rows.length, size);

  const { data } = image;
  const grey = new Uint8Array(rows.length * columns.length);
  let at = 0;
  for (const row of rows) {
    for (const column of columns) {
      const i = 4 * (row * image.width + column);
      grey[at++] = (data[i] * 19595 + data[i + 1] * 38470 + data[i + 2] * 7471 + 0x8000) >> 16;
    }
  }
  // Both axes one after the other, each rounded to 8 bits.
  const lines = apply(horizontal, grey, rows.length, { along: 1, across: columns.length }, { along: 1, across: size });
  return apply(vertical, lines, size, { along: size, across: 1 }, { along: size, across: 1 });
}

// Weighted sums along one axis, of `count` lines; `from` and `to` are the steps in the source and in the result.
function apply(axis, source, count, from, to) {
  const result = new Uint8Array(axis.length * count);
  for (let line = 0; line < count; line++) {
    for (let i = 0; i < axis.length; i++) {
      const { first, factors } = axis[i];
      let at = line * from.across + first * from.along, sum = 2 ** (BITS - 1);
      for (let k = 0; k < factors.length; k++, at += from.along) sum += factors[k] * source[at];
      result[i * to.along + line * to.across] = Math.min(Math.max(sum >> BITS, 0), 255);
    }
  }
  return result;
}

// First pixel, and the pixels along one axis that cover the frame and, as far as there are any, the margin.
function pixels(start, length, margin, size) {
  let first = Math.floor(start), end = Math.ceil(start + length);
  first = Math.min(first, Math.max(first - margin, 0));
  end = Math.max(end, Math.min(end + margin, size));
  return [first, Array.from({ length: end - first }, (_, i) => Math.min(Math.max(first + i, 0), size - 1))];
}

// For each pixel of the result, the pixels that it is the weighted sum of.
function weights(start, end, length, size) {
  start = Math.fround(start); // Pillow's box is in single precision
  const scale = Math.fround(Math.fround(end) - start) / size;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: size }, (_, i) => {
    const centre = start + (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - 2 * stretch + 0.5), 0);
    const last = Math.min(Math.trunc(centre + 2 * stretch + 0.5), length);
    const raw = Array.from({ length: last - first }, (_, k) => bicubic((k + first - centre + 0.5) / stretch));
    const sum = raw.reduce((a, b) => a + b, 0);
    const fixed = raw.map((one) => Math.trunc((one / sum) * 2 ** BITS + (one < 0 ? -0.5 : 0.5)));
    return { first, factors: Int32Array.from(fixed) };
  });
}

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}
