"""Weights & Biases: creates its logger, and sends what a run has beyond the scalars that Lightning logs."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import numpy as np
import pandas as pd
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from fer_lightning.report import tables
from fer_lightning.report.loggers import Wandb

log = logging.getLogger(__name__)

HEADLINES = ("test/accuracy", "test/f1_macro", "test/clean/accuracy", "test/clean/f1_macro", "val/f1_macro")
"""Scores that are sent with the checkpoint; W&B allows 100 at most."""

MISTAKES = 32
"""Number of most confident mistakes that are sent as images."""


def wandb_logger(
    project: str,
    save_dir: str,
    entity: str | None = None,
    group: str | None = None,
    name: str | None = None,
    tags: Sequence[str] | None = None,
    mode: Literal["auto", "online", "offline"] = "auto",
    log_checkpoint: bool = False,
    finish_timeout: float = 60.0,
) -> Wandb:
    """A W&B logger that never stops a run, and delays its end by at most `finish_timeout` seconds.

    Mode `auto` logs online if an API key is set and W&B's server answers within five seconds, else offline with a
    warning; the environment variable WANDB_MODE takes precedence. The id of the W&B run is stored in the run folder.

    Raises:
        ValueError: unknown mode.
    """
    if mode not in ("auto", "online", "offline"):
        raise ValueError(f"mode must be auto, online or offline, not '{mode}'")
    if getattr(rank_zero_only, "rank", 0):  # Lightning needs a logger on every rank, and logs with that of rank 0
        return Wandb(save_dir=save_dir)
    import wandb

    # Without a server, W&B's own error reports would delay the end of a run by ten seconds, and each table of the
    # results by twenty.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_HTTP_TIMEOUT", "5")
    chosen = os.environ.get("WANDB_MODE", mode)
    reason = _why_offline() if chosen == "auto" else None
    if chosen == "auto":
        chosen = "offline" if reason else "online"
    logger = Wandb(
        project=project,
        save_dir=save_dir,
        id=_run_id(Path(save_dir)),
        resume="allow",
        entity=entity,
        group=group,
        name=name,
        tags=list(tags) if tags else None,
        mode=chosen,
        # Capturing the console would store each refresh of the progress bar.
        settings=wandb.Settings(
            console="off", init_timeout=30, finish_timeout=finish_timeout, finish_timeout_raises=True
        ),
    )
    logger.send_checkpoint, logger.may_go_offline = log_checkpoint, mode == "auto"
    if reason:
        logger.warn_offline(reason)
    return logger


def _why_offline() -> str | None:
    """The reason why W&B is unavailable, or None."""
    from wandb.sdk import wandb_setup

    settings = wandb_setup.singleton().settings  # with those that `wandb login --host` has stored
    url = os.environ.get("WANDB_BASE_URL") or str(settings.base_url)
    host = urlparse(url).hostname or ""
    if not (os.environ.get("WANDB_API_KEY") or settings.identity_token_file or _in_netrc(host)):
        return "because there is no API key (`wandb login` stores one)"
    try:
        urlopen(url, timeout=5).close()
    except HTTPError:  # an answer
        return None
    except (OSError, HTTPException, ValueError):
        return f"because {host or url} does not answer"
    return None


def _in_netrc(host: str) -> bool:
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")  # noqa: PTH111 (Path's own raises without a home)
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(run_dir: Path) -> str:
    """The id of the W&B run, which stays the same when the run is resumed."""
    path = run_dir / "wandb_run_id.txt"
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


def log_start(loggers: Sequence[Logger], config: Mapping[str, Any], counts: Mapping[str, Mapping[str, int]]) -> None:
    """Send the resolved config to every logger, and the class counts to W&B.

    Args:
        loggers: of the run.
        config: resolved.
        counts: by name ("before", "after" resampling), training images per class.
    """
    for logger in loggers:
        logger.log_hyperparams(dict(config))
        if isinstance(logger, Wandb):
            # Now, not with the results: if the server is lost, W&B accepts tables only from a run that has sent one.
            logger.attempt(partial(_log_counts, logger, counts))


def log_results(
    loggers: Sequence[Logger],
    *,
    step: int,
    metrics: Mapping[str, float | str],
    predictions: Mapping[str, pd.DataFrame],
    classes: Sequence[str],
    images: NDArray[np.uint8],
    checkpoint: Path | None,
) -> None:
    """Send the scores of the best checkpoint to every logger, and tables and images to W&B.

    Args:
        loggers: of the run.
        step: number of optimizer steps.
        metrics: content of metrics.json.
        predictions: from `tables.predictions`, of "val" and "test".
        classes: (C,), class names in label order.
        images: uint8 (N, H, W), the test images.
        checkpoint: path of the best checkpoint, if any.
    """
    final = {name: value for name, value in metrics.items() if not isinstance(value, str)}
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.attempt(partial(_log_wandb, logger, metrics, predictions, classes, images))
            if checkpoint is not None and logger.send_checkpoint:
                headlines = {n: v for n, v in final.items() if n in HEADLINES}
                logger.attempt(partial(_log_artifact, logger, checkpoint, headlines))
        else:
            logger.log_metrics({n: v for n, v in final.items() if n.startswith("test/")}, step)


def finish(loggers: Sequence[Logger], *, failed: bool) -> None:
    """Close every logger, so that W&B does not log the next job of a sweep into this run."""
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, Wandb):
            logger.finish(failed=failed)


def _log_counts(logger: Wandb, counts: Mapping[str, Mapping[str, int]]) -> None:
    import wandb

    before, after = counts["before"], counts["after"]
    rows: list[Any] = [[name, before[name], after[name]] for name in before]
    logger.experiment.log({"data/class_counts": wandb.Table(columns=["class", "before", "after"], data=rows)})


def _log_wandb(
    logger: Wandb,
    metrics: Mapping[str, float | str],
    predictions: Mapping[str, pd.DataFrame],
    classes: Sequence[str],
    images: NDArray[np.uint8],
) -> None:
    import wandb

    test = predictions["test"]
    report = tables.classification_report(tables.confusion_of(test, classes), classes)
    media: dict[str, Any] = {"test/report": wandb.Table(dataframe=report.astype(object).where(report.notna(), None))}
    for split, table in predictions.items():
        counts = np.ndenumerate(tables.confusion_of(table, classes))
        cells: list[Any] = [[classes[true], classes[guess], int(n)] for (true, guess), n in counts]
        media[f"{split}/confusion_matrix"] = wandb.Table(columns=["actual", "predicted", "images"], data=cells)
    wrong = tables.most_confident(test, correct=False)[:MISTAKES]
    media["test/mistakes"] = [
        wandb.Image(images[i], caption=f"{row.label} predicted as {row.prediction} ({row.confidence:.0%}), {row.id}")
        for i, row in zip(wrong, test.iloc[wrong].itertuples(index=False), strict=True)
    ]
    logger.experiment.log({name: value for name, value in media.items() if value})
    logger.experiment.summary.update(dict(metrics))


def _log_artifact(logger: Wandb, checkpoint: Path, metadata: Mapping[str, float]) -> None:
    import wandb

    artifact = wandb.Artifact(f"{logger.experiment.id}-best", type="model", metadata=dict(metadata))
    artifact.add_file(str(checkpoint))
    logger.experiment.log_artifact(artifact, aliases=["best"])
