"""The LightningModule: network, loss, optimizer and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from fer_lightning import build
from fer_lightning.data.loader import Batch
from fer_lightning.errors import UserError
from fer_lightning.model.metrics import ClassificationScores, Predictions
from fer_lightning.model.optim import parameter_groups

MEAN, STD = 0.5077, 0.2551
"""Grey level of FER-2013's training pixels, as fractions of the full range."""


class FERClassifier(L.LightningModule):
    """Faces to logits, and how to learn it.

    All arguments are plain values, so that a checkpoint holds nothing but tensors and plain values, and
    `FERClassifier.load_from_checkpoint` needs no other file.

    Args:
        classes: class names in label order.
        class_counts: images per class of what is trained on.
        model: config node of the network; `num_classes` is added.
        loss: config node of the loss; `class_counts` is added.
        optimizer: config node of the optimizer, its parameters left open.
        schedule: config node of the schedule, see `fer_lightning.model.optim`.
        monitor: `metric` and `mode` (min or max) that checkpoints, early stopping and plateau schedule go by.
        channels_last: memory layout of the network's tensors; the faster one for convolutions in mixed precision.
    """

    def __init__(
        self,
        classes: Sequence[str],
        class_counts: Sequence[int],
        model: Mapping[str, Any],
        loss: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        schedule: Mapping[str, Any],
        monitor: Mapping[str, str],
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # loggers get the whole config
        self.classes = list(classes)
        self.network = build.network(model, len(self.classes))
        self.loss = build.loss(loss, class_counts)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.val_scores = ClassificationScores(classes)
        self.predictions = Predictions()
        # 0, or the 1-based step of the first loss that was not finite: found without waiting for the device each step.
        self.register_buffer("bad_step", torch.zeros((), dtype=torch.long), persistent=False)

    bad_step: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Faces (B, 1, H, W), float in [0, 1], to logits (B, C)."""
        images = ((images - MEAN) / STD).contiguous(memory_format=self.memory_format)
        return self.network(images)  # type: ignore[no-any-return]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self(batch.images)
        loss: Tensor = self.loss(logits, batch.labels)
        first_bad = (self.bad_step == 0) & ~loss.detach().isfinite()
        self.bad_step = torch.where(first_bad, self.global_step + 1, self.bad_step)
        accuracy = (logits.detach().argmax(1) == batch.labels).float().mean()
        means = {"train/loss": loss.detach(), "train/accuracy": accuracy}
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % every == 0 or self.trainer.is_last_batch:
            self._stop_on_bad_loss()
            self.log("train/loss_step", outputs["loss"], batch_size=len(batch.labels), prog_bar=True)

    def _stop_on_bad_loss(self) -> None:
        step = int(self.bad_step)
        if step:
            raise UserError(
                f"the loss is not a finite number at step {step} (epoch {self.current_epoch}, counted from 0): lower "
                "optimizer.lr, lengthen the warm-up, set trainer.gradient_clip_val=1, or use precision=fp32"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.val_scores.update(self(batch.images), batch.labels)

    def on_validation_epoch_end(self) -> None:
        values = {f"val/{name}": value for name, value in self.val_scores.compute().items()}
        self.val_scores.reset()
        shown = {name: values.pop(name) for name in ("val/accuracy", "val/f1_macro")}
        self.log_dict(shown, prog_bar=True)
        self.log_dict(values)

    def on_test_epoch_start(self) -> None:
        self.predictions.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Only collects: all test scores come from `predictions`, so that any subset of them can be scored."""
        self.predictions.update(batch.rows, self(batch.images))

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm over all gradients.

        Lightning refuses to for a fused optimizer in any mixed precision, though only fp16 scales its gradients.
        """
        if gradient_clip_val and self.trainer.precision == "bf16-mixed":
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hparams = self.hparams
        groups = parameter_groups(self.network, hparams["optimizer"].get("weight_decay", 0.0))
        optimizer = build.optimizer(hparams["optimizer"], groups)
        mode, metric = hparams["monitor"]["mode"], hparams["monitor"]["metric"]
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler, interval = build.schedule(hparams["schedule"], optimizer, steps, mode)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": metric},
        }
