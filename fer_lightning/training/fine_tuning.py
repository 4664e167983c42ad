"""Training that starts from a checkpoint: a frozen backbone and a new head.

`imbalance=two_stage` is the classifier re-training (cRT) of Kang et al. 2020, arXiv:1910.09217, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

BACKBONE = "network.backbone."
"""Prefix of the backbone's parameters and buffers in a FERClassifier's state dict."""


def with_backbone_of(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A FERClassifier's state dict `state` with the backbone of another one."""
    return {name: other[name] if name.startswith(BACKBONE) else tensor for name, tensor in state.items()}


def next_stage(
    last: Mapping[str, Any], weights: Mapping[str, Tensor], keep_callbacks: tuple[str, ...]
) -> dict[str, Any]:
    """A checkpoint that `Trainer.fit` continues from with new weights, a new optimizer and a new schedule.

    Epochs and steps continue to count, so that metrics.csv and loggers continue after the first stage.

    Args:
        last: the last checkpoint of the stage before.
        weights: state dict to start with.
        keep_callbacks: state keys of the callbacks that keep their state; best scores and averages start again.
    """
    # No optimizer's and no schedule's state: Lightning then leaves the new ones as they are.
    dropped = ("current_model_state", "averaging_state", "training_sums")
    others = {name: value for name, value in last.items() if name not in dropped}
    callbacks = {name: state for name, state in last["callbacks"].items() if name in keep_callbacks}
    return others | {
        "state_dict": dict(weights), "optimizer_states": [], "lr_schedulers": [], "callbacks": callbacks
    }  # fmt: skip
