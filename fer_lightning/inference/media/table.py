"""predictions.csv, written while predicting, and progress.json, from which a killed job resumes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from fer_lightning.errors import UserError, printable
from fer_lightning.report.files import write_atomically

TABLE, PROGRESS = "predictions.csv", "progress.json"
COLUMNS = ("file", "frame", "time", "face", "x", "y", "width", "height", "label", "confidence", "unsure")
PROBABILITY = "p_"
"""Prefix of the columns of class probabilities, as in the predictions.csv of a run."""

FORMAT = 1
"""Increase this whenever table or progress change, so that older ones are not resumed."""

SAVE_EVERY = 1.0
"""Seconds between two savings of the progress; what was predicted since is predicted again when resuming."""


@dataclass(frozen=True)
class Row:
    """A face, or the fact that an image has none.

    Attributes:
        file: path, or a camera's name.
        frame: number of the frame in a video.
        seconds: time of the frame.
        face: number of the face in an image, from 1; id of its track in a video. None if there is no face.
        box: x, y, width, height in pixels of the upright image.
        label: the predicted class.
        unsure: whether the confidence is below the threshold.
        probabilities: one per class; the confidence is the largest.
        note: what a reader should know, such as "no face".
    """

    file: str
    frame: int | None = None
    seconds: float | None = None
    face: int | None = None
    box: Sequence[float] | None = None
    label: str = ""
    unsure: bool = False
    probabilities: Sequence[float] | None = None
    note: str = ""

    def cells(self, n_classes: int) -> list[object]:
        """The cells of the table's row."""
        seconds = "" if self.seconds is None else f"{self.seconds:.3f}"
        box = [""] * 4 if self.box is None else [str(round(value)) for value in self.box]
        face = [self.file, self.frame, seconds, self.face, *box]
        if self.probabilities is None:
            return [*face, *[""] * (3 + n_classes), self.note]
        assert len(self.probabilities) == n_classes
        p = [f"{value:.4f}" for value in self.probabilities]
        return [*face, self.label, f"{max(self.probabilities):.4f}", self.unsure, *p, self.note]


