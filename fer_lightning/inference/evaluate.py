"""Scoring a finished run again."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from fer_lightning.config.dataset import cache_root, load_parts_of, settings_of, with_duplicate_groups
from fer_lightning.data.protocols import Rows, seen
from fer_lightning.data.quality.duplicates import near_duplicates
from fer_lightning.data.readers import sources
from fer_lightning.data.readers.remote import source_name
from fer_lightning.data.table import SPLITS, FaceTable
from fer_lightning.errors import UserError
from fer_lightning.inference.predictor import Predictor
from fer_lightning.report import tables
from fer_lightning.report.files import write_atomically
from fer_lightning.report.write import write_report
from fer_lightning.runs import results

log = logging.getLogger(__name__)


def evaluate(
    run_dir: Path,
    *,
    split: str = "test",
    data: str | os.PathLike[str] | None = None,
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
        trust: allow targets of the run's config that are not on the allow-list, and the download of its data.

    Returns:
        The content of metrics.json: on the run's own test images, the numbers of the run.

    Raises:
        UserError: no finished run there, no such split, or data that does not fit.
    """
    if twins not in (None, "exact", "near"):
        raise UserError(f"--twins {twins}: use exact or near")
    settings = settings_of(run_dir, trust=trust)
    predictor = Predictor.from_run(run_dir, accelerator=accelerator, trust=trust)
    own_twins = settings["data"]["twins"]
    twins = twins or own_twins
    own_tau, classes = predictor.posthoc_tau, predictor.classes
    tau = predictor.posthoc_tau = own_tau if posthoc_tau is None else posthoc_tau

    if data is None:
        way_out = "or score what is there now with --data"
        faces, parts, *_ = load_parts_of(run_dir, settings, cleaned=split == "train", trust=trust, way_out=way_out)
        rows = getattr(parts, split) if split in ("train", "val", "test") else _rows_of(faces, split)
        clean = parts.clean
        if twins != own_twins:
            regrouped = with_duplicate_groups(faces, settings["data"] | {"twins": twins})
            known = seen(faces, settings["protocol"]["name"], parts.test)
            clean = ~np.isin(regrouped.duplicate_groups, regrouped.duplicate_groups[known])
    else:
        faces = sources.load(data, cache_dir=cache_root(settings["data"]))
        faces = faces.as_known_by(classes, settings["data"].get("merge"))
        rows = _rows_of(faces, split)
        clean = _unseen(faces, run_dir, settings, twins, trust)
    name = (f"{source_name(data)}-{split}" if data else split) + (f"-{twins}" if twins != own_twins else "")
    name += f"-tau{tau:g}" if tau != own_tau else ""
    out = out or run_dir / "evaluation" / name
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; choose a writable folder with --out") from error

    scored = results.Scored.from_logits(faces, rows, predictor.logits(faces.images[rows]), clean)
    metrics: dict[str, float | str] = {
        **results.test_scores(scored, classes),
        "data/source": faces.source,
        "data/split": split,
        "data/twins": twins,
        "posthoc_tau": tau,
    }
    if not any(name.startswith("test/") for name in metrics):
        raise UserError(f"{faces.source}: no image of the split '{split}' has a label to score it by")
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
    tables.print_report(scored.predictions, classes, f"{faces.source}, {split}: per class")
    print(f"report   {index}")
    return metrics


def _unseen(faces: FaceTable, run_dir: Path, settings: dict[str, Any], twins: str, trust: bool) -> NDArray[np.bool_]:
    """Which faces have no duplicate in the run's training data, bool (N,); all false if that data is unavailable."""
    data = settings["data"]
    try:
        own, parts, *_ = load_parts_of(
            run_dir, settings, cleaned=False, trust=trust, way_out="to know which images are clean"
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
