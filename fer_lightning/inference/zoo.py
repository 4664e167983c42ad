"""Models inside the package."""

from __future__ import annotations

from pathlib import Path

from fer_lightning.errors import UserError, flat, printable

WEIGHTS = Path(__file__).parents[1] / "weights"
"""Folder of the model files and their cards."""

DEFAULT = "fer2013-small"
"""Name of the model that commands take if none is given."""


def shipped() -> dict[str, Path]:
    """The model files in the package by name."""
    return {path.stem: path for path in sorted(WEIGHTS.glob("*.safetensors"))}


def existing(name: str | Path) -> Path | None:
    """The path of a file or folder, `~` expanded; None if there is none.

    Raises:
        UserError: it may not be read, or has no valid name.
    """
    try:
        path = Path(name).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or flat(error)
        raise UserError(f"{printable(name)} cannot be read ({reason}); name another file") from error
    return path


def find(model: str | Path) -> Path:
    """The run folder or file that a user means: a path, or the name of a shipped model.

    Raises:
        UserError: neither, or it may not be read.
    """
    if path := existing(model):
        return path
    models = shipped()
    if str(model) in models:
        return models[str(model)]
    if not models and str(model) == DEFAULT:
        raise UserError("name a model with --model: a run folder, or a file of `fer-lightning export`")
    names = ", ".join(models) or "none"
    raise UserError(f"{printable(model)}: neither a run folder or model file, nor a model of this package ({names})")


def show() -> None:
    """Print the models in the package with their scores."""
    from rich.console import Console
    from rich.table import Table

    from fer_lightning.inference import modelfile

    table = Table("model", "size", "classes", "protocol", "accuracy", "F1", "clean", "--tta")
    table.columns[0].no_wrap = True
    for name, path in shipped().items():
        found, _ = modelfile.read(path)
        scores = (
            f"{found.scores[key]:.3f}" if key in found.scores else ""
            for key in ("test/accuracy", "test/f1_macro", "test/clean/accuracy")
        )
        size = f"{path.stat().st_size / 1e6:.1f} MB"
        table.add_row(name, size, str(len(found.classes)), str(found.protocol.get("name", "")), *scores, found.tta)
    Console().print(table if table.rows else "no models in this package")
