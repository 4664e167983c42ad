"""Writing a model file from runs, or an ONNX file from runs or model files, with a model card beside it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray

from fer_lightning import __version__
from fer_lightning.data import synthetic
from fer_lightning.errors import UserError, printable
from fer_lightning.inference import graph, labelled, modelfile
from fer_lightning.inference.description import Description, MemberConfig, Precision
from fer_lightning.inference.labelled import Labelled
from fer_lightning.inference.load import as_list, load, together
from fer_lightning.inference.predictor import LoadedModel, NetworkMember, Predictor
from fer_lightning.metrics.calibration import Calibration, calibrated
from fer_lightning.models.network import FaceNetwork
from fer_lightning.report import card, tables
from fer_lightning.report.files import write_atomically
from fer_lightning.runs import results

TOLERANCE = 1e-4
"""Largest difference between probabilities of PyTorch and of an exported graph in float32."""

INT8_LOSS = 0.005
"""Largest loss of accuracy on the validation images by 8 bits."""

INT8_IMAGES = 512
"""Training images from which the ranges of activations are taken."""

FER2013_IMAGES = 35_887
"""Number of images by which FER-2013 is recognised."""

NOTES = (
    "FER-2013 was collected from web searches for the ICML 2013 challenge; its images belong to their owners, and the "
    "data set is used for research. These weights are a product of training on it; no image is contained."
)
"""For weights trained on FER-2013."""

Format = Literal["safetensors", "onnx", "int8"]


class Check(NamedTuple):
    """A comparison that an export has passed.

    Attributes:
        what: is compared.
        value: of the comparison, for people.
    """

    what: str
    value: str


def export(
    models: str | Path | Sequence[str | Path],
    to: Path,
    *,
    tta: str | None = None,
    precision: str | None = None,
    name: str | None = None,
    data: str | None = None,
    licence: str = "other",
    measure: bool = True,
    trust: bool = False,
) -> list[Check]:
    """Write a file that predicts like a run, or like the mean of several, and a model card beside it.

    Temperature and threshold are fitted on the validation images and the scores computed on the test images, with the
    weights as they are stored. The file is read again and compared with PyTorch before it replaces an earlier one.

    Args:
        models: run folders, or model files.
        to: the file: .safetensors, .onnx, or .int8.onnx for 8 bits.
        tta: test-time augmentation to calibrate for, which predicting then uses; None for that of a single model
            file, and none for runs.
        precision: of the weights in a .safetensors file: "fp16", "fp32", or "int8" with a scale for each output
            channel; None for that of a single model file, else "fp16". An ONNX graph computes in float32, or in 8 bits
            by its name, and keeps the integers of an int8 model file.
        name: of the model; by default that of the file.
        data: for model files, the data that they were made with; without it they keep their calibration and scores,
            and only their answers are compared.
        licence: of the weights, as the Hugging Face Hub names it: "mit", "cc-by-nc-4.0" …
        measure: False keeps calibration and scores of runs as they are, which needs no data.
        trust: allow networks of the user's own in runs.

    Returns:
        The checks that the file has passed.

    Raises:
        UserError: a model is missing, damaged or does not go with the others, the data are unavailable, a package is
            not installed, or the file fails a check: then it is not written.
    """
    kind = _format(to)
    stored = _precision(kind, precision)
    loaded = [load(model, accelerator="cpu", trust=trust) for model in as_list(models)]
    if kind == "safetensors" and precision is None and len(loaded) == 1 and loaded[0].description is not None:
        stored = loaded[0].description.precision
    networks, members = _members(loaded)
    if kind == "safetensors":
        modelfile.check_buildable(members, len(loaded[0].classes), to)
    whole = together(loaded, tta)
    predictor = Predictor(
        [_member(*pair) for pair in zip(networks, members, strict=True)], whole.classes, tta=whole.tta
    )
    found = _labelled(loaded, data, trust) if measure else None
    from_more = any(one.description is None or one.description.precision != "int8" for one in loaded)
    if kind == "safetensors" and stored == "int8" and from_more and measure and found is None:
        raise UserError(
            f"--to {printable(to)}: weights of 8 bits answer differently, and need images to be scored again: name the "
            "data with --data"
        )
    accuracy = None
    if kind == "safetensors":
        if stored == "int8" and found:
            accuracy = _accuracy(predictor.logits(found.faces.images[found.parts.val]).numpy(), found)
        tensors = modelfile.pack(networks, stored)
        modelfile.unpack(tensors, networks)
    known = loaded[0].description if len(loaded) == 1 else None
    scores = dict(loaded[0].scores) if len(loaded) == 1 and loaded[0].tta == whole.tta else {}
    description = Description(
        name=name or re.sub(r"(\.int8)?\.(onnx|safetensors)$", "", to.name),
        version=__version__,
        commit=", ".join(dict.fromkeys(one.commit for one in loaded)),
        classes=list(whole.classes),
        size=whole.size,
        members=members,
        tta=whole.tta,
        calibration=whole.calibration or Calibration(),
        crop=whole.crop,
        protocol=known.protocol if known else {},
        data=known.data if known else {},
        scores=scores,
        precision=stored,
        licence=licence,
        notes=known.notes if known else "",
    )
    scored = None
    if found is not None:
        description, scored = _judged(description, predictor, found)
    checks: list[Check] = []
    with _replacing(to) as file:
        if kind == "safetensors":
            modelfile.write(file, description, tensors)
        elif kind == "onnx":
            int8 = all(one.description is not None and one.description.precision == "int8" for one in loaded)
            graph.export(file, networks, description, int8=int8)
        else:
            checks += _quantized(file, networks, description, found)
        written = together([load(file, accelerator="cpu")])
        checks += _checks(file.name, kind, predictor, written, description, found, accuracy)
        changed: dict[str, object] = {"checks": dict(checks)}
        if kind == "int8" and found is not None:  # 8 bits change the answers
            scored, changed["scores"] = _scored(written, description.calibration, found)
        description = description.model_copy(update=changed)
        if kind == "safetensors":
            modelfile.write(file, description, tensors)
        else:
            graph.describe(file, description)
        report = matrix = clean = None
        if scored is not None:
            counts = tables.confusion_of(scored.predictions, predictor.classes)
            report = tables.classification_report(counts, predictor.classes)
            matrix = tables.confusion_matrix(counts, predictor.classes)
            clean = int(scored.predictions["clean"].sum())
        text = card.render(
            description.model_dump(),
            file=to.name,
            parameters=[sum(parameter.numel() for parameter in network.parameters()) for network in networks],
            report=report,
            confusion=matrix,
            clean=clean,
        )
        write_atomically(card_of(to), text.encode())
    return checks


def card_of(file: Path) -> Path:
    """The path of a file's model card."""
    return file.with_name(file.name + ".md" if file.suffix == ".onnx" else f"{file.stem}.md")