class PredictionTable:
    """predictions.csv in a folder, to which rows are added item by item, and progress.json beside it.

    An item is a photo, a batch of photos that are predicted together, or a frame. Its rows reach the operating system
    before `add` returns. The progress holds the length of a table of whole items and what follows it; to resume, the
    table is cut to this length. The finished table of a job that was killed and resumed is then the same, byte for
    byte, as that of one that was not, provided that batches begin at the same inputs (probabilities depend on the
    composition of a batch in their last digits).

    File names that are not UTF-8 are written as their bytes: read such a table with
    `pandas.read_csv(path, encoding_errors="surrogateescape")`.

    Args:
        folder: created if necessary.
        classes: class names in label order.
        inputs: the files in the order in which they are predicted.
        options: what else the rows depend on, values of JSON types: model, detector, `every`, …
        resume: continue the table in the folder, if there is one.

    Attributes:
        next_input: index of the input to resume at.
        next_frame: number of the frame to resume at, if that is a video.
        tracks: state of its tracker; None for a new one.
        failures: one message for each input that could not be read.
        finished: whether all inputs were predicted by the job that is resumed.

    Raises:
        UserError: the folder cannot be written, holds a table and `resume` is false, or holds a damaged one, or one
            of other inputs or options.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        *,
        inputs: Sequence[str],
        options: Mapping[str, Any],
        resume: bool = False,
    ) -> None:
        self.path, self._progress = folder / TABLE, folder / PROGRESS
        self._n_classes = len(classes)
        names = "\n".join(map(repr, inputs)).encode()
        asked = {"n_inputs": len(inputs), "inputs": hashlib.sha256(names).hexdigest(), "options": dict(options)}
        self._asked = json.loads(json.dumps(asked | {"classes": list(classes)}))
        self.next_input, self.next_frame, self.finished, self._saved = 0, 0, False, 0.0
        self.tracks: Mapping[str, Any] | None = None
        self.failures: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if resume and (self._progress.exists() or self.path.exists()):
                self._file = self._resumed()
            else:
                self._file = self.path.open("xb")
                self._length = 0
                self._write([[*COLUMNS, *(PROBABILITY + name for name in classes), "note"]])
                self._save()
        except FileExistsError:
            if not folder.is_dir():
                raise UserError(f"{printable(folder)} is a file: choose another folder with --out") from None
            raise UserError(
                f"{printable(self.path)} exists: continue it with --resume, or choose another folder with --out"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error

    def add(
        self,
        rows: Sequence[Row],
        *,
        next_input: int,
        next_frame: int = 0,
        tracks: Mapping[str, Any] | None = None,
        failures: Sequence[str] = (),
    ) -> None:
        """Add the rows of an item.

        Args:
            rows: its rows.
            next_input: index of the input that follows.
            next_frame: number of the frame that follows, if that is the same video.
            tracks: state of its tracker.
            failures: one message for each input of the item that could not be read.

        Raises:
            UserError: the file system is full, for example.
        """
        try:
            self._write([row.cells(self._n_classes) for row in rows])
            self.next_input, self.next_frame, self.tracks = next_input, next_frame, tracks
            self.failures += failures
            if time.monotonic() - self._saved >= SAVE_EVERY:
                self._save()
        except OSError as error:
            raise self._unwritable(error) from error

    def finish(self) -> None:
        """Note that nothing follows; raises UserError as `add` does."""
        self.finished = True
        try:
            self._save()
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the progress of a second ago serves as well
            if not self.finished:
                self._save()
            self._file.close()

    def _write(self, rows: Sequence[Sequence[object]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        content = text.getvalue().encode("utf-8", "surrogateescape")
        self._file.write(content)
        self._file.flush()
        self._length += len(content)

    def _save(self) -> None:
        os.fsync(self._file.fileno())  # or the progress may survive a power failure that its rows do not
        progress = {
            "format": FORMAT,
            "asked": self._asked,
            "next_input": self.next_input,
            "next_frame": self.next_frame,
            "tracks": self.tracks,
            "failures": self.failures,
            "length": self._length,
            "finished": self.finished,
        }
        write_atomically(self._progress, json.dumps(progress).encode())
        self._saved = time.monotonic()

    def _resumed(self) -> BinaryIO:
        where, restart = printable(self._progress), "choose another folder with --out, without --resume"
        try:
            progress = json.loads(self._progress.read_bytes())
            if progress["format"] != FORMAT:
                raise UserError(f"{where} is of another version of fer-lightning: {restart}")
            asked = progress["asked"]
            changed = [key for key, value in self._asked.items() if key != "options" and asked[key] != value]
            self.next_input, self.next_frame = int(progress["next_input"]), int(progress["next_frame"])
            self.tracks, self.failures = progress["tracks"], [str(line) for line in progress["failures"]]
            self._length, self.finished = int(progress["length"]), bool(progress["finished"])
            options = {**dict.fromkeys(asked["options"]), **self._asked["options"]}
            changed += [key for key, value in options.items() if asked["options"].get(key) != value]
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where} is missing or damaged: {restart}") from error
        if changed:
            n = f"{asked['n_inputs']} then, {self._asked['n_inputs']} now"
            reasons = [f"other inputs ({n})" if key == "inputs" else key for key in changed if key != "n_inputs"]
            raise UserError(f"{where}: this job had other values of {', '.join(reasons)}: repeat them, or {restart}")
        if not self.path.is_file() or self.path.stat().st_size < self._length:
            raise UserError(f"{printable(self.path)} is missing or shorter than {PROGRESS} states: {restart}")
        file = self.path.open("r+b")
        file.truncate(self._length)
        file.seek(self._length)
        return file

    def _unwritable(self, error: OSError) -> UserError:
        path = error.filename or self.path
        return UserError(f"{printable(path)} cannot be written ({error.strerror}); choose another folder with --out")
