// Why the network's answer for a face deserves less trust, as fer_lightning.inference.faces judges it.

/**
 * Short notes, none if nothing speaks against the answer. Limits: the side of the frame in pixels, the share of it
 * beyond the image's edge, and see turn.
 */
export function concerns(image, face, { left, top, side }, { small, cut, turned }) {
  const inside = share(left, side, image.width) * share(top, side, image.height);
  const found = {
    "small face": side < small, "cut by the edge": inside < 1 - cut, "turned away": Math.abs(turn(face)) > turned,
  };
  return Object.keys(found).filter((name) => found[name]);
}

const share = (start, length, size) => Math.max(Math.min(start + length, size) - Math.max(start, 0), 0) / length;

// Where the tip of the nose lies between the ears, along the line through the eyes: 0 in the middle, 1 or -1 at an ear.
function turn({ points: [rightEye, leftEye, nose, , rightEar, leftEar] }) {
  const apart = Math.max(Math.hypot(leftEye[0] - rightEye[0], leftEye[1] - rightEye[1]), 1e-6);
  const [x, y] = [(leftEye[0] - rightEye[0]) / apart, (leftEye[1] - rightEye[1]) / apart];
  const along = (from, to) => (to[0] - from[0]) * x + (to[1] - from[1]) * y;
  const middle = [(rightEar[0] + leftEar[0]) / 2, (rightEar[1] + leftEar[1]) / 2];
  return along(middle, nose) / Math.max(along(rightEar, leftEar) / 2, 1e-6);
}