def _format(to: Path) -> Format:
    if to.name.endswith(".int8.onnx"):
        return "int8"
    if to.suffix not in (".safetensors", ".onnx"):
        raise UserError(f"--to {printable(to)}: name a file that ends in .safetensors, .onnx or .int8.onnx")
    if to.is_dir():
        raise UserError(f"--to {printable(to)}: a folder; name a file in it")
    return cast(Format, to.suffix[1:])


def _precision(kind: Format, asked: str | None) -> Precision:
    """The precision of a file's weights, by what is asked and by the kind of file."""
    if kind != "safetensors":
        if asked is not None:
            raise UserError(
                f"--precision {printable(asked)} is for .safetensors files: an ONNX graph computes in float32, or in 8 "
                "bits where its name ends in .int8.onnx"
            )
        return "int8" if kind == "int8" else "fp32"
    asked = asked or "fp16"
    if asked not in get_args(Precision):
        raise UserError(f"--precision {printable(asked)}: use {', '.join(get_args(Precision))}")
    return cast("Precision", asked)


def _members(loaded: Sequence[LoadedModel]) -> tuple[list[FaceNetwork], list[MemberConfig]]:
    """Networks on the CPU, and what they are built from."""
    networks: list[FaceNetwork] = []
    configs: list[MemberConfig] = []
    for one in loaded:
        if any(not isinstance(member, NetworkMember) for member in one.members):
            raise UserError(f"{one.path}: an ONNX graph has no network to export; name the run or its model file")
        networks += [member.network for member in cast("tuple[NetworkMember, ...]", one.members)]
        configs += one.configs
    return networks, configs


def _member(network: FaceNetwork, config: MemberConfig) -> NetworkMember:
    return NetworkMember(network, config.class_counts, posthoc_tau=config.posthoc_tau)


def _drawn_faces() -> NDArray[np.uint8]:
    """Images that are always at hand."""
    return synthetic.synthetic(n_train=70, n_val=14, n_test=14).images


def _labelled(loaded: Sequence[LoadedModel], data: str | None, trust: bool) -> Labelled | None:
    """The images that the models were validated and tested on; None for model files without `data`."""
    runs = [one.path for one in loaded if one.description is None]
    files = [one for one in loaded if one.description is not None]
    if runs and not files:
        return labelled.of_runs(runs, remedy="or name them with --data", data=data, trust=trust)
    if runs:
        raise UserError("model files do not go with runs; export them apart")
    if data is None:
        return None
    described = [(one.path, one.description) for one in files if one.description]
    path, description = described[0]
    found = labelled.of_file(data, description, path)
    labelled.check_same(described, "export them apart")
    return found


