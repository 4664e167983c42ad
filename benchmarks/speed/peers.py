"""Seconds that peers' training loops and this project's take for the same network, samples and batch.

    git clone https://github.com/LetheSec/Fer2013-Facial-Emotion-Recognition-Pytorch lethesec
    git clone https://github.com/usef-kh/fer usef-kh
    git clone https://github.com/ashleve/lightning-hydra-template template
    pip install tensorboard; pip install --no-deps torchvision   # the version made for this torch; 0.28.0 for 2.13
    python benchmarks/speed/peers.py --data fer2013.csv --lethesec lethesec --usef-kh usef-kh --template template

Of each peer, its own data loading, augmentation and training function run for one epoch, unchanged, with the network
given here. The template has no faces: its LightningModule trains, and its way of loading (a Dataset of images,
torchvision's transforms, a DataLoader with workers) is written down below. A sample is one augmented crop that the
network sees: the two FER projects make 5 and 10 crops of an image. This project trains on as many samples, in batches
of as many. All take turns.

Then seconds of reading the complete data, without imports, and from the command to the first batch: imports, reading,
the first augmentation and, here, the network as well. The template has no reader of faces.
"""

from __future__ import annotations

import csv
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import measure
import numpy as np
import torch
from numpy.typing import NDArray
from reading import read
from torch import nn

from fer_lightning.config import instantiate
from fer_lightning.data.readers.sources import load
from fer_lightning.training.trainer import quiet

SIDE = 40
"""Pixels of a crop, in all of them."""

NETWORKS = {
    "tiny": ["model=vgg", "model.width=4"],
    "small": ["model=vgg", "model.width=8"],
    "laptop": ["experiment=laptop"],
}
"""Overrides."""

IMAGES = {"tiny": 6400, "small": 6400, "laptop": 640}
"""Images of an epoch."""

MORE = {"template": 5}
"""Times as many, for samples enough that the start of its workers counts for little."""

BATCH = {"lethesec": 128, "usef-kh": 64, "template": 128}
"""Images in a batch: the peers' defaults, the template's raised from 64."""

CROPS = {"lethesec": 5, "usef-kh": 10, "template": 1}

Epoch = Callable[[], float]


def write_part(source: Path, to: Path, images: int) -> None:
    """A CSV with the first Training images of another, and with 70 each for validation and test."""
    faces = load(str(source))
    rows = {
        "Training": faces.rows("train")[:images],
        "PublicTest": faces.rows("public")[:70],
        "PrivateTest": faces.rows("private")[:70],
    }
    with to.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        for usage, chosen in rows.items():
            for row in chosen:
                writer.writerow([faces.labels[row], " ".join(map(str, faces.images[row].ravel().tolist())), usage])


