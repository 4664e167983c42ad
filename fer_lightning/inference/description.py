"""The description in model and ONNX files: one JSON in their metadata, with a strict schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fer_lightning.errors import UserError, flat
from fer_lightning.inference.faces.frame import CropRule
from fer_lightning.metrics.calibration import Calibration

TTA = Literal["none", "flip", "ten_crop"]
"""`none`: the face itself; `flip`: and its mirror image; `ten_crop`: the four corners and the centre of the face, and
the mirror images of the five (Krizhevsky et al. 2012, section 4.1)."""

Precision = Literal["fp16", "fp32", "int8"]
"""Of stored weights."""

KEY = "fer_lightning"
"""Key of the description in the file's metadata."""

FORMAT = 1
"""Version of the description. A reader refuses higher ones."""

MAX_DESCRIPTION = 1 << 20
"""Bytes of the longest description that is read."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class MemberConfig(_Strict):
    """What a network is built from.

    Attributes:
        model: node of the config group `model`.
        head_scale: scale of a cosine head; None for a linear one.
        class_counts: training images per class.
        posthoc_tau: strength of the post-hoc logit adjustment.
        seed: of its run.
        overrides: of the command that trained it, `python train.py <overrides>`; paths without their folders.
        teachers: the same of the runs that it was distilled from or started from, in the order in which they have to be
            trained, by the names of their folders.
    """

    model: dict[str, Any]
    head_scale: float | None = None
    class_counts: list[int]
    posthoc_tau: float = 0.0
    seed: int = 0
    overrides: list[str] = []
    teachers: dict[str, list[str]] = {}


class Description(_Strict):
    """The JSON of a model file.

    Attributes:
        format: version of this schema.
        name: of the model.
        version: of fer-lightning that wrote it.
        commit: of the source tree that trained it.
        classes: class names in label order.
        size: height and width of the faces that it was trained on.
        members: of the ensemble; one for a single network.
        tta: test-time augmentation that the calibration holds for, and that is used by default.
        calibration: temperature and threshold.
        crop: for each detector the rule by which faces are cut out.
        protocol: the config group `protocol`: how the data were divided.
        data: name, source and digests of the data.
        merge: classes of the data that were merged into others in training.
        scores: metrics as in metrics.json: "test/accuracy", "test/accuracy_low", "test/clean/accuracy" ….
        precision: of the weights.
        checks: what the export compared, and with what result.
        licence: of the weights, as the Hugging Face Hub names it.
        notes: on the data and their licence.
    """

    format: Literal[1] = 1
    name: str
    version: str
    commit: str
    classes: list[str] = Field(min_length=2)
    size: int = Field(gt=0, le=1024)
    members: list[MemberConfig] = Field(min_length=1, max_length=64)
    tta: TTA = "none"
    calibration: Calibration
    crop: dict[str, CropRule]
    protocol: dict[str, str | int | float]
    data: dict[str, str]
    merge: dict[str, str] = {}
    scores: dict[str, float]
    precision: Precision
    checks: dict[str, str] = {}
    licence: str = "other"
    notes: str = ""


def parse(text: str, path: Path) -> Description:
    """The description in a file's metadata.

    Raises:
        UserError: it is invalid, or of a newer version.
    """
    try:
        version = json.loads(text[:MAX_DESCRIPTION]).get("format")
        if isinstance(version, int) and version > FORMAT:
            raise UserError(f"{path}: written by a newer version of fer-lightning (format {version}); upgrade this one")
        return Description.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, AttributeError, RecursionError) as error:
        reason = flat(error)
    raise UserError(f"{path}: its description is damaged ({reason}); get the file again")
