"""Photos, videos and cameras to faces and their expressions: `fer-lightning predict`."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TypeVar

from fer_lightning.errors import UserError, flat, printable
from fer_lightning.inference.faces.choose import NAMES, load_detector
from fer_lightning.inference.faces.find import Found
from fer_lightning.inference.load import as_list, load, together
from fer_lightning.inference.media import annotate, video
from fer_lightning.inference.media.images import read_image, without_remarks
from fer_lightning.inference.media.inputs import expand, kind
from fer_lightning.inference.media.table import TABLE, PredictionTable, Row
from fer_lightning.inference.media.tracks import Tracker
from fer_lightning.inference.output import Output
from fer_lightning.inference.recognizer import Recognizer, marks

COPIES = "annotated"
"""Folder of annotated copies in that of the results."""

PHOTOS = 64
"""Photos whose faces are classified together."""

FRAMES = 8
"""Frames of a video whose faces are classified together."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Job:
    """What is done with the inputs.

    Attributes:
        recognizer: finds and classifies faces.
        pool: threads that read and search images.
        output: where the rows go.
        every: seconds between the frames that are looked at; None for all.
        annotated: the folder for annotated copies; None for none.
    """

    recognizer: Recognizer
    pool: ThreadPoolExecutor
    output: Output
    every: float | None
    annotated: Path | None


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
    if camera is not None and (annotated or resume):
        raise UserError(f"--{'annotate' if annotated else 'resume'} does not go with --camera; record a video first")
    if camera is not None and out is not None and (out / TABLE).exists():
        raise UserError(f"{printable(out / TABLE)} exists: choose another folder with --out")
    paths = expand(inputs, None if out is None else out / COPIES)
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
        "detector": photo_detector.name if detector in NAMES else _digest(Path(detector).expanduser()),
        "every": every,
        "annotate": annotated,
    }
    with ExitStack() as stack:
        stack.enter_context(without_remarks())
        table = None
        # A camera that cannot be opened leaves no table.
        live = _started(video.frames(camera, every=every or None)) if camera is not None else None
        if out is not None:
            names = [str(path) for path in paths] if camera is None else [_camera_name(camera)]
            table = PredictionTable(out, predictor.classes, inputs=names, options=options, resume=resume)
            stack.enter_context(table)
            if table.finished:
                print(f"{table.path} is finished: there is nothing to do", file=sys.stderr)
        recognizer = Recognizer(predictor, photo_detector, video_detector)
        copies = _folder_of_copies(out) if out is not None and annotated else None
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1))
        stack.callback(pool.shutdown, cancel_futures=True)  # Ctrl-C does not wait for what is queued
        total = len(paths) if camera is None else 0
        output = stack.enter_context(Output(predictor.classes, table, total=total, as_json=as_json))
        job = Job(recognizer, pool, output, every or None, copies)
        try:
            if camera is not None and live is not None:
                _camera(job, camera, live)
            else:
                _files(job, paths)
        except KeyboardInterrupt:
            if table is not None:
                more = "; --resume continues" if camera is None else ""
                print(f"{table.path} has the results so far{more}", file=sys.stderr)
            raise
        output.finish(photo_detector.name)
        return int(bool(output.failures))


def _folder_of_copies(out: Path) -> Path:
    folder = out / COPIES
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{printable(folder)}: {flat(error)}; choose another folder with --out") from error
    return folder


def _files(job: Job, paths: Sequence[Path]) -> None:
    stems = annotate.unique_stems(paths) if job.annotated else [""] * len(paths)
    start = job.output.next_input
    for is_video, group in groupby(range(start, len(paths)), key=lambda i: _is_video(paths[i])):
        if is_video:
            for i in group:
                _video(job, paths[i], i, stems[i])
            continue
        for batch, found in _ahead(job.pool, lambda i: job.recognizer.search_photo(paths[i]), _batches(group, PHOTOS)):
            _photos(job, [(paths[i], stems[i]) for i in batch], found, batch[-1] + 1)


def _photos(job: Job, batch: Sequence[tuple[Path, str]], found: Sequence[Found], next_input: int) -> None:
    rows, failures = [], []
    for (path, stem), one, probabilities in zip(batch, found, job.recognizer.classify(found), strict=True):
        if one.error:
            failures.append(one.error)
            rows.append(Row(str(path), note="unreadable"))
            continue
        mine = [
            job.recognizer.row(str(path), face, p, note, number)
            for number, (face, p, note) in enumerate(zip(one.faces, probabilities, one.notes, strict=True), 1)
        ]
        rows += mine or [Row(str(path), note=", ".join(filter(None, ["no face", one.note])))]
        if job.annotated is not None:
            copy = job.annotated / f"{stem}{annotate.image_suffix(path)}"
            try:
                annotate.write_image(copy, annotate.draw(read_image(path).pixels, marks(mine)))
            except UserError as error:
                failures.append(str(error))
    job.output.add(rows, next_input=next_input, failures=failures)


