"""Accuracy on photos of faces against accuracy on the faces themselves, and the speed of predicting.

    python benchmarks/photos.py --model MODEL --data fer2013.csv.gz [--blaze FILE.tflite] [--out photos.json]

The photos are made from images of PrivateTest: enlarged to 48, 96 and 192 pixels and padded by replication, by half of
that on each side (or --surroundings). With the detector `none`, which takes the whole image for the face, there is no
padding. A face counts as found if a frame overlaps the true one by half (intersection over union).

The loss is in points of accuracy against the frames themselves: of the faces that are found on those faces, of all on
all images, where faces that are not found are wrong answers.

Memory is read from /proc (Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fer_lightning.data.readers import sources
from fer_lightning.errors import UserError
from fer_lightning.inference.faces.choose import load_detector
from fer_lightning.inference.faces.find import Found
from fer_lightning.inference.faces.frame import frame
from fer_lightning.inference.load import load_model
from fer_lightning.inference.media.tracks import iou
from fer_lightning.inference.predict import predict
from fer_lightning.inference.predictor import Predictor
from fer_lightning.inference.recognizer import Recognizer
from fer_lightning.runs.results import git_commit

SIDES = (48, 96, 192)
"""Sides of the faces, in pixels."""

OVERLAP = 0.5
"""Intersection over union of a frame and the true one from which the face counts as found."""

COMMAND = ["-c", "from fer_lightning.cli import app; app()", "predict"]


def photo_of(face: NDArray[np.uint8], side: int, surroundings: float) -> NDArray[np.uint8]:
    """A face of `side` pixels with surroundings, a fraction of the side, that repeat its border."""
    if side != len(face):
        face = cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.pad(face, round(surroundings * side), mode="edge")


# ---------------------------------------------------------------- parity


def best(found: Found, recognizer: Recognizer, side: int, padding: int) -> int | None:
    """The face whose frame is the true one; None if there is none."""
    detector = recognizer.detector
    rule = recognizer.predictor.crop.get(detector.name, detector.rule)
    frames = [(left, top, size, size) for left, top, size in (frame(face, rule) for face in found.faces)]
    if not frames:
        return None
    overlaps = iou(np.array(frames), [[padding, padding, side, side]])[:, 0]
    return int(overlaps.argmax()) if overlaps.max() >= OVERLAP else None


def parity(
    predictor: Predictor,
    name: str,
    side: int,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    surroundings: float,
) -> dict[str, Any]:
    """Accuracy on photos, found by a detector, against that on the images themselves."""
    detector = load_detector(name)[0]
    recognizer = Recognizer(predictor, detector, detector)
    surroundings = 0.0 if detector.name == "none" else surroundings
    answers, n_other = np.full(len(images), -1), 0
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i}.png") for i in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(photo_of(image, side, surroundings)).save(path, compress_level=1)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            found = list(pool.map(recognizer.search_photo, paths))
    for i, (one, probabilities) in enumerate(zip(found, recognizer.classify(found), strict=True)):
        if one.error:
            raise SystemExit(one.error)
        face = best(one, recognizer, side, round(surroundings * side))
        n_other += len(one.faces) - (face is not None)
        if face is not None:
            answers[i] = probabilities[face].argmax()
    frames = predictor.probabilities(images).argmax(1)
    known = answers >= 0
    hits, hits_of_frames = answers == labels, frames == labels
    return {
        "detector": detector.name,
        "side": side,
        "images": len(images),
        "found": float(known.mean()),
        "other_boxes": n_other,
        "accuracy_found": float(hits[known].mean()) if known.any() else 0.0,
        "accuracy_all": float(hits.mean()),
        "frames_found": float(hits_of_frames[known].mean()) if known.any() else 0.0,
        "frames_all": float(hits_of_frames.mean()),
        "same_answer": float((answers == frames)[known].mean()) if known.any() else 0.0,
    }


# ---------------------------------------------------------------- speed


@contextlib.contextmanager
def face_files(images: NDArray[np.uint8], n: int) -> Iterator[Path]:
    """A folder of n PNG files of faces; those after the images are further links to theirs."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            path = Path(folder, f"{i:05}.png")
            if i < len(images):
                Image.fromarray(images[i]).save(path)
            else:
                path.hardlink_to(Path(folder, f"{i % len(images):05}.png"))
        yield Path(folder)


@contextlib.contextmanager
def photo_files(images: NDArray[np.uint8], n: int, width: int = 640, height: int = 480) -> Iterator[Path]:
    """A folder of n colour JPEG files, each with two of the faces, of 192 and 96 pixels, on a background of noise."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            coarse = rng.integers(90, 170, (height // 40, width // 40, 3), np.uint8)
            picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            for number, (side, x, y) in enumerate(((192, 16, 48), (96, 420, 200))):
                face = photo_of(images[(2 * i + number) % len(images)], side, 0.25)
                picture[y : y + len(face), x : x + len(face)] = face[..., None]
            Image.fromarray(picture).save(Path(folder, f"{i:05}.jpg"), quality=92)
        yield Path(folder)


def seconds_of_predicting(folder: Path, model: str, detector: str) -> tuple[float, int]:
    """Seconds that `predict` takes for a folder, without imports, and the number of faces."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()) as printed:
        started = time.perf_counter()
        if predict([folder], model=model, detector=detector, out=Path(out, "out"), as_json=True):
            raise SystemExit("predict failed")
        seconds = time.perf_counter() - started
    faces = [line for line in printed.getvalue().splitlines() if json.loads(line)["label"]]
    return seconds, len(faces)


