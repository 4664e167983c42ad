"""Checkpoints that are whole or not there, and from which a run goes on to the same weights."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from fer_lightning.errors import UserError
from fer_lightning.runs.folder import CHECKPOINTS, LAST, PREVIOUS

log = logging.getLogger(__name__)


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is whole and on the disk.

    The last checkpoint but one is kept, under the name `previous.ckpt`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """See the base class.

        Raises:
            UserError: the disk is full or cannot be written to; every checkpoint that was there is there still.
        """
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and path.exists():
                path.replace(path.with_name(PREVIOUS))
            part.replace(path)
        except (OSError, RuntimeError) as error:  # torch turns some of the first into the second
            part.unlink(missing_ok=True)
            run_dir = next((p.parent for p in path.parents if p.name == CHECKPOINTS), path.parent)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise UserError(
                f"{path}: could not be written ({reason}); the checkpoint before it is whole: make room, then go on "
                f"with `python train.py resume={run_dir}`"
            ) from error

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See the base class; a run folder that was moved finds its best checkpoint where it is now."""
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        folder = Path(path).absolute().parent
        for state in checkpoint.get("callbacks", {}).values():
            if state.get("best_model_path"):
                state |= {"dirpath": str(folder), "best_model_path": str(folder / Path(state["best_model_path"]).name)}
        return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
