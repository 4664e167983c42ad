"""Photos, videos and cameras to faces and their expressions: `fer-lightning predict`."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.readers.images import decode
from fer_lightning.errors import UserError, printable
from fer_lightning.inference.faces.choose import load_detector
from fer_lightning.inference.faces.detector import Detector
from fer_lightning.inference.faces.frame import CropRule, Face, concerns, crop
from fer_lightning.inference.load import as_list, load, together
from fer_lightning.inference.media import annotate, video
from fer_lightning.inference.media.images import read_image
from fer_lightning.inference.media.inputs import expand, kind
from fer_lightning.inference.media.table import PredictionTable, Row
from fer_lightning.inference.media.tracks import Tracker
from fer_lightning.inference.output import Output
from fer_lightning.inference.predictor import Predictor
from fer_lightning.runs.folder import BEST, CHECKPOINTS

PHOTOS = 64
"""Photos whose faces are classified together."""

FRAMES = 8
"""Frames of a video whose faces are classified together."""

T = TypeVar("T")
R = TypeVar("R")
Faces = NDArray[np.uint8]


class Found(NamedTuple):
    """What was found in a photo or frame.

    Attributes:
        faces: in pixels of the upright image.
        crops: uint8 (N, size, size), grey.
        notes: for each face, what speaks against trusting the answer.
        error: why the photo could not be read; empty otherwise.
    """

    faces: list[Face]
    crops: Faces
    notes: list[str]
    error: str = ""


@dataclass
class Job:
    """How faces are found and classified.

    Attributes:
        predictor: from crops to probabilities.
        detector: for photos.
        video_detector: for frames, one that is faster where there is one.
        every: seconds between the frames that are looked at; None for all.
        annotated: the folder for annotated copies; None for none.
        pool: threads that read and search images.
    """

    predictor: Predictor
    detector: Detector
    video_detector: Detector
    every: float | None
    annotated: Path | None
    pool: ThreadPoolExecutor = field(repr=False)

    def rule(self, detector: Detector) -> CropRule:
        return self.predictor.crop.get(detector.name, detector.rule)

    def search(self, image: Faces, detector: Detector, note: str = "") -> Found:
        """The faces in an image, uint8 RGB (H, W, 3)."""
        faces, rule, size = detector(image), self.rule(detector), self.predictor.size
        crops = [crop(image, face, rule, size) for face in faces]
        notes = [", ".join(filter(None, [*concerns(image, face, rule), note])) for face in faces]
        return Found(faces, np.array(crops, dtype=np.uint8).reshape(-1, size, size), notes)

    def search_photo(self, path: Path) -> Found:
        """The faces in a photo; a photo that cannot be read has an error instead."""
        try:
            if kind(path) == "video":
                raise UserError(f"{printable(path)} is a video")  # its content has changed meanwhile
            if self.detector.name != "none":
                pixels, note = read_image(path)
                return self.search(pixels, self.detector, note or "")
            # As the reader of training images, which decodes large files at a fraction of their size.
            face, (width, height) = decode(path.read_bytes(), printable(path))
            side = min(width, height)
            whole = Face((width - side) / 2, (height - side) / 2, side, side, 1.0)
            return Found([whole], face[None], [""])
        except UserError as error:
            return self._nothing(str(error))
        except OSError as error:
            return self._nothing(f"{printable(path)} cannot be read ({error.strerror})")

    def _nothing(self, error: str) -> Found:
        return Found([], np.empty((0, self.predictor.size, self.predictor.size), np.uint8), [], error)

    def classify(self, found: Sequence[Found]) -> list[NDArray[np.float64]]:
        """The probabilities (N, C) of the faces in each of several photos or frames."""
        probabilities = self.predictor.probabilities(np.concatenate([one.crops for one in found]))
        return np.split(probabilities, np.cumsum([len(one.faces) for one in found])[:-1])

    def row(self, file: str, face: Face, p: NDArray[np.float64], note: str, number: int, **frame: Any) -> Row:
        box = (face.x, face.y, face.width, face.height)
        label = self.predictor.classes[int(p.argmax())]
        known: dict[str, Any] = {"label": label, "unsure": self.unsure(p), "probabilities": p.tolist(), "note": note}
        return Row(file, face=number, box=box, **known, **frame)

    def unsure(self, p: NDArray[np.float64]) -> bool:
        calibration = self.predictor.calibration
        return calibration is not None and bool(p.max() < calibration.threshold)


def predict(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    model: str | Path | Sequence[str | Path],
    detector: str = "auto",
    tta: str | None = None,
    camera: int | None = None,
    every: float = 0.2,
    out: Path | None = None,
    annotated: bool = False,
    resume: bool = False,
    as_json: bool = False,
    accelerator: str = "auto",
    trust: bool = False,
) -> int:
    """Find the faces in photos, videos or a camera's pictures, and print and store their expressions.

    Args:
        inputs: files, folders and patterns, see `fer_lightning.inference.media.inputs.expand`.
        model: see `fer_lightning.inference.load.load_model`.
        detector: see `fer_lightning.inference.faces.choose.load_detector`.
        tta: test-time augmentation; None for what the model was calibrated with.
        camera: number of a camera, instead of inputs.
        every: seconds between the frames of a video that are looked at; 0 for all of them.
        out: the folder for predictions.csv and annotated copies; None to print only.
        annotated: write copies of photos and videos with boxes and labels.
        resume: continue the job that wrote the table in `out`.
        as_json: print one JSON object per face instead of a table.
        accelerator: "auto", "cpu" or "gpu".
        trust: allow a run's network that is not on the allow-list.

    Returns:
        The exit code: 1 if an input could not be read.

    Raises:
        UserError: no inputs, models or detector as named, or a folder that cannot be written.
    """
    if (camera is None) == (not inputs):
        raise UserError("name photos, videos or folders, or a camera with --camera 0")
    if out is None and (annotated or resume):
        raise UserError(f"--{'annotate' if annotated else 'resume'} needs a folder: name it with --out")
    if not 0 <= every < float("inf"):
        raise UserError(f"--every {every}: use a number of seconds, or 0 for every frame")
    paths = expand(inputs)
    photo_detector, hint = load_detector(detector)
    video_detector, _ = load_detector(detector, fast=True)
    models = as_list(model)
    loaded = [load(one, accelerator=accelerator, trust=trust) for one in models]
    predictor = together(loaded, tta)
    if hint:
        print(hint, file=sys.stderr)
    video.silent_cv2().setNumThreads(1)  # photos are searched side by side instead
    options = {
        "models": [_digest(one.path) for one in loaded],
        "tta": predictor.tta,
        "detector": photo_detector.name if detector in ("auto", "blaze", "haar", "none") else _digest(Path(detector)),
        "every": every,
        "annotate": annotated,
    }
    with ExitStack() as stack:
        table = None
        if out is not None:
            names = [str(path) for path in paths] if camera is None else [_camera_name(camera)]
            table = PredictionTable(out, predictor.classes, inputs=names, options=options, resume=resume)
            stack.enter_context(table)
            if table.finished:
                print(f"{table.path} is finished: there is nothing to do")
                return 0
        copies = out / "annotated" if out is not None and annotated else None
        if copies is not None:
            copies.mkdir(exist_ok=True)
            if camera is not None:
                raise UserError("--annotate does not go with --camera; record a video first")
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1))
        job = Job(predictor, photo_detector, video_detector, every or None, copies, pool)
        output = stack.enter_context(Output(predictor.classes, table, total=len(paths), as_json=as_json))
        if camera is not None:
            _camera(job, camera, output)
        else:
            _files(job, paths, output)
        output.finish(photo_detector.name)
        return int(bool(output.failures))


def _files(job: Job, paths: Sequence[Path], output: Output) -> None:
    stems = annotate.unique_stems(paths) if job.annotated else []
    start = output.next_input
    for is_video, group in groupby(range(start, len(paths)), key=lambda i: _is_video(paths[i])):
        if is_video:
            for i in group:
                _video(job, paths[i], i, output, stems[i] if stems else "")
            continue
        for batch, found in _ahead(job.pool, lambda i: job.search_photo(paths[i]), _batches(group, PHOTOS)):
            _photos(job, [(i, paths[i], stems[i] if stems else "") for i in batch], found, output)


def _photos(job: Job, batch: Sequence[tuple[int, Path, str]], found: Sequence[Found], output: Output) -> None:
    rows, failures = [], []
    for (_, path, stem), one, probabilities in zip(batch, found, job.classify(found), strict=True):
        if one.error:
            failures.append(one.error)
            rows.append(Row(str(path), note="unreadable"))
            continue
        mine = [
            job.row(str(path), face, p, note, number)
            for number, (face, p, note) in enumerate(zip(one.faces, probabilities, one.notes, strict=True), 1)
        ]
        rows += mine or [Row(str(path), note="no face")]
        if job.annotated is not None:
            copy = job.annotated / f"{stem}{annotate.image_suffix(path)}"
            annotate.write_image(copy, annotate.draw(read_image(path).pixels, _marks(mine)))
    output.add(rows, next_input=batch[-1][0] + 1, failures=failures)


def _video(job: Job, path: Path, index: int, output: Output, stem: str) -> None:
    tracker = _tracker(job)
    failures, n_faces = [], 0
    with ExitStack() as stack:
        writer, pending = None, []
        if job.annotated is not None:
            rate = 1 / job.every if job.every else video.properties(path).rate
            writer = stack.enter_context(annotate.VideoWriter(job.annotated / f"{stem}.mp4", rate))
        elif output.tracks is not None:
            tracker.restore(output.tracks)
        start = 0 if writer else output.next_frame
        try:
            stream = video.frames(path, every=job.every, start=start)
            search = partial(_search_frame, job)
            for batch, found in _ahead(job.pool, search, _batches(stream, FRAMES)):
                rows = _frames(job, str(path), batch, found, tracker, writer)
                n_faces += len(rows)
                if writer is None:
                    last = batch[-1].number + 1
                    output.add(rows, next_input=index, next_frame=last, tracks=tracker.state())
                else:  # an unfinished copy cannot be continued, so its rows wait for it
                    pending += rows
        except UserError as error:
            failures.append(str(error))
    nothing = [] if n_faces or start else [Row(str(path), note="unreadable" if failures else "no face")]
    output.add(pending or nothing, next_input=index + 1, failures=failures)


def _frames(
    job: Job,
    file: str,
    batch: Sequence[video.Frame],
    found: Sequence[Found],
    tracker: Tracker,
    writer: annotate.VideoWriter | None = None,
) -> list[Row]:
    rows = []
    for frame, one, probabilities in zip(batch, found, job.classify(found), strict=True):
        boxes = [(face.x, face.y, face.width, face.height) for face in one.faces]
        ids, smoothed = tracker.update(frame.seconds, boxes, probabilities)
        mine = [
            job.row(file, face, p, note, number, frame=frame.number, seconds=frame.seconds)
            for face, p, note, number in zip(one.faces, smoothed, one.notes, ids, strict=True)
        ]
        rows += mine
        if writer is not None:
            writer.write(annotate.draw(frame.image, _marks(mine)))
    return rows


def _camera(job: Job, index: int, output: Output) -> None:
    tracker = _tracker(job)
    for frame in video.frames(index, every=job.every):
        found = job.search(frame.image, job.video_detector)
        rows = _frames(job, _camera_name(index), [frame], [found], tracker)
        output.add(rows, next_input=0, next_frame=frame.number + 1, live=True)


def _camera_name(index: int) -> str:
    return f"camera {index}"


def _tracker(job: Job) -> Tracker:
    return Tracker(lost_after=max(1.0, 2.5 * (job.every or 0)))


def _marks(rows: Iterable[Row]) -> list[annotate.Mark]:
    return [
        annotate.Mark(row.box, annotate.label_text(row.label, max(row.probabilities), unsure=row.unsure), row.unsure)
        for row in rows
        if row.box is not None and row.probabilities is not None
    ]


def _is_video(path: Path) -> bool:
    try:
        return kind(path) == "video"
    except UserError:  # reported when it is read
        return False


def _search_frame(job: Job, frame: video.Frame) -> Found:
    return job.search(frame.image, job.video_detector)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter; also of those before an item that cannot be read."""
    batch: list[T] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except UserError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], batches: Iterable[list[T]]
) -> Iterator[tuple[list[T], list[R]]]:
    """Batches and the results of their items, computed by threads while the batch before is used."""
    last: tuple[list[T], list[Future[R]]] | None = None
    problem: UserError | None = None
    try:
        for batch in batches:
            futures = [pool.submit(function, item) for item in batch]
            if last:
                yield last[0], [future.result() for future in last[1]]
            last = batch, futures
    except UserError as error:  # what was read before it comes first
        problem = error
    if last:
        yield last[0], [future.result() for future in last[1]]
    if problem:
        raise problem


def _digest(path: Path) -> str:
    """A digest of a run's best checkpoint or of a file."""
    with (path / CHECKPOINTS / BEST if path.is_dir() else path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
