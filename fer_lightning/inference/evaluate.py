"""Scoring finished runs again, and model files."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from fer_lightning.config.dataset import cache_root, load_parts_of, settings_of, with_duplicate_groups
from fer_lightning.data.protocols import seen
from fer_lightning.data.quality.duplicates import near_duplicates
from fer_lightning.data.table import FaceTable
from fer_lightning.errors import UserError
from fer_lightning.inference import ensembles, labelled
from fer_lightning.inference.load import as_list, load, together
from fer_lightning.inference.predictor import LoadedModel, pooled
from fer_lightning.metrics import calibration
from fer_lightning.report import tables
from fer_lightning.report.files import check_writable, write_atomically
from fer_lightning.report.write import write_report
from fer_lightning.runs import results

log = logging.getLogger(__name__)


def evaluate(
    models: str | Path | Sequence[str | Path],
    *,
    split: str = "test",
    data: str | os.PathLike[str] | None = None,
    twins: str | None = None,
    posthoc_tau: float | None = None,
    tta: str | None = None,
    out: Path | None = None,
    accelerator: str = "auto",
    trust: bool = False,
) -> dict[str, float | str]:
    """Score runs or model files on a split of their own data or of other data, and write metrics.json and report/.

    The probabilities of several are averaged, and members.csv then has the scores of each.

    Args:
        models: run folder, model file, ONNX file or name of a shipped model, or several of them.
        split: see `fer_lightning.inference.labelled.split_of`.
        data: see `fer_lightning.inference.labelled.split_of`.
        twins: "exact" or "near", which images of the training data make a test image unclean; by default the run's own.
        posthoc_tau: strength of a post-hoc logit adjustment by the class counts of training (Menon et al. 2021); by
            default the models' own. Choose it on `split="val"`.
        tta: test-time augmentation: "none", "flip" or "ten_crop"; by default what a file was calibrated with, and none
            for runs.
        out: the folder to write; by default one under the run folder, or evaluation/ in the working directory.
        accelerator: "auto", "cpu" or "gpu".
        trust: allow targets of a run's config that are not on the allow-list, and the download of its data.

    Returns:
        The content of metrics.json: on a run's own test images, the numbers of the run.

    Raises:
        UserError: no such model or split, models of different classes, or data of other classes.
    """
    if twins not in (None, "exact", "near"):
        raise UserError(f"--twins {twins}: use exact or near")
    if posthoc_tau is not None and not math.isfinite(posthoc_tau):
        raise UserError(f"--posthoc-tau {posthoc_tau}: use a finite number; 0 is no adjustment")
    loaded = [load(model, accelerator=accelerator, posthoc_tau=posthoc_tau, trust=trust) for model in as_list(models)]
    predictor, classes = together(loaded, tta), loaded[0].classes
    runs = [one.path for one in loaded if one.description is None]
    configs = [settings_of(run_dir, trust=trust) for run_dir in runs]
    chosen = labelled.split_of(loaded, data, split, remedy="or score what is there now with --data", trust=trust)
    faces, rows = chosen.faces, chosen.rows
    described = [one.description for one in loaded if one.description is not None]
    own: dict[str, Any] = (
        configs[0]["data"] if configs else {"twins": labelled.twins_of(described[0]), "cache_dir": None}
    )
    own_twins, own_taus = own["twins"], {one.posthoc_tau for model in loaded for one in model.configs}
    adjusted = posthoc_tau is not None and own_taus != {posthoc_tau}
    twins, tau = twins or own_twins, min(own_taus) if posthoc_tau is None else posthoc_tau
    if chosen.parts is not None and chosen.protocol is not None:
        clean = chosen.parts.clean
        if twins != own_twins:
            regrouped = with_duplicate_groups(faces, own | {"twins": twins})
            known = seen(faces, chosen.protocol, chosen.parts.test)
            clean = ~np.isin(regrouped.duplicate_groups, regrouped.duplicate_groups[known])
    else:
        clean = np.full(len(faces), len(runs) == len(loaded))  # a model file's training set is unavailable
        if twins != own_twins and len(runs) < len(loaded):
            log.warning("--twins %s changes nothing: the training set of a model file is not known", twins)
        for run_dir, settings in zip(runs, configs, strict=True):
            clean &= _unseen(faces, run_dir, settings, twins, trust)
    name = f"{split}-{twins}" if twins != own_twins else split
    name += f"-tau{tau:g}" if adjusted else ""
    name += f"-{predictor.tta}" if predictor.tta != "none" else ""
    model_name = ensembles.title(loaded)
    out = out or ensembles.default_folder(loaded, "evaluation", name, data)
    check_writable(out)

    of_members = predictor.of_members(faces.images[rows])
    scored = results.Scored.from_logits(faces, rows, pooled(of_members), clean)
    fitted = predictor.calibration
    if fitted is not None and adjusted:  # coverage and accuracy are those of other predictions
        fitted = replace(fitted, coverage=None, accuracy=None)
    metrics: dict[str, float | str] = {
        **results.test_scores(scored, classes, fitted),
        **calibration.entries(fitted),
        "data/source": faces.source,
        "data/split": split,
        "data/twins": twins,
        "posthoc_tau": tau,
        "tta": predictor.tta,
    }
    if not any(name.startswith("test/") for name in metrics):
        raise UserError(f"{faces.source}: no image of the split '{split}' has a label to score it by")
    if len(of_members) > 1:
        table = ensembles.members_table(_member_names(loaded), of_members, faces.labels[rows])
        metrics |= ensembles.summary(table, of_members, faces.labels[rows], float(metrics["test/accuracy"]))
        write_atomically(out / "members.csv", tables.as_csv(table))
        ensembles.show(table, metrics)
    else:  # of an earlier ensemble in the same folder
        (out / "members.csv").unlink(missing_ok=True)
    write_atomically(out / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    counts = dict(zip(classes, faces.counts(rows).tolist(), strict=True))
    index = write_report(
        out,
        predictions=scored.predictions,
        classes=classes,
        counts_before=counts,
        counts_after=counts,
        metrics=metrics,
        history=None,
        images=faces.images[rows],
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(configs[0])) if configs else "",
        about={
            "name": f"{model_name}: {out.name}",
            "data": faces.source,
            "split": split,
            "models": ", ".join(str(one.path) for one in loaded),
        },
    )
    tables.print_report(scored.predictions, classes, f"{faces.source}, {split}: per class")
    print(f"report   {index}")
    return metrics


def _member_names(loaded: Sequence[LoadedModel]) -> list[str]:
    return [
        one.name if len(one.members) == 1 else f"{one.name} {i}"
        for one in loaded
        for i in range(1, len(one.members) + 1)
    ]


def _unseen(faces: FaceTable, run_dir: Path, settings: dict[str, Any], twins: str, trust: bool) -> NDArray[np.bool_]:
    """Which faces have no duplicate in the run's training data, bool (N,); all false if that data is unavailable."""
    data = settings["data"]
    try:
        own, parts, *_ = load_parts_of(
            run_dir, settings, cleaned=False, trust=trust, remedy="to know which images are clean"
        )
    except UserError as error:
        log.warning("no scores of clean images, since the run's own data are unavailable: %s", error)
        return np.zeros(len(faces), dtype=bool)
    trained = seen(own, settings["protocol"]["name"], parts.test)
    if twins != "near":
        return ~np.isin(faces.digests, own.digests[trained])
    names = ("images", "labels", "split", "ids")
    both: dict[str, Any] = {name: np.concatenate([getattr(own, name)[trained], getattr(faces, name)]) for name in names}
    groups, _ = near_duplicates(replace(faces, **both, votes=None, targets=None), cache_root(data))
    return ~np.isin(groups[len(trained) :], groups[: len(trained)])
