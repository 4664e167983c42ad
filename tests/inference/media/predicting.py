"""A stand-in for `fer-lightning predict`: real inputs, tracks and table, and answers that follow from the pixels.

Run as a process: predicting.py FOLDER RESUME SECONDS_PER_ITEM INPUT…
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fer_lightning.errors import UserError
from fer_lightning.inference.media import table
from fer_lightning.inference.media.images import read_image
from fer_lightning.inference.media.inputs import expand, kind
from fer_lightning.inference.media.table import PredictionTable, Row
from fer_lightning.inference.media.tracks import Tracker
from fer_lightning.inference.media.video import frames

CLASSES = ("angry", "happy", "sad")


def predict(folder: Path, inputs: Sequence[str], *, resume: bool = False, pause: float = 0, every: float = 0.2) -> None:
    paths = expand(inputs)
    names = [str(path) for path in paths]
    with PredictionTable(folder, CLASSES, inputs=names, options={"every": every}, resume=resume) as out:
        for index in range(out.next_input, len(paths)):
            path, name = paths[index], names[index]
            try:
                if kind(path) == "image":
                    pixels, note = read_image(path)
                    time.sleep(pause)
                    out.add([_row(name, pixels, note or "")], next_input=index + 1)
                    continue
                tracker = Tracker()
                if out.tracks is not None:
                    tracker.restore(out.tracks)
                for frame in frames(path, every=every, start=out.next_frame):
                    p = _answer(frame.image)
                    ids, smoothed = tracker.update(frame.seconds, [[frame.number, 5, 40, 40]], [p])
                    row = _row(name, frame.image, "", smoothed[0], ids[0], frame.number, frame.seconds)
                    time.sleep(pause)
                    out.add([row], next_input=index, next_frame=frame.number + 1, tracks=tracker.state())
                out.add([], next_input=index + 1)
            except UserError as error:
                out.add([Row(name, note="unreadable")], next_input=index + 1, failures=[str(error)])
        out.finish()
    print("\n".join(out.failures))


def _answer(pixels: np.ndarray) -> np.ndarray:
    scores = np.exp([pixels[..., channel].mean() / 100 for channel in range(3)])
    return scores / scores.sum()


def _row(
    name: str,
    pixels: np.ndarray,
    note: str,
    p: np.ndarray | None = None,
    face: int = 1,
    frame: int | None = None,
    seconds: float | None = None,
) -> Row:
    p = _answer(pixels) if p is None else p
    label, box = CLASSES[int(p.argmax())], (1.4, 2.6, pixels.shape[1], pixels.shape[0])
    return Row(name, frame, seconds, face, box, label, bool(p.max() < 0.5), p.tolist(), note)


if __name__ == "__main__":
    table.SAVE_EVERY = 0.05
    predict(Path(sys.argv[1]), sys.argv[4:], resume=sys.argv[2] == "1", pause=float(sys.argv[3]))
