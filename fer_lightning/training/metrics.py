"""Images scored by all ranks."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Predictions(Metric):
    """Collects the row, the label and the logits of every scored image, whichever rank scored it."""

    full_state_update = False
    rows: list[Tensor]
    labels: list[Tensor]
    logits: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("rows", "labels", "logits"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, rows: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Add a batch: rows (B,), labels (B,), logits (B, C)."""
        self.rows.append(rows)
        self.labels.append(labels)
        self.logits.append(logits.float())

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, ascending, int64 (N,), their labels, int64 (N,), and logits, float32 (N, C), all on the CPU."""
        rows, order = dim_zero_cat(self.rows).cpu().sort()
        return rows, dim_zero_cat(self.labels).cpu()[order], dim_zero_cat(self.logits).cpu()[order]
