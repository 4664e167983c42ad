"""What `fer-lightning predict` prints while it fills its table."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from fer_lightning.errors import printable
from fer_lightning.inference.media.table import PredictionTable, Row

SHOWN = 40
"""Rows that are printed; predictions.csv has all of them."""


class Output:
    """Rows to the terminal, and to predictions.csv if there is one.

    Args:
        classes: class names in label order.
        table: predictions.csv; None to print only.
        total: number of inputs, for the progress bar; 0 for none.
        as_json: print one JSON object per row instead of a table.

    Attributes:
        failures: one message for each input that could not be read.
    """

    def __init__(self, classes: Sequence[str], table: PredictionTable | None, *, total: int, as_json: bool) -> None:
        self.classes, self.table, self.as_json = tuple(classes), table, as_json
        self.failures: list[str] = list(table.failures) if table else []
        self._rows: list[Row] = []
        self._labels: Counter[str] = Counter()
        self._n_rows = self._n_faces = 0
        self._saw_face: bool | None = None  # in the last picture of a camera
        self._resumed = bool(self.next_input or self.next_frame)
        self._progress: Any = None
        if total and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task("predicting", total=total, completed=self.next_input)

    @property
    def next_input(self) -> int:
        """Index of the input to resume at."""
        return self.table.next_input if self.table else 0

    @property
    def next_frame(self) -> int:
        """Number of the frame to resume at, if that is a video."""
        return self.table.next_frame if self.table else 0

    @property
    def tracks(self) -> Mapping[str, Any] | None:
        """State of its tracker."""
        return self.table.tracks if self.table else None

    def add(
        self,
        rows: Sequence[Row],
        *,
        next_input: int,
        next_frame: int = 0,
        tracks: Mapping[str, Any] | None = None,
        failures: Sequence[str] = (),
        live: bool = False,
    ) -> None:
        """Print and store the rows of an item, see `PredictionTable.add`; `live` prints them at once."""
        if self.table:
            self.table.add(rows, next_input=next_input, next_frame=next_frame, tracks=tracks, failures=failures)
        self.failures += failures
        if live and not rows and not self.as_json and self._saw_face is not False:
            print("no face", flush=True)
        self._saw_face = bool(rows) if live else None
        for row in rows:
            self._n_rows += 1
            if row.probabilities is not None:
                self._n_faces += 1
                self._labels["unsure" if row.unsure else row.label] += 1
            if self.as_json:
                print(json.dumps(self._object(row)), flush=live)
            elif live:
                print(_line(row), flush=True)
            elif len(self._rows) < SHOWN:
                self._rows.append(row)
        if self._progress:
            self._progress.update(self._task, completed=next_input)

    def within(self, index: int, share: float) -> None:
        """Show how much of the input with that index, a video, is done."""
        if self._progress:
            self._progress.update(self._task, completed=index + min(share, 1))

    def finish(self, detector: str) -> None:
        """Print the table and the closing messages."""
        if self.table:
            self.table.finish()
        self._stop()
        if not self.as_json:
            if self._rows:
                self._print_table()
            if self._n_rows > SHOWN:
                counts = ", ".join(f"{label} {n:,}" for label, n in self._labels.most_common())
                print(f"{self._n_faces:,} faces{' since the job was resumed' * self._resumed}: {counts}")
                if self.table is None and self._rows:
                    print(f"the first {SHOWN} of {self._n_rows:,} rows are shown; --out FOLDER stores all of them")
            if self.table:
                print(f"table    {printable(self.table.path)}")
        if self._n_rows and not self._n_faces and not self._resumed and len(self.failures) < self._n_rows:
            other = "blaze (after `fer-lightning download blaze`)" if detector == "haar" else "haar"
            print(
                f"no face was found: try --detector {other}, or --detector none if each image is a face",
                file=sys.stderr,
            )
        for failure in self.failures:
            print(f"error: {failure}", file=sys.stderr)

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress:
            self._progress.stop()

    def _print_table(self) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        timed = any(row.seconds is not None for row in self._rows)
        noted = any(row.note for row in self._rows)
        table = Table(header_style="bold")
        for name in ("file", *(["time"] if timed else []), "face", "box", "expression", "confidence"):
            table.add_column(name, justify="left" if name in ("file", "expression") else "right", overflow="fold")
        if noted:
            table.add_column("note")
        for row in self._rows:
            cells = [printable(row.file), _seconds(row), *_face(row), row.note]
            shown = [cell for cell, wanted in zip(cells, [True, timed, *[True] * 4, noted], strict=True) if wanted]
            table.add_row(*map(Text, shown), style="dim" if row.unsure or row.probabilities is None else None)
        Console().print(table)

    def _object(self, row: Row) -> dict[str, Any]:
        p = row.probabilities
        return {
            "file": row.file,
            "frame": row.frame,
            "time": None if row.seconds is None else round(row.seconds, 3),
            "face": row.face,
            "box": None if row.box is None else [round(value) for value in row.box],
            "label": row.label or None,
            "confidence": None if p is None else round(max(p), 4),
            "unsure": None if p is None else row.unsure,
            "probabilities": None if p is None else dict(zip(self.classes, [round(v, 4) for v in p], strict=True)),
            "note": row.note,
        }


def _face(row: Row) -> list[str]:
    """Number, box, expression and confidence."""
    if row.box is None or row.probabilities is None:
        return ["", "", "", ""]
    x, y, width, height = (round(value) for value in row.box)
    label = f"unsure: {row.label}" if row.unsure else row.label
    return [str(row.face), f"{x},{y} {width}×{height}", label, f"{max(row.probabilities):.0%}"]


def _seconds(row: Row) -> str:
    return "" if row.seconds is None else f"{row.seconds:.2f} s"


def _line(row: Row) -> str:
    return "  ".join(filter(None, [_seconds(row), *_face(row), row.note]))
