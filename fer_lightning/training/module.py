"""The LightningModule: network, loss, optimizer and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fer_lightning.config import instantiate
from fer_lightning.data.loader import Batch
from fer_lightning.data.seeding import stream_seed
from fer_lightning.distributed import ranks
from fer_lightning.errors import UserError
from fer_lightning.metrics.scores import scores
from fer_lightning.models.heads import adjusted, log_prior
from fer_lightning.runs.results import sums_of
from fer_lightning.training.distillation import Distillation
from fer_lightning.training.losses import LDAM, ClassLoss
from fer_lightning.training.metrics import Predictions
from fer_lightning.training.optim import parameter_groups
from fer_lightning.training.statistics import estimate_statistics

COMPILED_SIZES = 16
"""Limit on the image sizes (`augment.first_side`) that a network is compiled for; torch's default is 8."""

SUMS = torch.float32 if torch.backends.mps.is_available() else torch.float64  # Apple GPUs have no float64


class FERClassifier(L.LightningModule):
    """A network for faces, and how it is trained.

    All arguments are plain values, so that a checkpoint holds nothing but tensors and plain values.

    Args:
        classes: class names in label order.
        class_counts: training images per class.
        model: config node of the network, see `fer_lightning.config.instantiate.network`.
        loss: config node of the loss; `class_counts` is added.
        optimizer: config node of the optimizer, its parameters left open.
        schedule: config node of the schedule, see `fer_lightning.training.optim`.
        monitor: `metric` and `mode` (min or max) of the plateau schedule.
        head_scale: scale of a cosine head; None for a linear head.
        posthoc_tau: τ of the post-hoc logit adjustment (Menon et al. 2021, arXiv:2007.07314, equation 9): predictions
            are made from logits minus τ times the log of the class's share of the training images. Training does not
            use it.
        first_epoch: the first epoch of this fit, counted from 0; the schedule begins there.
        weighted_from: the first epoch in which the loss weights classes.
        first_scored_epoch: the first epoch whose score counts for the best checkpoint and early stopping.
        head_only: freeze the backbone and train the head.
        layer_decay: the learning rate of each layer, as a multiple of that of the layer after it.
        backbone_lr_factor: multiplies the learning rates of all layers but the head.
        channels_last: ask for the channels-last memory layout, see `fer_lightning.models.layout`.
        seed: of what the network draws in training, such as dropout.

    Attributes:
        distillation: teachers to learn from as well; None for none.
        unaugmented: gives the images from which the statistics of batch norm are estimated before each validation of
            the training; None if they stay as they are.
        compile_mode: of `torch.compile`, for training only; None to leave the network uncompiled.

    Raises:
        UserError: the network, the loss or the head is invalid.
    """

    log_prior: Tensor

    def __init__(
        self,
        classes: Sequence[str],
        class_counts: Sequence[int],
        model: Mapping[str, Any],
        loss: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        schedule: Mapping[str, Any],
        monitor: Mapping[str, str],
        head_scale: float | None = None,
        posthoc_tau: float = 0.0,
        first_epoch: int = 0,
        weighted_from: int = 0,
        first_scored_epoch: int = 0,
        head_only: bool = False,
        layer_decay: float = 1.0,
        backbone_lr_factor: float = 1.0,
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # loggers get the whole config
        self.classes = list(classes)
        self.first_scored_epoch = first_scored_epoch
        self.network = instantiate.network(model, len(self.classes), head_scale)
        self.loss = instantiate.node("imbalance.loss", loss, class_counts=list(class_counts))
        if isinstance(self.loss, LDAM) and self.loss.scale != head_scale:
            raise UserError(
                f"imbalance.loss.scale={self.loss.scale} needs imbalance.head.scale={self.loss.scale}, not "
                f"{head_scale}: LDAM's margins are margins of cosines"
            )
        if head_only:
            self.network.backbone.requires_grad_(False)
        self.register_buffer("log_prior", log_prior(class_counts), persistent=False)
        self.distillation: Distillation | None = None
        self.unaugmented: Callable[[], Iterable[Tensor]] | None = None
        self.compile_mode: str | None = None
        self.predictions = Predictions()
        self._sums = torch.zeros(3, dtype=SUMS)  # of this rank's epoch so far: loss, hits, images
        self._monitored: float | None = None  # the monitored metric, if the epoch has been validated
        # 0, or the 1-based step of the first loss that was not finite; a tensor, so that no step waits for the device.
        self._bad_step = torch.tensor(0)

    def __getstate__(self) -> dict[str, Any]:
        # Of copies, such as the average of the weights: else the data and the teachers would be copied as well.
        return super().__getstate__() | {"unaugmented": None, "distillation": None}

    def setup(self, stage: str) -> None:
        device, channels_last = self.trainer.strategy.root_device, self.hparams["channels_last"]
        self.network.arrange(device, channels_last)
        if self.distillation is not None:
            self.distillation.to(device, channels_last)
        if self.compile_mode is not None and stage == "fit":
            torch._dynamo.config.recompile_limit = COMPILED_SIZES
            self.network.compile(mode=self.compile_mode, dynamic=False)  # in place: names in checkpoints stay

    def forward(self, images: Tensor) -> Tensor:
        """Faces (B, 1, H, W), float in [0, 1], to logits (B, C) to train on."""
        if self.training or self.compile_mode is None:
            return self.network(images)  # type: ignore[no-any-return]
        # Never compiled: validation is short, and its last batch has another size, for which it would take a minute.
        return self.network.forward(images)

    def predict_logits(self, images: Tensor) -> Tensor:
        """Faces (B, 1, H, W), float in [0, 1], to logits (B, C) to predict by."""
        return adjusted(self(images), self.log_prior, self.hparams["posthoc_tau"])

    def on_train_epoch_start(self) -> None:
        self._sums.zero_()
        self._monitored = None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Whatever the network draws follows from the position in training, not from what was drawn before: a resumed
        # run draws the same.
        torch.manual_seed(stream_seed("network", self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank))
        if self.hparams["head_only"]:
            self.network.backbone.eval()  # the statistics of its norms are frozen as well
        if isinstance(self.loss, ClassLoss):
            self.loss.in_force = self.current_epoch >= self.hparams["weighted_from"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self(batch.images)
        targets = batch.labels if batch.targets is None else batch.targets
        loss: Tensor = self.loss(logits, targets)
        if self.distillation is not None:
            predicted = adjusted(logits, self.log_prior, self.hparams["posthoc_tau"])  # as those of teachers are
            loss = self.distillation(loss, predicted, batch.images)
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        value, n = loss.detach(), len(labels)
        first_bad = (self._bad_step.to(self.device) == 0) & ~value.isfinite()
        self._bad_step = torch.where(first_bad, self.global_step + 1, self._bad_step)
        hits = (logits.detach().argmax(1) == labels).sum()
        self._sums = self._sums.to(self.device) + torch.stack([value * n, hits, torch.full_like(hits, n)])
        share = self._window(batch_idx)
        return loss if share == 1 else loss / share

    def _window(self, batch_idx: int) -> float:
        """The batches whose gradients are summed with this one's, as a share of `accumulate_grad_batches`, by which
        Lightning divides every loss, although there are fewer of them before the last step of an epoch."""
        if self._trainer is None:
            return 1.0
        accumulated, batches = self.trainer.accumulate_grad_batches, int(self.trainer.num_training_batches)
        left = batches % accumulated
        return left / accumulated if left and batch_idx >= batches - left else 1.0

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        trainer = self.trainer
        every, accumulated = trainer.log_every_n_steps, trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        is_due = (batch_idx + 1) % accumulated == 0 and trainer.global_step % every == 0  # when Lightning writes it
        if is_due or trainer.is_last_batch:
            self.stop_on_bad_loss()
            loss = outputs["loss"] * accumulated * self._window(batch_idx)  # by which it was divided
            self.log("train/loss_step", loss, batch_size=len(batch.labels), prog_bar=True)

    def stop_on_bad_loss(self) -> None:
        """Raises UserError if a loss since the start was not a finite number."""
        step = int(self._bad_step)
        if step:
            raise UserError(
                f"the loss is not a finite number at step {step} (epoch {self.current_epoch}, counted from 0): lower "
                "optimizer.lr, lengthen the warm-up, set trainer.gradient_clip_val=1, or use precision=fp32"
            )

    def training_scores(self) -> dict[str, float]:
        """Loss and accuracy over the epoch's images so far, on all ranks; every rank must call this."""
        loss, hits, images = ranks.gathered(self._sums).sum(0).tolist()
        return {"train/loss": loss / max(images, 1), "train/accuracy": hits / max(images, 1)}

    @property
    def is_validated(self) -> bool:
        """Whether the epoch has been validated."""
        return self._monitored is not None

    def on_train_epoch_end(self) -> None:
        self.stop_on_bad_loss()  # `trainer.max_steps` and `max_time` end an epoch at any batch
        self.log_dict(self.training_scores())
        # Here, not where Lightning does it, which is after the checkpoint of this epoch has been written without it.
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau) and self._monitored is not None:
            scheduler.step(self._monitored)

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["training_sums"] = ranks.gathered(self._sums)
        checkpoint["monitored"] = self._monitored

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._monitored = checkpoint.get("monitored")
        callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        averages = any(isinstance(callback, WeightAveraging) for callback in callbacks)
        if self.trainer.state.fn == TrainerFn.FITTING and "current_model_state" in checkpoint and not averages:
            checkpoint["state_dict"] = checkpoint["current_model_state"]  # the optimizer's state belongs to these
        sums = checkpoint.get("training_sums")
        if sums is None:  # the first checkpoint of a stage
            return
        if len(sums) == ranks.world():
            self._sums = sums[self.global_rank].to(SUMS)  # which may have been saved on another kind of device
        else:  # resumed on another number of devices
            self._sums = (sums.sum(0) * (self.global_rank == 0)).to(SUMS)

    def on_validation_epoch_start(self) -> None:
        """Estimate the statistics of batch norm from images that are not augmented, and take those of rank 0, which
        are the ones that checkpoints hold. By now an average of the weights has been swapped in."""
        if self.unaugmented is not None:
            with self.trainer.precision_plugin.forward_context():
                estimate_statistics(self.network, self.unaugmented())
        if ranks.world() > 1:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)
        self.predictions.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Only collects: all scores come from `predictions`, so that any subset of the images can be scored."""
        if len(batch.rows):
            logits = self.predict_logits(batch.images)
        else:  # a rank may have run out of images before the others
            logits = torch.empty(0, len(self.classes), device=self.device)
        self.predictions.update(batch.rows, batch.labels, logits)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        _, labels, logits = self.predictions.compute()
        values = {f"val/{n}": value for n, value in scores(sums_of(logits, labels.numpy()), self.classes).items()}
        self._monitored = values.get(self.hparams["monitor"]["metric"])
        in_progress_bar = {name: values.pop(name) for name in ("val/accuracy", "val/f1_macro")}
        self.log_dict(in_progress_bar, prog_bar=True)
        self.log_dict(values)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients by norm or by value.

        Lightning refuses to for a fused optimizer in any mixed precision, though only fp16 scales its gradients.
        """
        if not gradient_clip_val or self.trainer.precision != "bf16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The groups of parameters that the optimizer gets.

        Raises:
            UserError: layers should have rates of their own, and there is no rate to start from, or the layers of the
                network are not known.
        """
        hparams, node = self.hparams, self.hparams["optimizer"]
        try:
            return parameter_groups(
                self.network,
                node.get("weight_decay", 0.0),
                node.get("lr"),
                hparams["layer_decay"],
                hparams["backbone_lr_factor"],
                mark_head=str(node["_target_"]).endswith(".Muon"),
            )
        except ValueError as error:
            raise UserError(f"model: {error}") from error

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hparams = self.hparams
        optimizer = instantiate.call("optimizer", hparams["optimizer"], self.parameter_groups())
        steps = int(self.trainer.estimated_stepping_batches)
        if first := hparams["first_epoch"]:  # less those of an earlier stage
            steps = round(steps * (1 - first / self.trainer.max_epochs))
        mode = hparams["monitor"]["mode"]
        schedule = instantiate.call("schedule", hparams["schedule"], optimizer, steps, mode)
        if not (isinstance(schedule, tuple) and len(schedule) == 2 and schedule[1] in ("step", "epoch")):
            raise UserError(
                f"schedule: {hparams['schedule']['_target_']} does not return a pair of a scheduler and 'step' or "
                "'epoch', as the functions of fer_lightning.training.optim do: choose one of the group's options, or "
                "wrap it in such a function"
            )
        scheduler, interval = schedule
        return {
            "optimizer": optimizer,
            # `on_train_epoch_end` steps the plateau schedule; Lightning only wants a metric that is always there.
            "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": "train/loss"},
        }
