"""The LightningModule: network, loss, optimizer and metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fer_lightning.config import instantiate
from fer_lightning.data.loader import Batch, first_epoch
from fer_lightning.distributed import ranks
from fer_lightning.errors import UserError
from fer_lightning.models.layout import layout
from fer_lightning.training import stages
from fer_lightning.training.losses import LDAM, ClassLoss, log_prior
from fer_lightning.training.metrics import SUMS, ClassificationScores, Predictions
from fer_lightning.training.optim import parameter_groups

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
        schedule: config node of the schedule, see `fer_lightning.training.optim`.
        monitor: `metric` and `mode` (min or max) that checkpoints, early stopping and plateau schedule go by.
        head: `scale` of a cosine head, in place of a linear one.
        posthoc_tau: τ of the post-hoc logit adjustment (Menon et al. 2021, arXiv:2007.07314, equation 9): predictions
            are made from logits less τ times the log of the class's share of the training images. Training knows
            nothing of it.
        retrain_after: after this fraction of the epochs, train the classifier alone once more, see
            `fer_lightning.training.stages`.
        channels_last: ask for the channels-last memory layout, see `fer_lightning.models.layout`.
        seed: of what the network itself draws while it trains, such as dropout.
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
        head: Mapping[str, float] | None = None,
        posthoc_tau: float = 0.0,
        retrain_after: float | None = None,
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # loggers get the whole config
        self.classes = list(classes)
        scale = head["scale"] if head else None
        self.network = instantiate.network(model, len(self.classes), scale)
        self.loss = instantiate.loss(loss, class_counts)
        if isinstance(self.loss, LDAM) and self.loss.scale != scale:
            raise UserError(
                f"imbalance.loss.scale={self.loss.scale} needs imbalance.head.scale={self.loss.scale}, not {scale}: "
                "margins are of cosines"
            )
        if retrain_after is not None:
            stages.check_network(self.network)
        self.register_buffer("log_prior", log_prior(class_counts), persistent=False)
        self._memory_format = torch.contiguous_format  # until `setup` knows the device
        self.val_scores = ClassificationScores(classes)
        self.predictions = Predictions()
        self._sums = torch.zeros(3, dtype=SUMS)  # of this rank's epoch so far: loss, hits, images
        # 0, or the 1-based step of the first loss that was not finite: found without waiting for the device each step.
        self._bad_step = torch.tensor(0)

    def setup(self, stage: str) -> None:
        self._memory_format = layout(self.network, self.trainer.strategy.root_device, self.hparams["channels_last"])
        self.network.to(memory_format=self._memory_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Faces (B, 1, H, W), float in [0, 1], to logits (B, C) to train on."""
        return self.network(self._standardised(images))  # type: ignore[no-any-return]

    def predict_logits(self, images: Tensor) -> Tensor:
        """Faces (B, 1, H, W), float in [0, 1], to logits (B, C) to predict by."""
        logits: Tensor = self(images)
        tau = self.hparams["posthoc_tau"]
        return logits - tau * self.log_prior if tau else logits

    def _standardised(self, images: Tensor) -> Tensor:
        return ((images - MEAN) / STD).contiguous(memory_format=self._memory_format)

    @property
    def _retrain_from(self) -> float:
        """The epoch that starts to train the classifier alone."""
        after = self.hparams["retrain_after"]
        return math.inf if after is None else first_epoch(after, self.trainer.max_epochs or 1)

    @property
    def _last_change(self) -> int:
        """The epoch from which on all that was deferred is in force: before it, training must not stop early, and no
        checkpoint is the best."""
        hparams, sampler = self.hparams, getattr(getattr(self.trainer, "datamodule", None), "sampler", None)
        after = [hparams["retrain_after"], getattr(self.loss, "after", None), getattr(sampler, "after", None)]
        return first_epoch(max(a or 0.0 for a in after), self.trainer.max_epochs or 1)

    def on_train_epoch_start(self) -> None:
        self._sums.zero_()
        if self.current_epoch < self._last_change:
            stages.hold_early_stopping(self.trainer)
        if self.current_epoch == self._retrain_from:
            stages.start_retraining(self.trainer, self.network, seed=_seed_of(self.hparams["seed"], self.current_epoch))
        if self.current_epoch == self._last_change > 0:
            stages.forget_scores(self.trainer)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Whatever the network draws follows from where training is, not from what was drawn before: a run that is gone
        # on with draws the same.
        torch.manual_seed(_seed_of(self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank))
        if isinstance(self.loss, ClassLoss):
            self.loss.in_force = self.current_epoch >= first_epoch(self.loss.after, self.trainer.max_epochs or 1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        retraining = self.current_epoch >= self._retrain_from
        logits = (
            stages.head_logits(self.network, self._standardised(batch.images)) if retraining else self(batch.images)
        )
        targets = batch.labels if batch.targets is None else batch.targets
        loss: Tensor = self.loss(logits, targets)
        if retraining and ranks.world() > 1:
            loss = loss + stages.nothing_of_the_rest(self.network)
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        value, n = loss.detach(), len(labels)
        first_bad = (self._bad_step.to(self.device) == 0) & ~value.isfinite()
        self._bad_step = torch.where(first_bad, self.global_step + 1, self._bad_step)
        hits = (logits.detach().argmax(1) == labels).sum()
        self._sums = self._sums.to(self.device) + torch.stack([value * n, hits, torch.full_like(hits, n)])
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.current_epoch >= self._retrain_from:
            stages.forget_gradients_of_the_rest(self.network)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % every == 0 or self.trainer.is_last_batch:
            self.stop_on_bad_loss()
            self.log("train/loss_step", outputs["loss"], batch_size=len(batch.labels), prog_bar=True)

    def stop_on_bad_loss(self) -> None:
        """Raises UserError if a loss since the start was not a finite number."""
        step = int(self._bad_step)
        if step:
            raise UserError(
                f"the loss is not a finite number at step {step} (epoch {self.current_epoch}, counted from 0): lower "
                "optimizer.lr, lengthen the warm-up, set trainer.gradient_clip_val=1, or use precision=fp32"
            )

    def training_scores(self) -> dict[str, float]:
        """Loss and accuracy over the epoch's images so far, those of all ranks; every rank has to ask."""
        loss, hits, images = ranks.gathered(self._sums).sum(0).tolist()
        return {"train/loss": loss / max(images, 1), "train/accuracy": hits / max(images, 1)}

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.training_scores())
        # Here, not where Lightning does it, which is after the checkpoint of this epoch has been written without it.
        schedulers = self.lr_schedulers()
        if isinstance(schedulers, ReduceLROnPlateau):
            schedulers.step(self.trainer.callback_metrics[self.hparams["monitor"]["metric"]])

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["training_sums"] = ranks.gathered(self._sums)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums = checkpoint.get("training_sums")
        if sums is None:  # weights alone
            return
        if len(sums) == ranks.world():
            self._sums = sums[self.global_rank]
        else:  # gone on with on another number of devices
            self._sums = sums.sum(0) * (self.global_rank == 0)

    def on_validation_start(self) -> None:
        self._share_buffers()

    def on_test_start(self) -> None:
        self._share_buffers()

    def _share_buffers(self) -> None:
        """Take rank 0's running statistics: each rank's own are of its own images, and would score differently."""
        if ranks.world() > 1:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if len(batch.labels):  # a rank may have run out of images before the others
            self.val_scores.update(self.predict_logits(batch.images), batch.labels)

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
        if len(batch.rows):
            self.predictions.update(batch.rows, self.predict_logits(batch.images))
        else:  # a rank may have run out of images before the others
            self.predictions.update(batch.rows, torch.empty(0, len(self.classes), device=self.device))

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
        optimizer = instantiate.optimizer(hparams["optimizer"], groups)
        mode, metric = hparams["monitor"]["mode"], hparams["monitor"]["metric"]
        steps = int(self.trainer.estimated_stepping_batches)
        phases = [steps]
        if hparams["retrain_after"] is not None:
            first = round(steps * self._retrain_from / (self.trainer.max_epochs or 1))
            phases = [first, steps - first]
        scheduler, interval = instantiate.schedule(hparams["schedule"], optimizer, phases, mode)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": metric},
        }


def _seed_of(*place: int) -> int:
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