@contextmanager
def importing(folder: Path, *names: str) -> Iterator[list[Any]]:
    """Modules of a peer, whose names other peers use as well."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("utils", "data", "models", "dataset", "train", "src"):
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        yield [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))


def network(name: str) -> nn.Module:
    made = instantiate.network(measure.settings_of(NETWORKS[name])["model"], 7)
    made.arrange(device(), channels_last=True)
    return made.to(device())


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)


def no_scaler() -> Any:
    """Their GradScaler, which does nothing without a GPU."""
    return torch.amp.GradScaler("cuda", enabled=torch.cuda.is_available())


def lethesec(folder: Path, data: Path, model: nn.Module) -> Epoch:
    """With label smoothing and five crops; mixup, which its code puts on a GPU, only there."""
    with importing(folder, "dataset", "train") as (dataset, train):
        train_loader, _, _ = dataset.get_dataloaders(path=str(data), bs=BATCH["lethesec"], augment=True)
    options = SimpleNamespace(
        Ncrop=True, mixup=torch.cuda.is_available(), mixup_alpha=1.0, label_smooth=True, label_smooth_value=0.1
    )  # fmt: skip
    optimizer, scaler = sgd(model), no_scaler()
    # From the second epoch on: in the first it writes every batch to TensorBoard as a picture.
    return _timed(
        lambda: train.train(model, train_loader, train.cross_entropy, optimizer, 2, device(), scaler, None, options)
    )


def usef_kh(folder: Path, data: Path, model: nn.Module) -> Epoch:
    with importing(folder, "data.fer2013", "utils.loops") as (fer2013, loops):
        train_loader, _, _ = fer2013.get_dataloaders(path=str(data), bs=BATCH["usef-kh"], augment=True)
    optimizer, scaler = sgd(model), no_scaler()
    return _timed(lambda: loops.train(model, train_loader, nn.CrossEntropyLoss(), optimizer, scaler))


class Faces(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """As the template's data are: images, each transformed when it is asked for."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], transform: Callable[[Any], Any]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def template(folder: Path, data: Path, model: nn.Module, workers: int = 2) -> Epoch:
    import lightning.pytorch as L
    from torchvision import transforms

    faces = load(str(data))
    rows = faces.rows("train")
    transform = transforms.Compose(
        [
            transforms.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(brightness=0.2, contrast=0.2),
            transforms.RandomCrop(SIDE),
            transforms.ToTensor(),
        ]
    )
    dataset = Faces(np.array(faces.images[rows]), faces.labels[rows], transform)
    loader = torch.utils.data.DataLoader(dataset, BATCH["template"], shuffle=True, num_workers=workers)
    with importing(folder, "src.models.mnist_module") as (mnist_module,):
        module = mnist_module.MNISTLitModule(net=model, optimizer=sgd_of_parameters, scheduler=None, compile=False)

    def epoch() -> float:
        with tempfile.TemporaryDirectory() as logs:
            trainer = L.Trainer(
                max_epochs=1, accelerator="auto", devices=1, logger=L.loggers.CSVLogger(logs),
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            return _timed(lambda: trainer.fit(module, loader))()

    return epoch


def sgd_of_parameters(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)


PEERS: dict[str, Callable[[Path, Path, nn.Module], Epoch]] = {
    "lethesec": lethesec,
    "usef-kh": usef_kh,
    "template": template,
}


def ours(data: Path, name: str, peer: str, *, own_precision: bool = False) -> Epoch:
    """A job of this project with as many samples in a batch and in all, in the peer's precision or its own default."""
    from loop import Job

    crops, gpu = CROPS[peer], torch.cuda.is_available()
    theirs = "fp16" if gpu and peer != "template" else "fp32"
    overrides = [
        *NETWORKS[name],
        f"data.path={data}",
        f"data.batch_size={BATCH[peer] * crops}",
        "augment=window",
        f"augment.erase={0.0 if peer == 'template' else 0.5}",  # as theirs
        "optimizer=sgd",
        "optimizer.lr=0.01",
        "trainer.gradient_clip_val=null",
        f"precision={'auto' if own_precision else theirs}",
        f"mix={'mixup' if gpu and peer == 'lethesec' else 'none'}",
    ]
    job = Job(measure.settings_of(overrides))
    return lambda: job.seconds_of_epochs(crops)


def _timed(run: Callable[[], Any]) -> Epoch:
    def seconds() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return seconds


def until_first_batch(peer: str, folder: Path, data: Path, temporary: Path) -> dict[str, list[str]]:
    """Commands that end when the first batch is ready, of a peer and of this project without and with its cache."""
    module = {"lethesec": "dataset", "usef-kh": "data.fer2013"}[peer]
    theirs = (
        f"import sys, time, warnings; warnings.filterwarnings('ignore'); sys.path.insert(0, {str(folder)!r}); "
        f"from {module} import get_dataloaders; started = time.perf_counter(); "
        f"loader = get_dataloaders(path={str(data)!r}, bs={BATCH[peer]})[0]; "
        "print('read', time.perf_counter() - started, flush=True); next(iter(loader)); import os; os._exit(0)"
    )
    job = [
        sys.executable, str(measure.ROOT / "train.py"), *NETWORKS["small"], f"data.path={data}", "logger=none",
        f"hydra.run.dir={temporary / 'run'}", "+callbacks.end._target_=first_batch.EndAtFirstBatch",
        f"data.cache_dir={temporary / 'cache'}",
    ]  # fmt: skip
    return {"peer": [sys.executable, "-c", theirs], "ours, first": job, "ours, cached": job}


def start(peer: str, folder: Path, data: Path) -> dict[str, float]:
    """Seconds of reading, and from the command to the first batch."""
    seconds = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, command in until_first_batch(peer, folder, data, Path(temporary)).items():
            begun = time.perf_counter()
            here = [str(measure.ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
            path = os.pathsep.join(folder for folder in here if folder)
            done = subprocess.run(
                command, check=True, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
            )
            seconds[name] = time.perf_counter() - begun
            if name == "peer":
                seconds["peer reads"] = float(done.stdout.rpartition("read ")[2].split()[0])
        cache = Path(temporary) / "another cache"
        cache.mkdir()
        seconds["ours reads"] = read(data, str(cache), measure.ROOT).seconds
    return seconds


def main() -> None:
    warnings.filterwarnings("ignore")
    quiet()
    if "+cpu" in torch.__version__:  # torchvision of PyPI registers operators for a build with CUDA
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
    parser = measure.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    for peer in PEERS:
        parser.add_argument(f"--{peer}", type=Path, help="its folder; left out if not given")
    parser.add_argument("--images", type=int, help="a multiple of 640, the samples in a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", default="tiny,small,laptop")
    arguments = parser.parse_args()
    versions = {name: metadata.version(name) for name in ("torchvision", "lightning", "numpy", "pandas", "pillow")}
    results = measure.Results(arguments.out, versions=versions)
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.networks.split(","):
            for peer, make in PEERS.items():
                folder = getattr(arguments, peer.replace("-", "_"))
                if folder is None:
                    continue
                print(f"{name}, {peer}", flush=True)
                images = (arguments.images or IMAGES[name]) * MORE.get(peer, 1)
                data = Path(temporary) / f"{images}.csv"
                write_part(arguments.data, data, images)
                turns = {
                    "peer": make(folder.resolve(), data, network(name)),
                    "ours": ours(data, name, peer),
                    "ours, default precision": ours(data, name, peer, own_precision=True),
                }
                for run in turns.values():
                    run()  # memory is allocated
                seconds = measure.take_turns(turns, arguments.rounds, unit="s")
                commit = subprocess.run(
                    ["git", "-C", str(folder), "log", "-1", "--format=%h"], capture_output=True, text=True, check=False
                ).stdout.strip()
                results.add(
                    {
                        "network": name, "peer": peer, "peer_commit": commit, "crops": CROPS[peer],
                        "batch": BATCH[peer] * CROPS[peer], "samples": images * CROPS[peer],
                        "precision": "fp16" if torch.cuda.is_available() and peer != "template" else "fp32",
                        "peer_seconds": statistics.median(seconds["peer"]),
                        "our_seconds": statistics.median(seconds["ours"]),
                        "in_default_precision": statistics.median(seconds["ours, default precision"]),
                        **measure.ratio(seconds["peer"], seconds["ours"]), "rounds": arguments.rounds,
                    }
                )  # fmt: skip
    starts = []
    for peer in ("lethesec", "usef-kh"):
        if folder := getattr(arguments, peer.replace("-", "_")):
            taken = [start(peer, folder.resolve(), arguments.data.resolve()) for _ in range(arguments.rounds)]
            medians = {name: statistics.median(t[name] for t in taken) for name in taken[0]}
            first = measure.ratio([t["peer"] for t in taken], [t["ours, first"] for t in taken])
            reads = measure.ratio([t["peer reads"] for t in taken], [t["ours reads"] for t in taken])["ratio"]
            starts.append({"name": peer, **medians, "ratio of reads": reads, **first, "rounds": arguments.rounds})
            results.note(starts=starts)


if __name__ == "__main__":
    main()
