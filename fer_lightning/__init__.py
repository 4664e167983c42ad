"""fer-lightning: facial expression recognition experiments one can trust.

The public names below are imported when they are first used, since PyTorch and Lightning take seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fer_lightning.comparison.write import compare_runs
    from fer_lightning.data.datamodule import FERDataModule
    from fer_lightning.inference.evaluate import evaluate
    from fer_lightning.inference.load import load_model
    from fer_lightning.inference.predictor import Prediction, Predictor
    from fer_lightning.training.module import FERClassifier

__all__ = [
    "FERClassifier",
    "FERDataModule",
    "Prediction",
    "Predictor",
    "__version__",
    "compare_runs",
    "evaluate",
    "load_model",
]

_MODULES = {
    "FERClassifier": "fer_lightning.training.module",
    "FERDataModule": "fer_lightning.data.datamodule",
    "Prediction": "fer_lightning.inference.predictor",
    "Predictor": "fer_lightning.inference.predictor",
    "compare_runs": "fer_lightning.comparison.write",
    "evaluate": "fer_lightning.inference.evaluate",
    "load_model": "fer_lightning.inference.load",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("fer-lightning")
        except PackageNotFoundError:  # a source tree that was never installed
            value = "0+unknown"
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
