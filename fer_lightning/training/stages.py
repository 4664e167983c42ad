"""Training a network, then its classifier alone once more (cRT of Kang et al. 2020, arXiv:1910.09217, section 4.1)."""

from __future__ import annotations

import math

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from fer_lightning.errors import UserError


def check_network(network: nn.Module) -> None:
    """Raises UserError for a network whose classifier cannot be told from the rest."""
    if not all(hasattr(network, name) for name in ("forward_features", "forward_head", "fc")):
        raise UserError(
            f"imbalance.retrain_after: {type(network).__name__} needs forward_features, forward_head and fc, as "
            "fer_lightning.models.resnet.ResNet has them"
        )


def head_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Logits whose gradient reaches the classifier only; norms and all else of the network stay as they are."""
    network.eval()
    with torch.no_grad():
        features = network.forward_features(images)  # type: ignore[operator]
    network.train()  # the classifier's dropout
    return network.forward_head(features)  # type: ignore[operator,no-any-return]


def nothing_of_the_rest(network: nn.Module) -> Tensor:
    """Zero, with a gradient for every parameter but the classifier's: DDP waits for one of each."""
    return 0.0 * torch.stack([parameter.sum() for parameter in _rest(network)]).sum()


def forget_gradients_of_the_rest(network: nn.Module) -> None:
    """So that no optimizer decays or moves what is not trained."""
    for parameter in _rest(network):
        parameter.grad = None


def _rest(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in network.named_parameters() if not name.startswith("fc.")]


def hold_early_stopping(trainer: L.Trainer) -> None:
    """What comes before a change that is still to come does not end the training."""
    for callback in trainer.early_stopping_callbacks:
        assert isinstance(callback, EarlyStopping)
        callback.wait_count = -2  # an epoch adds 1; even a patience of 0 is not reached


def start_retraining(trainer: L.Trainer, network: nn.Module, seed: int) -> None:
    """Forget the classifier and what its optimizer knows."""
    fc: nn.Module = network.fc  # type: ignore[assignment]
    torch.manual_seed(seed)
    fc.reset_parameters()  # type: ignore[operator]
    for optimizer in trainer.optimizers:
        for parameter in fc.parameters():
            optimizer.state.pop(parameter, None)


def forget_scores(trainer: L.Trainer) -> None:
    """Forget every score so far: the best checkpoint is to be one of those that follow."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping):
            callback.wait_count, callback.best_score = 0, _worst(callback.mode)
        if isinstance(callback, ModelCheckpoint):
            callback.best_k_models, callback.best_model_score = {}, None
            callback.kth_best_model_path, callback.kth_value = "", _worst(callback.mode)
            callback.best_model_path = ""


def _worst(mode: str) -> Tensor:
    return torch.tensor(math.inf if mode == "min" else -math.inf)
