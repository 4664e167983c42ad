"""A run folder as something to start in, to go on in, and to read back."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from fer_lightning.config.saved import read_settings
from fer_lightning.config.schema import ABOUT_RESUMING
from fer_lightning.errors import UserError
from fer_lightning.report.files import write_atomically

log = logging.getLogger(__name__)

CONFIG, METRICS, CHECKPOINTS = "config.yaml", "metrics.json", "checkpoints"
PARTITION = "partition.json"  # digests of the images and labels that train, validate and test
ALLOWED = "changes_allowed"  # key of partition.json: by who goes on with the run now
PIXELS = "data/test_pixels"  # key of metrics.json: a digest of the test images
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
HERE = "<run folder>"
"""Stands for the run folder in its config.yaml, so that the folder can be moved."""

ADDED_LATER: dict[str, Any] = {
    **dict.fromkeys(("votes", "target", "merge", "relabel", "relabel_digest")),
    "twins": "exact",
    "drop": [],
}
"""Keys under `data` that runs of earlier releases do not have, and the values that are what they did."""


def load_settings(run_dir: Path) -> dict[str, Any]:
    """The resolved config a run was started with.

    Raises:
        UserError: the folder does not hold a run.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise UserError(f"{run_dir}: not a run folder, as {CONFIG} is missing; name one like outputs/<date>/<time>")
    settings: dict[str, Any] = read_settings(path)
    settings["data"] = ADDED_LATER | settings.get("data", {})
    if str(settings.get("model", {}).get("_target_", "")).endswith("resnet.ResNet"):
        settings["model"] = {"width": 64} | settings["model"]
    return _replaced(settings, HERE, str(run_dir.absolute()))  # type: ignore[no-any-return]


def finished(run_dir: Path) -> dict[str, float | str] | None:
    """What a run that has come to its end wrote last: its metrics.json; None for one that has not."""
    path = run_dir / METRICS
    if not path.is_file():
        return None
    metrics: dict[str, float | str] = json.loads(path.read_text())
    return metrics


def has_trained(run_dir: Path) -> bool:
    """Whether there is anything to lose: a run that failed before its first epoch may be started anew."""
    return any((run_dir / name).exists() for name in (METRICS, "metrics.csv")) or any(
        (run_dir / CHECKPOINTS).glob("*.ckpt")
    )


