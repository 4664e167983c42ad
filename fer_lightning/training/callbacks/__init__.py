"""Lightning callbacks."""

from fer_lightning.training.callbacks.history import History
from fer_lightning.training.callbacks.last import LastCheckpoint
from fer_lightning.training.callbacks.progress import ProgressBar

__all__ = ["History", "LastCheckpoint", "ProgressBar"]
