"""The run folder: entering, resuming and reading it."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from fer_lightning.config.saved import read_settings
from fer_lightning.config.schema import ABOUT_RESUMING
from fer_lightning.errors import UserError
from fer_lightning.report.files import write_atomically

log = logging.getLogger(__name__)

CONFIG, METRICS, CHECKPOINTS = "config.yaml", "metrics.json", "checkpoints"
PARTITION = "partition.json"  # digests of the training, validation and test images and their labels
PARTS = {"train": "training", "cleaned": "cleaned training", "val": "validation", "test": "test"}
OVERRIDES = ".hydra/overrides.yaml"
"""The command line that a run was started or, with accepted changes, resumed with."""

ALLOWED = "changes_allowed"  # key of partition.json: whether the command that resumes the run accepts other data
PIXELS = "data/test_pixels"  # key of metrics.json: a digest of the test images
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
HERE = "<run folder>"
"""Stands for the run folder in its config.yaml, so that the folder can be moved."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without locks: there a run trains unlocked."""


def load_settings(run_dir: Path) -> dict[str, Any]:
    """The resolved config of a run.

    Raises:
        UserError: the folder does not hold a run.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise UserError(f"{run_dir}: not a run folder, as {CONFIG} is missing; name one like outputs/<date>/<time>")
    return _moved(read_settings(path), HERE, str(run_dir.absolute()))  # type: ignore[no-any-return]


def finished(run_dir: Path) -> dict[str, float | str] | None:
    """The metrics.json of a finished run, which writes it last; None for an unfinished one.

    Raises:
        UserError: the file is not one that a run wrote.
    """
    metrics = _read(run_dir / METRICS)
    if not all(isinstance(value, int | float | str) for value in metrics.values()):
        raise _foreign(run_dir / METRICS)
    return metrics or None


def has_trained(run_dir: Path) -> bool:
    """Whether the folder holds results: a run that failed before its first epoch may be started again."""
    return any((run_dir / name).exists() for name in (METRICS, "metrics.csv")) or any(
        (run_dir / CHECKPOINTS).rglob("*.ckpt")
    )


@contextmanager
def enter(run_dir: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Create the run folder, or enter it to resume its run, and lock it against other processes during the block.

    The system releases the lock when this process dies.

    Args:
        run_dir: the folder.
        settings: the resolved config; `resume` and `allow_changes` decide whether it may hold a run already.

    Raises:
        UserError: the folder holds a run that may not be resumed, has another config, or is in use by another process;
            or the folder is not writable.
    """
    wanted = {key: value for key, value in settings.items() if key not in ABOUT_RESUMING}
    lock = FileLock(run_dir / ".lock", fallback_to_soft=False)
    try:
        try:
            (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            _acquire(lock, run_dir)
            before = _compare(run_dir, settings, wanted)
            content = OmegaConf.to_yaml(OmegaConf.create(_moved(wanted, str(run_dir.absolute()), HERE))).encode()
            file, is_finished = run_dir / CONFIG, (run_dir / METRICS).exists()  # then the data are not read again
            if not file.exists() or (file.read_bytes() != content and not is_finished):
                write_atomically(run_dir / CONFIG, content)
        except OSError as error:
            raise UserError(f"{run_dir}: {error.strerror}; choose another with hydra.run.dir=<folder>") from error
        begun = _written(run_dir / PARTITION)
        try:
            yield
        except BaseException:
            if _written(run_dir / PARTITION) == begun:  # no training has begun with the changes
                for path, old in before.items():
                    write_atomically(path, old)
            raise
    finally:
        lock.release()


def _written(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _acquire(lock: FileLock, run_dir: Path) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"{run_dir}: another process is busy with this run; wait for it or stop it") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.info("%s: not locked, as its file system has no locks (%s)", run_dir, error)


def _compare(run_dir: Path, settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[Path, bytes]:
    """Accept or refuse changes of the config; returns the files that change with it, as they were."""
    if not (run_dir / CONFIG).exists() or not has_trained(run_dir):
        return {}
    if settings["resume"] is None:
        raise UserError(
            f"{run_dir} holds a run already; resume it with resume={run_dir}, or choose another folder with "
            "hydra.run.dir=<folder>"
        )
    changes = list(differences(load_settings(run_dir), wanted))
    # Whether the same data are elsewhere now is seen when they are read, and teachers are known by their digests.
    moved = [change for change in changes if change.startswith(("data.path: ", "distill.teachers: "))]
    if any(change.startswith("distill.digests: ") for change in changes):
        moved = [change for change in moved if not change.startswith("distill.")]
    for change in moved:
        log.warning("resumed with files in another place: %s", change)
        changes.remove(change)
    if kept := [change for change in changes if _is_kept(change, settings)]:
        raise UserError(
            f"{run_dir}: {kept[0]}: a run that has begun keeps the settings of its optimizer, of fine-tuning and of a "
            f"plateau schedule, which belong to its checkpoint; start another one, with init_from={run_dir} if it "
            "shall begin with this one's weights"
        )
    if changes and not settings["allow_changes"]:
        raise UserError(
            f"{run_dir}: the config is not the one this run was started with: {', '.join(changes[:6])}"
            f"{f' and {len(changes) - 6} more' if len(changes) > 6 else ''}; leave these as they were, or accept that "
            "with allow_changes=true"
        )
    files = [run_dir / name for name in (CONFIG, METRICS, OVERRIDES, PARTITION)]
    before = {path: path.read_bytes() for path in files if path.exists()} if changes or moved else {}
    if changes:  # the run is no longer finished
        (run_dir / METRICS).unlink(missing_ok=True)
    # For the process that reads the data, which may be another one.
    if (noted := _partition(run_dir)) and noted.get(ALLOWED, False) != settings["allow_changes"]:
        _write_partition(run_dir, noted | {ALLOWED: settings["allow_changes"]})
    for change in changes:
        log.warning("resumed with another config: %s", change)
    return before


def _is_kept(change: str, settings: Mapping[str, Any]) -> bool:
    """Whether a checkpoint restores what a change is about, so that it would have no effect, or cannot be restored."""
    is_plateau = "plateau" in change or str((settings.get("schedule") or {}).get("_target_")).endswith(".plateau")
    with_groups = ("optimizer.", "finetune.", "imbalance.retrain_after: ")  # which belong to the groups of parameters
    return change.startswith(with_groups) or (change.startswith(("schedule.", "monitor.")) and is_plateau)


def keep_partition(run_dir: Path, source: str, digests: Mapping[str, str], *, resumed: bool) -> None:
    """Record the digests of a run's training, validation and test images; a resumed run must have the same ones.

    Raises:
        UserError: the images of a resumed run differ, and its command does not accept that.
    """
    if resumed:
        try:
            compare_partition(run_dir, source, digests, "or accept that with allow_changes=true")
        except UserError as error:
            if not _partition(run_dir).get(ALLOWED):
                raise
            log.warning("resumed nevertheless: %s", error)
    _write_partition(run_dir, digests)


def compare_partition(run_dir: Path, source: str, digests: Mapping[str, str], remedy: str) -> None:
    """Compare the images of `source` with those that a run was started with.

    One image more or less is enough to change hold-outs and folds: training images would become test images.

    Raises:
        UserError: they differ; the message ends with `remedy`.
    """
    noted = _partition(run_dir)
    known = [part for part in PARTS if part in noted and part in digests]  # scoring does not clean
    if other := [PARTS[part] for part in known if noted[part] != digests[part]]:
        raise UserError(
            f"{run_dir}: the {', '.join(other)} images of {source}, or their labels, are not those that this run was "
            f"started with; restore the data, {remedy}"
        )


def _partition(run_dir: Path) -> dict[str, Any]:
    """The content of partition.json, empty where there is none.

    Raises:
        UserError: the file is not one that a run wrote.
    """
    noted = _read(run_dir / PARTITION)
    for key, value in noted.items():
        digest = key in PARTS and isinstance(value, str) and re.fullmatch("[0-9a-f]+", value)
        if not (isinstance(value, bool) if key == ALLOWED else digest):
            raise _foreign(run_dir / PARTITION)
    return noted


def _read(path: Path) -> dict[str, Any]:
    """A file with a JSON object, empty where there is none."""
    if not path.exists():
        return {}
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _foreign(path)
    return content


def _foreign(path: Path) -> UserError:
    return UserError(f"{path}: damaged, or not written by a run; delete it to continue without it")


def _write_partition(run_dir: Path, noted: Mapping[str, Any]) -> None:
    write_atomically(run_dir / PARTITION, (json.dumps(dict(noted), indent=1) + "\n").encode())


def _moved(value: Any, old: str, new: str) -> Any:
    """Plain containers in which paths at or below the folder `old` are at or below `new`."""
    if isinstance(value, Mapping):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith((f"{old}/", f"{old}{os.sep}"))):
        return new + value[len(old) :]
    return value


def differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """The differences between two configs of plain containers, each as "key: old -> new"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif old != new:
        yield f"{key}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