def enter(run_dir: Path, settings: Mapping[str, Any]) -> IO[bytes]:
    """Make the folder a run's own, or go on with the run that is there.

    Args:
        run_dir: the folder.
        settings: the resolved config; its `resume` and `allow_changes` say what may be there already.

    Returns:
        The open lock file: while it is held, no other process enters. The system lets go of it when this one dies.

    Raises:
        UserError: there is a run already, with another config, or one that another process is busy with; or nothing
            can be written there.
    """
    wanted = {key: value for key, value in settings.items() if key not in ABOUT_RESUMING}
    try:
        (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        lock = _lock(run_dir)
    except OSError as error:
        raise _unwritable(run_dir, error) from error
    try:
        _compare(run_dir, settings, wanted)
        portable = _replaced(wanted, str(run_dir.absolute()), HERE)
        content = OmegaConf.to_yaml(OmegaConf.create(portable)).encode()
        if not (run_dir / CONFIG).exists() or (run_dir / CONFIG).read_bytes() != content:
            write_atomically(run_dir / CONFIG, content)
    except BaseException as error:
        lock.close()
        if isinstance(error, OSError):
            raise _unwritable(run_dir, error) from error
        raise
    return lock


def _compare(run_dir: Path, settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if not (run_dir / CONFIG).exists() or not has_trained(run_dir):
        return
    if settings["resume"] is None:
        raise UserError(
            f"{run_dir} holds a run already; go on with it by resume={run_dir}, or choose another folder with "
            "hydra.run.dir=<folder>"
        )
    changes = list(differences(load_settings(run_dir), wanted))
    if changes and not settings["allow_changes"]:
        raise UserError(
            f"{run_dir}: the config is not the one this run was started with: {', '.join(changes[:6])}"
            f"{f' and {len(changes) - 6} more' if len(changes) > 6 else ''}; leave these as they were, or accept that "
            "with allow_changes=true"
        )
    if changes:  # what was finished is so no longer
        (run_dir / METRICS).unlink(missing_ok=True)
    _allow_other_data(run_dir, allowed=settings["allow_changes"])
    for change in changes:
        log.warning("gone on with another config: %s", change)


def keep_partition(run_dir: Path, source: str, digests: Mapping[str, str], *, resumed: bool) -> None:
    """Note which images a run trains, validates and tests on; one that is gone on with has to have the same ones.

    Raises:
        UserError: it has others.
    """
    if resumed:
        try:
            compare_partition(run_dir, source, digests, "or accept that with allow_changes=true")
        except UserError as error:
            if not json.loads((run_dir / PARTITION).read_text()).get(ALLOWED):
                raise
            log.warning("gone on with nevertheless: %s", error)
    write_atomically(run_dir / PARTITION, (json.dumps(dict(digests), indent=1) + "\n").encode())


def _allow_other_data(run_dir: Path, *, allowed: bool) -> None:
    """Tell whoever reads the data, maybe another process, whether they may have changed."""
    path = run_dir / PARTITION
    noted = json.loads(path.read_text()) if path.is_file() else {}
    if noted and noted.get(ALLOWED, False) != allowed:
        write_atomically(path, (json.dumps(noted | {ALLOWED: allowed}, indent=1) + "\n").encode())


def compare_partition(run_dir: Path, source: str, digests: Mapping[str, str], way_out: str) -> None:
    """Raises UserError, with the way out, where a run's images are not those it was started with.

    One image more or less is enough to change hold-outs and folds: what was trained on would be tested on. Runs of
    earlier releases have no note of theirs.
    """
    path = run_dir / PARTITION
    noted = json.loads(path.read_text()) if path.is_file() else digests
    names = {"train": "training", "cleaned": "cleaned training", "val": "validation", "test": "test"}
    known = [part for part in names if part in noted and part in digests]  # who only scores does not clean
    if other := [names[part] for part in known if noted[part] != digests[part]]:
        raise UserError(
            f"{run_dir}: the {', '.join(other)} images of {source}, or their labels, are not those that this run was "
            f"started with; bring the data back as they were, {way_out}"
        )


def _unwritable(run_dir: Path, error: OSError) -> UserError:
    return UserError(f"{run_dir}: {error.strerror}; choose another with hydra.run.dir=<folder>")


def _replaced(value: Any, old: str, new: str) -> Any:
    """Plain containers with one path for another in every string."""
    if isinstance(value, Mapping):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    return value.replace(old, new) if isinstance(value, str) else value


def _lock(run_dir: Path) -> IO[bytes]:
    lock = (run_dir / ".lock").open("ab")
    try:
        import fcntl
    except ImportError:  # Windows: two processes in one folder are not noticed there
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{run_dir}: another process is busy with this run; wait for it or stop it") from None
    except OSError as error:  # a file system without locks
        log.info("%s: not locked (%s)", run_dir, error)
    return lock


def differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """What differs between two configs of plain containers, as "key: old -> new"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif old != new:
        yield f"{key}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def checkpoint_to_resume(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None where training has to start at the beginning."""
    folder = run_dir / CHECKPOINTS
    for path in (folder / LAST, folder / PREVIOUS, folder / BEST):
        if path.is_file():
            fault = _fault(path)
            if fault is None:
                return path
            log.warning("%s is damaged (%s): going on from the one before it", path, fault)
    return None


def _fault(path: Path) -> str | None:
    """Why a checkpoint cannot be read, or None: every byte is compared with the checksums in the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        return str(error)
    return None if bad is None else f"checksum of {bad}"