def _judged(description: Description, predictor: Predictor, found: Labelled) -> tuple[Description, results.Scored]:
    """The description with calibration and scores, and the scored test images."""
    faces, parts = found.faces, found.parts
    labels = faces.labels[parts.val]
    fitted = results.fit_calibration(predictor.logits(faces.images[parts.val]), labels)
    if fitted is None:
        raise UserError(f"{faces.source}: no validation image has a label, by which a temperature could be fitted")
    scored, scores = _scored(predictor, fitted, found)
    source = Path(faces.source).name
    is_fer = len(faces) == FER2013_IMAGES
    changed = {
        "calibration": fitted,
        "scores": scores,
        "protocol": dict(found.protocol),
        "data": {"name": card.FER2013 if is_fer else source, "source": source, "twins": found.twins, **found.digests},
        "merge": dict(found.merge),
        "notes": NOTES if is_fer else "",
    }
    return description.model_copy(update=changed), scored


def _scored(predictor: Predictor, calibration: Calibration, found: Labelled) -> tuple[results.Scored, dict[str, float]]:
    """The scored test images, and their scores."""
    faces, parts = found.faces, found.parts
    scored = results.Scored.from_logits(faces, parts.test, predictor.logits(faces.images[parts.test]), parts.clean)
    scores = results.test_scores(scored, predictor.classes, calibration)
    return scored, {name: value for name, value in scores.items() if isinstance(value, float)}


@contextmanager
def _replacing(to: Path) -> Iterator[Path]:
    """A path to write to, which replaces `to` if nothing fails."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=".export-") as folder:
            file = Path(folder) / to.name
            yield file
            file.replace(to)
    except OSError as error:
        raise UserError(f"--to {printable(to)}: {error.strerror}; choose another file") from error


def _quantized(
    file: Path, networks: Sequence[FaceNetwork], description: Description, found: Labelled | None
) -> list[Check]:
    if found is None:
        raise UserError("8 bits need images: name the data with --data, or a run instead of a model file")
    train = found.parts.train
    few = train[np.linspace(0, len(train) - 1, min(INT8_IMAGES, len(train))).astype(np.int64)]
    whole = file.with_suffix(".fp32")
    graph.export(whole, networks, description)
    graph.quantize(whole, file, np.array(found.faces.images[few]), description)
    sizes = (whole.stat().st_size, file.stat().st_size)
    return [Check("size in float32 and 8 bits", " and ".join(f"{size / 1e6:.2f} MB" for size in sizes))]


def _checks(
    name: str,
    kind: Format,
    reference: Predictor,
    written: Predictor,
    description: Description,
    found: Labelled | None,
    accuracy: float | None,
) -> list[Check]:
    """Compare the answers of a written file with PyTorch's.

    `accuracy` on the validation images is that before weights were rounded to 8 bits; None if they were not.

    Raises:
        UserError: it answers differently.
    """
    images = found.faces.images[found.parts.val] if found else _drawn_faces()
    exact = calibrated(reference.logits(images).numpy(), description.calibration.temperature)
    given = written.probabilities(images)
    checks = []
    if kind != "int8":
        small = [written.probabilities(images[:n]) for n in (1, 4)]
        difference = max(np.abs(given - exact).max(), *(np.abs(few - exact[: len(few)]).max() for few in small))
        if not difference <= TOLERANCE:
            raise UserError(
                f"{name}: its probabilities differ from PyTorch's by up to {difference:.2g}, more than "
                f"{TOLERANCE:g}: not written; please report this with the versions of torch, onnx and onnxruntime"
            )
        checks.append(Check(f"largest difference of a probability on {len(images):,} images", f"{difference:.1e}"))
    if found:
        before, after = _accuracy(exact, found) if accuracy is None else accuracy, _accuracy(given, found)
        few_bits = description.precision == "int8"
        what = f"accuracy on {len(images):,} validation images"
        if before - after > (INT8_LOSS if few_bits else 0.0):
            raise UserError(
                f"{name}: {what} falls from {before:.4f} to {after:.4f}: not written; "
                f"{'export with more bits instead' if few_bits else 'please report this'}"
            )
        checks.append(Check(what, f"{before:.4f} before, {after:.4f} after"))
    return checks


def _accuracy(outputs: NDArray[np.floating], found: Labelled) -> float:
    """Accuracy on the validation images of their logits or probabilities, (N, C)."""
    return float((outputs.argmax(1) == found.faces.labels[found.parts.val]).mean())
