"""Images scored in batches, in any order."""

from __future__ import annotations

import torch

from fer_lightning.training.metrics import Predictions


def test_predictions_are_returned_in_table_order() -> None:
    rows, labels, logits = torch.tensor([8, 0, 4, 2, 6, 1, 3, 5, 7]), torch.arange(9), torch.rand(9, 4)
    predictions = Predictions()
    for part in (slice(5), slice(5, 9)):
        predictions.update(rows[part], labels[part], logits[part])
    sorted_rows, sorted_labels, sorted_logits = predictions.compute()
    assert sorted_rows.tolist() == list(range(9))
    assert sorted_labels[4] == 2
    assert torch.equal(sorted_logits[4], logits[2])