def cold_start(model: str, images: NDArray[np.uint8], rounds: int) -> dict[str, float]:
    """Seconds from starting a process to its answer for one photo, with haar."""
    seconds = []
    with photo_files(images, 1) as folder:
        for _ in range(rounds):
            started = time.perf_counter()
            command = [sys.executable, *COMMAND, str(folder), "--detector=haar", f"--model={model}"]
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
    return {"first": seconds[0], "median": statistics.median(seconds), "best": min(seconds)}


def speed(predictor: Predictor, model: str, images: NDArray[np.uint8], detectors: list[str]) -> dict[str, Any]:
    """Faces and photos per second."""
    predictor.probabilities(images[:512])
    started = time.perf_counter()
    predictor.probabilities(images)
    network = len(images) / (time.perf_counter() - started)
    with face_files(images, len(images)) as folder:
        seconds, n_faces = seconds_of_predicting(folder, model, "none")
    result: dict[str, Any] = {"network_faces_per_second": network, "files_faces_per_second": n_faces / seconds}
    for name in detectors:
        if name != "none":
            n = 60 if name == "haar" else 200
            with photo_files(images, n) as folder:
                seconds, n_faces = seconds_of_predicting(folder, model, name)
            short = load_detector(name)[0].name
            result |= {f"{short}_photos_per_second": n / seconds, f"{short}_faces_per_photo": n_faces / n}
    return result


def memory(model: str, images: NDArray[np.uint8], n: int) -> dict[str, float]:
    """Resident set size in MiB of a process that predicts n files of faces, after a tenth of them and at the end."""
    at = {n // 10: 0.0, n - 10: 0.0}
    with face_files(images, n) as folder, tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-u", *COMMAND, str(folder), "--detector=none", f"--model={model}", "--json"]
        with subprocess.Popen([*command, f"--out={out}/out"], stdout=subprocess.PIPE) as process:
            assert process.stdout
            for number, _ in enumerate(process.stdout, 1):
                if number in at:
                    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                    at[number] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        if process.returncode:
            raise SystemExit("predict failed")
    first, last = at.values()
    return {"files": n, "rss_after_a_tenth": first, "rss_at_the_end": last}


# ---------------------------------------------------------------- output


def hardware() -> str:
    """Processor, cores and threads."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def as_table(rows: list[dict[str, Any]]) -> str:
    """The parity as a Markdown table, in per cent and points."""
    lines = [
        "| detector | face, pixels | found | accuracy, found | loss, found | accuracy, all | loss, all | same answer "
        "| other boxes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        of_found, of_all = (row[f"frames_{part}"] - row[f"accuracy_{part}"] for part in ("found", "all"))
        lines.append(
            f"| {row['detector']} | {row['side']} | {row['found']:.1%} | {row['accuracy_found']:.1%} | "
            f"{100 * of_found:+.1f} | {row['accuracy_all']:.1%} | {100 * of_all:+.1f} | {row['same_answer']:.1%} | "
            f"{row['other_boxes']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run folder, file, or name of a shipped model")
    parser.add_argument("--data", required=True, help="FER-2013: CSV, folder or archive")
    parser.add_argument("--blaze", help="BlazeFace full-range, if it has not been downloaded")
    parser.add_argument("--images", type=int, default=600, help="of PrivateTest, evenly spaced; 0 for all")
    parser.add_argument("--surroundings", type=float, default=0.5, help="as a fraction of the face's side")
    parser.add_argument("--files", type=int, default=10_000, help="of the measurement of memory")
    parser.add_argument("--rounds", type=int, default=5, help="of the cold start")
    parser.add_argument("--parts", nargs="+", default=["parity", "cold", "speed", "memory"])
    parser.add_argument("--out", type=Path, default=Path("photos.json"))
    arguments = parser.parse_args()
    model = arguments.model
    predictor = load_model(model, accelerator="cpu")
    faces = sources.load(arguments.data).as_known_by(predictor.classes)
    private = faces.rows("private")
    n = min(arguments.images or len(private), len(private))
    rows = private[np.linspace(0, len(private) - 1, n).round().astype(int)]
    detectors = ["none", "haar"]
    with contextlib.suppress(UserError):
        detectors.append(arguments.blaze or load_detector("blaze")[0].name)
    cv2.setNumThreads(1)  # as predict does
    result: dict[str, Any] = {
        "model": model,
        "commit": git_commit(),
        "hardware": hardware(),
        "torch": torch.__version__,
    }
    print(f"{model}, commit {result['commit']}, {result['hardware']}, torch {torch.__version__}")
    images = faces.images[rows]
    if "parity" in arguments.parts:
        result["surroundings"] = arguments.surroundings
        result["parity"] = [
            parity(predictor, name, side, images, faces.labels[rows], arguments.surroundings)
            for name in detectors
            for side in SIDES
        ]
        print(f"\n{len(rows):,} images, accuracy of the frames {result['parity'][0]['frames_all']:.1%}\n")
        print(as_table(result["parity"]) + "\n")
    measurements = {
        "cold": lambda: cold_start(model, images, arguments.rounds),
        "speed": lambda: speed(predictor, model, images, detectors),
        "memory": lambda: memory(model, images, arguments.files),
    }
    for part, measure in measurements.items():
        if part in arguments.parts:
            result[part] = measure()
            print("\n".join(f"{part}: {name.replace('_', ' ')} {value:,.2f}" for name, value in result[part].items()))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
