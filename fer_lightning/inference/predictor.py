"""Faces to class probabilities: the only place that runs networks outside training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fer_lightning.config.precision import BF16, FP16, FP32, has_native_bf16
from fer_lightning.data.table import SIDE
from fer_lightning.inference.description import TTA
from fer_lightning.inference.faces.detector import RULES, Detector
from fer_lightning.inference.faces.find import find
from fer_lightning.inference.faces.frame import CropRule
from fer_lightning.inference.tta import views
from fer_lightning.metrics.calibration import Calibration, calibrated
from fer_lightning.models.heads import adjusted, log_prior
from fer_lightning.models.network import FaceNetwork

if TYPE_CHECKING:
    from fer_lightning.inference.description import Description, MemberConfig

BATCH = 64
"""Images per forward pass of a model file on a CPU, whose caches hold the features of no more: 300 faces a second where
512 at a time gave 164 (shipped network with flip averaging, two cores). A run has its own number."""

GPU_BATCH = 512
"""On a GPU."""

AUTOCAST = {BF16: torch.bfloat16, FP16: torch.float16}


class Member(Protocol):
    """A classifier of faces.

    Attributes:
        tta: test-time augmentation that it does itself; None if it leaves that to the predictor.
    """

    tta: TTA | None

    def logits(self, faces: Tensor) -> Tensor:
        """Logits, float32 (B, C) on the CPU, of faces, uint8 (B, H, W) on the CPU."""
        ...


class NetworkMember:
    """A network in evaluation mode.

    Args:
        network: maps faces (B, 1, H, W), float in [0, 1], to logits (B, C).
        class_counts: images per class of the training set, for the post-hoc adjustment.
        posthoc_tau: strength of the post-hoc logit adjustment; 0 for none.
        device: where to run.
        precision: "32-true", "bf16-mixed" or "16-mixed"; replaced by the first where the device does not compute it
            natively.
        channels_last: ask for the channels-last memory layout.
    """

    tta: TTA | None = None

    def __init__(
        self,
        network: FaceNetwork,
        class_counts: Sequence[int],
        *,
        posthoc_tau: float = 0.0,
        device: torch.device | None = None,
        precision: str = FP32,
        channels_last: bool = True,
    ) -> None:
        self.network = network.eval()
        self.class_counts, self.posthoc_tau, self.precision = tuple(class_counts), posthoc_tau, precision
        self._log_prior = log_prior(class_counts)
        self.to(device or torch.device("cpu"), channels_last)

    def to(self, device: torch.device, channels_last: bool) -> None:
        """Run on another device."""
        self.device = device
        self.network.to(device).arrange(device, channels_last)
        native = has_native_bf16(device.type) if self.precision == BF16 else device.type == "cuda"
        self.dtype = AUTOCAST.get(self.precision) if native else None
        self._log_prior = self._log_prior.to(device)

    def logits_of(self, images: Tensor) -> Tensor:
        """Logits (B, C) of faces (B, 1, H, W), float in [0, 1], on its device and in the precision of the caller."""
        return adjusted(self.network(images), self._log_prior, self.posthoc_tau)

    @torch.inference_mode()
    def logits(self, faces: Tensor) -> Tensor:
        inputs = faces[:, None].to(self.device).float().div_(255)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.logits_of(inputs).float().cpu()


@dataclass(frozen=True)
class LoadedModel:
    """One run or file.

    Attributes:
        path: of the run folder or file.
        name: for display.
        members: its networks.
        configs: what they are built from.
        classes: class names in label order.
        tta: that its calibration was fitted with.
        calibration: of its mean; None if it has none.
        batch_size: images per forward pass.
        description: of a file; None for a run.
        scores: of its test images, as in metrics.json.
        commit: of the source tree that trained it.
    """

    path: Path
    name: str
    members: tuple[Member, ...]
    configs: tuple[MemberConfig, ...]
    classes: tuple[str, ...]
    tta: TTA = "none"
    calibration: Calibration | None = None
    batch_size: int = BATCH
    description: Description | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    commit: str = "unknown"


@dataclass(frozen=True)
class Prediction:
    """The answer for one face.

    Attributes:
        label: the most probable class.
        confidence: its calibrated probability.
        unsure: whether the confidence is below the model's threshold.
        probabilities: the calibrated probability of each class by name.
        box: x, y, width and height of the detector's box in pixels of the upright photo; None for an array of faces.
        note: reasons to distrust the prediction, with commas: "small", "cut", "turned"; empty if there are none.
    """

    label: str
    confidence: float
    unsure: bool
    probabilities: dict[str, float]
    box: tuple[float, float, float, float] | None = None
    note: str = ""


class Predictor:
    """Faces to class probabilities.

    The probabilities of the views of test-time augmentation are averaged, then those of the members.

    Args:
        members: networks that were trained on the same classes.
        classes: class names in label order.
        tta: test-time augmentation.
        calibration: temperature and threshold; None for a temperature of 1.
        batch_size: images per forward pass.
        size: height and width of the faces that the members were trained on.
        crop: for a detector's name, the rule by which faces are cut out; None for the detectors' own.
    """

    def __init__(
        self,
        members: Sequence[Member],
        classes: Sequence[str],
        *,
        tta: TTA = "none",
        calibration: Calibration | None = None,
        batch_size: int = BATCH,
        size: int = SIDE,
        crop: Mapping[str, CropRule] | None = None,
    ) -> None:
        assert members
        self.members, self.classes, self.batch_size = tuple(members), tuple(classes), batch_size
        self.tta, self.calibration, self.size, self.crop = tta, calibration, size, dict(crop or RULES)

    def logits(self, images: NDArray[np.uint8]) -> Tensor:
        """Logits before calibration, float32 (N, C) on the CPU, of grey faces, uint8 (N, H, W).

        Of several members or views they are the logarithm of the mean of their probabilities.

        Raises:
            ValueError: the images have another type or shape.
        """
        return pooled(self.of_members(images))

    def of_members(self, images: NDArray[np.uint8]) -> list[Tensor]:
        """The logits of each member by itself, see `logits`."""
        if images.dtype != np.uint8 or images.ndim != 3:
            raise ValueError(f"images must be uint8 of shape (N, H, W), not {images.dtype} of shape {images.shape}")
        if len(images) and images.shape[1:] != (self.size, self.size):
            raise ValueError(
                f"faces must have {self.size} by {self.size} pixels, not {images.shape[1]} by {images.shape[2]}: scale "
                "them, or give whole photos to find_and_predict"
            )
        parts: list[list[Tensor]] = [[torch.empty(0, len(self.classes))] for _ in self.members]
        for start in range(0, len(images), self.batch_size):
            batch = torch.from_numpy(np.array(images[start : start + self.batch_size]))
            for member, of_member in zip(self.members, parts, strict=True):
                tta = self.tta if member.tta is None else "none"
                of_member.append(pooled([member.logits(view) for view in views(batch, tta)]))
        return [torch.cat(of_member) for of_member in parts]

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Calibrated class probabilities, float64 (N, C), of grey faces, uint8 (N, H, W).

        Raises:
            ValueError: as `logits` does.
        """
        return calibrated(self.logits(images).numpy(), self.calibration.temperature if self.calibration else 1.0)

    def predict(self, images: NDArray[np.uint8]) -> list[Prediction]:
        """The answer for each of grey faces, uint8 (N, H, W).

        Raises:
            ValueError: as `logits` does.
        """
        return [self.answer(p) for p in self.probabilities(images)]

    def find_and_predict(
        self, photo: str | Path | NDArray[np.uint8], detector: str | Detector = "auto"
    ) -> list[Prediction]:
        """The faces in a photo and the answer for each, the largest first.

        Args:
            photo: a file, see `fer_lightning.inference.media.images.read_image`, or uint8 RGB (H, W, 3), upright.
            detector: a name or a file, see `fer_lightning.inference.faces.choose.load_detector`, which is loaded at
                each call; for many photos, what that function returns.

        Raises:
            UserError: the photo cannot be read, or there is no such detector.
            ValueError: the array has another type or shape.
            TypeError: `photo` is neither a path nor an array.
        """
        from fer_lightning.inference.faces.choose import load_detector
        from fer_lightning.inference.media.images import without_remarks
        from fer_lightning.inference.photo import find_in_file

        searcher = detector if isinstance(detector, Detector) else load_detector(detector)[0]
        if isinstance(photo, np.ndarray):
            found = find(photo, searcher, self.crop, self.size)
        elif isinstance(photo, str | os.PathLike):
            with without_remarks():
                found = find_in_file(Path(photo).expanduser(), searcher, self.crop, self.size)
        else:
            raise TypeError(
                f"photo must be the name of a file or an RGB array, not {type(photo).__name__}; "
                "numpy.asarray(image.convert('RGB')) makes one of Pillow's images"
            )
        probabilities = self.probabilities(found.crops)
        return [
            self.answer(p, box=(face.x, face.y, face.width, face.height), note=remark)
            for p, face, remark in zip(probabilities, found.faces, found.notes, strict=True)
        ]

    def answer(self, p: NDArray[np.float64], **known: Any) -> Prediction:
        """The answer that follows from calibrated probabilities (C,); `known` has its box and note."""
        by_class = dict(zip(self.classes, p.tolist(), strict=True))
        best = int(p.argmax())
        unsure = self.calibration is not None and bool(p[best] < self.calibration.threshold)
        return Prediction(self.classes[best], float(p[best]), unsure, by_class, **known)


def pooled(logits: Sequence[Tensor]) -> Tensor:
    """Logits (B, C) of the mean probabilities of several logits; a single one is unchanged."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([one.log_softmax(1) for one in logits]).logsumexp(0) - float(np.log(len(logits)))