def _video(job: Job, path: Path, index: int, stem: str) -> None:
    tracker = Tracker(lost_after=_lost_after(job))
    pending: list[Row] = []
    failures: list[str] = []
    unreadable = False
    # An unfinished copy cannot be continued: with one, the rows wait for it, and the job resumes at its first frame.
    if job.annotated is None and job.output.tracks is not None:
        tracker.restore(job.output.tracks)
    with _noting(failures), ExitStack() as stack:
        writer = None
        try:
            header = video.properties(path)
            if job.annotated is not None:
                rate = min(header.rate, 1 / job.every) if job.every else header.rate
                writer = stack.enter_context(annotate.VideoWriter(job.annotated / f"{stem}.mp4", rate))
            stream = video.frames(path, every=job.every, start=job.output.next_frame)
            for batch, found in _ahead(job.pool, job.recognizer.search_frame, _batches(stream, FRAMES)):
                of_frames = _frames(job, str(path), batch, found, tracker)
                rows = [row for of_frame in of_frames for row in of_frame]
                if writer is not None:
                    try:
                        for frame, of_frame in zip(batch, of_frames, strict=True):
                            writer.write(annotate.draw(frame.image, marks(of_frame)))
                    except UserError as error:  # the rows are kept without a copy
                        failures.append(str(error))
                        writer = None
                if job.annotated is None:
                    last = batch[-1].number + 1
                    job.output.add(rows, next_input=index, next_frame=last, tracks=tracker.state())
                else:
                    pending += rows
                job.output.within(index, (batch[-1].number + 1) / (header.n_frames or math.inf))
        except UserError as error:
            failures.append(str(error))
            unreadable = True
    if tracker.state()["next"] == 1:  # no face in any frame, those before the job was resumed included
        pending.append(Row(str(path), note="unreadable" if unreadable else "no face"))
    job.output.add(pending, next_input=index + 1, failures=failures)


@contextmanager
def _noting(failures: list[str]) -> Iterator[None]:
    """A copy of a video that cannot be completed is a failure, and its rows are kept."""
    try:
        yield
    except UserError as error:
        failures.append(str(error))


def _frames(
    job: Job,
    file: str,
    batch: Sequence[video.Frame],
    found: Sequence[Found],
    tracker: Tracker,
) -> list[list[Row]]:
    """The rows of each frame."""
    rows = []
    for frame, one, probabilities in zip(batch, found, job.recognizer.classify(found), strict=True):
        boxes = [(face.x, face.y, face.width, face.height) for face in one.faces]
        ids, smoothed = tracker.update(frame.seconds, boxes, probabilities)
        mine = [
            job.recognizer.row(file, face, p, note, number, frame=frame.number, seconds=frame.seconds)
            for face, p, note, number in zip(one.faces, smoothed, one.notes, ids, strict=True)
        ]
        rows.append(mine)
    return rows


def _started(frames: Iterator[T]) -> Iterator[T]:
    """The same frames, of which the first one has been taken."""
    return chain([first], frames) if (first := next(frames, None)) is not None else frames


def _camera(job: Job, index: int, frames: Iterator[video.Frame]) -> None:
    tracker = Tracker(lost_after=_lost_after(job))
    for i, frame in enumerate(frames):
        if i == 0:
            print(f"{_camera_name(index)}: looking for faces; Ctrl-C ends", file=sys.stderr)
        found = job.recognizer.search_frame(frame)
        rows = [row for of_frame in _frames(job, _camera_name(index), [frame], [found], tracker) for row in of_frame]
        job.output.add(rows, next_input=0, next_frame=frame.number + 1, live=True)


def _camera_name(index: int) -> str:
    return f"camera {index}"


def _lost_after(job: Job) -> float:
    return max(1.0, 2.5 * (job.every or 0))


def _is_video(path: Path) -> bool:
    try:
        return kind(path) == "video"
    except UserError:  # reported when it is read
        return False


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
    if path.is_dir():
        from fer_lightning.runs.folder import BEST, CHECKPOINTS  # imports Hydra, which loading a run has done already

        path = path / CHECKPOINTS / BEST
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
