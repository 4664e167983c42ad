"""Strategies against the class imbalance: the objects of the config group `imbalance`, and their contradictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from fer_lightning.config import instantiate
from fer_lightning.data.transforms.mixing import Mix
from fer_lightning.data.transforms.resampling import ClassSampling, Resample
from fer_lightning.errors import UserError


class Stage(NamedTuple):
    """A part of the training that is one call of `Trainer.fit`.

    Attributes:
        first: its first epoch, counted from 0.
        end: the epoch after its last one; -1 where the number of epochs is not limited.
        head_only: the backbone is frozen and only the head is trained.
        new_head: it starts with the best backbone of the stage before and a new head; otherwise with the last weights,
            averaged ones if weights are averaged.
    """

    first: int
    end: int
    head_only: bool = False
    new_head: bool = False


@dataclass(frozen=True)
class Strategy:
    """One strategy: resampling, sampling, mixing, loss and head together.

    Fractions of the training, such as `retrain_after`, are of `max_epochs`.

    Attributes:
        name: the option of the group.
        resample: adds and drops training images, once.
        sampler: how often each training image is drawn in an epoch.
        mix: mixes the images of a batch.
        loss: config node of the loss, which is built once the class counts are known.
        head_scale: scale of a cosine head; None for a linear head.
        posthoc_tau: strength of the post-hoc logit adjustment.
        retrain_after: after this fraction of the epochs, a new head is trained on the frozen backbone.
    """

    name: str
    loss: Mapping[str, Any]
    resample: Resample | None = None
    sampler: ClassSampling | None = None
    mix: Mix | None = None
    head_scale: float | None = None
    posthoc_tau: float = 0.0
    retrain_after: float | None = None

    @classmethod
    def from_config(cls, node: Mapping[str, Any]) -> Self:
        """The strategy of a config group's node.

        Raises:
            UserError: a setting is out of its range.
        """
        head, retrain_after = node.get("head"), node.get("retrain_after")
        if head is not None and not (
            set(head) == {"scale"} and isinstance(head["scale"], int | float) and head["scale"] > 0
        ):
            raise UserError(f"imbalance.head={head}: use null, or {{scale: <positive number>}} for a cosine head")
        if retrain_after is not None and not 0 < retrain_after < 1:
            raise UserError(f"imbalance.retrain_after={retrain_after}: use null, or a fraction between 0 and 1")
        return cls(
            name=node["name"],
            loss=node["loss"],
            resample=instantiate.node("imbalance.resample", node.get("resample")),
            sampler=instantiate.node("imbalance.sampler", node.get("sampler")),
            mix=instantiate.node("imbalance.mix", node.get("mix")),
            head_scale=head["scale"] if head else None,
            posthoc_tau=node.get("posthoc_tau", 0.0),
            retrain_after=retrain_after,
        )

    def check(self, trainer: Mapping[str, Any], mixes: bool) -> None:
        """Check for settings that contradict the strategy.

        Args:
            trainer: the config group `trainer`.
            mixes: whether the config group `mix` mixes images.

        Raises:
            UserError: the first contradiction.
        """
        if mixes and self.mix:
            raise UserError(f"imbalance={self.name} and mix both mix images: use mix=none")
        if self.loss.get("after") and self.loss.get("weights", "none") is None:
            raise UserError(
                f"imbalance.loss.after={self.loss['after']} defers class weights, but there are none: set "
                "imbalance.loss.weights, or leave it out"
            )
        epochs, steps, every = trainer["max_epochs"], trainer["max_steps"], trainer["check_val_every_n_epoch"]
        deferred = {
            "imbalance.loss.after": self.loss.get("after"),
            "imbalance.sampler.after": self.sampler.after if self.sampler else None,
            "imbalance.retrain_after": self.retrain_after,
        }
        for key, after in deferred.items():
            if not after:
                continue
            if epochs < 1 or steps > 0:
                raise UserError(
                    f"{key}={after} is a fraction of trainer.max_epochs: set that, and remove trainer.max_steps"
                )
            first = epoch_at(after, epochs)
            if (epochs // every) * every <= first:
                raise UserError(
                    f"{key}={after} takes effect after epoch {first} of {epochs}, and with "
                    f"trainer.check_val_every_n_epoch={every} no validation follows to choose a checkpoint by: "
                    "use trainer.check_val_every_n_epoch=1, or a smaller fraction"
                )
        if self.retrain_after is not None and trainer["max_time"] is not None:
            raise UserError(
                f"trainer.max_time={trainer['max_time']} contradicts imbalance={self.name}, whose second stage starts "
                "after a fraction of the epochs: limit trainer.max_epochs instead"
            )
        if self.retrain_after is not None and epoch_at(self.retrain_after, epochs) == 0:
            raise UserError(
                f"imbalance.retrain_after={self.retrain_after} of trainer.max_epochs={epochs} leaves no epoch for the "
                "first stage: train for more epochs"
            )

    def stages(self, max_epochs: int, freeze_epochs: int = 0) -> list[Stage]:
        """The calls of `Trainer.fit` that train with this strategy, the first of them with a frozen backbone if
        `freeze_epochs` is not 0."""
        if self.retrain_after is not None:
            assert not freeze_epochs
            first = epoch_at(self.retrain_after, max_epochs)
            return [Stage(0, first), Stage(first, max_epochs, head_only=True, new_head=True)]
        if freeze_epochs:
            return [Stage(0, freeze_epochs, head_only=True), Stage(freeze_epochs, max_epochs)]
        return [Stage(0, max_epochs)]

    def sampled_from(self, max_epochs: int) -> int:
        """The first epoch in which the sampler is in force."""
        return epoch_at(self.sampler.after, max_epochs) if self.sampler else 0

    def weighted_from(self, max_epochs: int) -> int:
        """The first epoch in which the loss weights classes."""
        return epoch_at(self.loss.get("after") or 0.0, max_epochs)


def epoch_at(fraction: float, epochs: int) -> int:
    """The first epoch, counted from 0, that begins after this fraction of all epochs; at most the last one."""
    return next((epoch for epoch in range(epochs) if epoch / epochs >= fraction), max(epochs - 1, 0))
