"""Scoring a finished run again."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from fer_lightning.config.dataset import cache_root, load_faces, load_parts_of, with_twins
from fer_lightning.config.instantiate import check_targets
from fer_lightning.config.saved import check_complete
from fer_lightning.config.validation import check
from fer_lightning.data.datamodule import evaluation_loader
from fer_lightning.data.protocols import Rows, seen
from fer_lightning.data.quality.duplicates import near_twins
from fer_lightning.data.table import SPLITS, FaceTable
from fer_lightning.errors import UserError
from fer_lightning.report import tables
from fer_lightning.report.files import write_atomically
from fer_lightning.report.write import write_report
from fer_lightning.runs.checkpoints import read_checkpoint
from fer_lightning.runs.folder import CONFIG, load_settings
from fer_lightning.training import results
from fer_lightning.training.job import quiet
from fer_lightning.training.module import FERClassifier

log = logging.getLogger(__name__)


def evaluate(
    run_dir: Path,
    *,
    split: str = "test",
    data: Path | None = None,
    twins: str | None = None,
    posthoc_tau: float | None = None,
    out: Path | None = None,
    accelerator: str = "auto",
    trust: bool = False,
) -> dict[str, float | str]:
    """Score a run's best checkpoint on a split of its own data or of other data, and write metrics.json and report/.

    Args:
        run_dir: the run folder.
        split: "train", "val" or "test" as the run's protocol has them, "all", or a split of the source such as
            "private". Of other data, "test" means its test images, or all of it where it has none.
        data: a source of other faces, labelled with classes that the run knows.
        twins: "exact" or "near", which images of the training data make a test image unclean; by default the run's own.
        posthoc_tau: strength of a post-hoc logit adjustment by the class counts of training (Menon et al. 2021); by
            default the run's own. Choose it on `split="val"`.
        out: the folder to write; by default one under the run folder.
        accelerator: "auto", "cpu" or "gpu".
        trust: accept targets of other code, which runs when the network is built.

    Returns:
        What metrics.json holds: on the run's own test images, the numbers of the run.

    Raises:
        UserError: no finished run there, no such split, or data that does not fit.
    """
    quiet()
    if twins not in (None, "exact", "near"):
        raise UserError(f"--twins {twins}: exact or near")
    settings = scoring_settings(run_dir, accelerator, trust=trust)
    own_twins = settings["data"]["twins"]
    twins = twins or own_twins
    classifier = load_classifier(run_dir, trust=trust)
    own_tau = classifier.hparams["posthoc_tau"]
    if posthoc_tau is not None:
        classifier.hparams["posthoc_tau"] = posthoc_tau
    tau = classifier.hparams["posthoc_tau"]
    classes = tuple(classifier.classes)

    if data is None:
        way_out = "or score what is there now with --data"
        faces, parts, *_ = load_parts_of(run_dir, settings, cleaned=split == "train", way_out=way_out)
        rows = getattr(parts, split) if split in ("train", "val", "test") else _rows_of(faces, split)
        clean = parts.clean
        if twins != own_twins:
            twinned = with_twins(faces, settings["data"] | {"twins": twins})
            known = seen(faces, settings["protocol"]["name"], parts.test)
            clean = ~np.isin(twinned.twins, twinned.twins[known])
    else:
        own = settings["data"]
        other = dict.fromkeys(("classes", "votes", "target", "merge"))
        other |= {"name": "fer2013", "path": str(data), "twins": "exact"}
        faces = load_faces(settings | {"data": own | other})
        faces = faces.as_known_by(classes, own.get("merge"))
        rows = _rows_of(faces, split)
        clean = _unseen(faces, run_dir, settings, twins)
    name = (f"{data.name}-{split}" if data else split) + (f"-{twins}" if twins != own_twins else "")
    name += f"-tau{tau:g}" if tau != own_tau else ""
    out = out or run_dir / "evaluation" / name

    trainer = scoring_trainer(settings, out)
    loader = evaluation_loader(faces, rows, settings["data"]["eval_batch_size"], trainer)
    scored = results.predict(trainer, classifier, loader, faces, clean)
    metrics: dict[str, float | str] = {
        **results.test_scores(scored, classes),
        "data/source": faces.source,
        "data/split": split,
        "data/twins": twins,
        "posthoc_tau": tau,
    }
    if not any(name.startswith("test/") for name in metrics):
        raise UserError(f"{faces.source}: no image of the split '{split}' carries a label to be scored by")
    out.mkdir(parents=True, exist_ok=True)
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
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(settings)),
        about={"name": f"{run_dir.name}: {out.name}", "data": faces.source, "split": split, "run": str(run_dir)},
    )
    report = tables.classification_report(results.confusion_of(scored.predictions, classes), classes)
    tables.print_report(report, title=f"{faces.source}, {split}: per class")
    print(f"report   {index}")
    return metrics


def scoring_settings(run_dir: Path, accelerator: str, *, trust: bool = False) -> dict[str, Any]:
    """A run's config, to score with on one device: "auto", "cpu" or "gpu".

    Raises:
        UserError: the folder does not hold a run, it has targets that are not allowed and no `trust`, or there is no
            such device.
    """
    settings = load_settings(run_dir)
    check_complete(settings, run_dir / CONFIG)
    check_targets(settings, where=str(run_dir / CONFIG), trust=trust)
    settings["trainer"] |= {"accelerator": accelerator, "devices": 1}
    if settings["trainer"]["precision"] == "16-mixed" and accelerator != "gpu" and not torch.cuda.is_available():
        settings["trainer"]["precision"] = "32-true"
    check(settings)
    return settings


def scoring_trainer(settings: dict[str, Any], out: Path) -> L.Trainer:
    """A trainer that scores as `scoring_settings` say, and writes nothing of its own."""
    return L.Trainer(
        accelerator=settings["trainer"]["accelerator"],
        devices=1,
        precision=settings["trainer"]["precision"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )


def load_classifier(run_dir: Path, *, trust: bool = False) -> FERClassifier:
    """The classifier of a run's best checkpoint, on the CPU, ready for inference.

    Raises:
        UserError: there is none, the file is damaged, or it has targets that are not allowed and no `trust`.
    """
    path = run_dir / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise UserError(f"{path}: there is no best checkpoint; the run has not finished an epoch, or kept none")
    checkpoint = read_checkpoint(path)
    hyperparameters = checkpoint.get("hyper_parameters")
    if not isinstance(hyperparameters, dict):
        raise UserError(f"{path}: not a checkpoint of this project: it has no hyperparameters")
    # Whatever the loss was, scoring has no use for it.
    hyperparameters = hyperparameters | {"loss": {"_target_": "fer_lightning.training.losses.CrossEntropy"}}
    check_targets(hyperparameters, where=str(path), trust=trust)
    try:
        classifier = FERClassifier(**hyperparameters)
        classifier.on_load_checkpoint(checkpoint)
        classifier.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: not a checkpoint of this project ({' '.join(str(error).split())}); train again"
        ) from error
    return classifier.eval()


def _unseen(faces: FaceTable, run_dir: Path, settings: dict[str, Any], twins: str) -> NDArray[np.bool_]:
    """Which faces have no twin among the run's training images; none is known to, where those are gone."""
    data = settings["data"]
    try:
        own, parts, *_ = load_parts_of(run_dir, settings, cleaned=False, way_out="to know which images are clean")
    except UserError as error:
        log.warning("no scores of clean images, since the run's own data are not there: %s", error)
        return np.zeros(len(faces), dtype=bool)
    trained = seen(own, settings["protocol"]["name"], parts.test)
    if twins != "near":
        return ~np.isin(faces.digests, own.digests[trained])
    names = ("images", "labels", "split", "ids")
    both: dict[str, Any] = {name: np.concatenate([getattr(own, name)[trained], getattr(faces, name)]) for name in names}
    groups, _ = near_twins(replace(faces, **both, votes=None, targets=None), cache_root(data))
    return ~np.isin(groups[len(trained) :], groups[: len(trained)])


def _rows_of(faces: FaceTable, split: str) -> Rows:
    if split == "all":
        return np.arange(len(faces))
    if split not in SPLITS:
        raise UserError(f"--split {split}: there are all, {', '.join(SPLITS)}")
    rows = faces.rows("public", "private", "test") if split == "test" else faces.rows(split)
    if split == "test" and not len(rows):
        return np.arange(len(faces))
    if not len(rows):
        raise UserError(f"--split {split}: {faces.source} has no such images")
    return rows
