"""Lightning callbacks."""

from fer_lightning.training.callbacks.averaging import EMA
from fer_lightning.training.callbacks.best import BestCheckpoint, PatientStopping
from fer_lightning.training.callbacks.history import History
from fer_lightning.training.callbacks.last import LastCheckpoint
from fer_lightning.training.callbacks.progress import ProgressBar, ProgressLine

__all__ = ["EMA", "BestCheckpoint", "History", "LastCheckpoint", "PatientStopping", "ProgressBar", "ProgressLine"]
