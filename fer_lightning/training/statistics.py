"""The statistics of batch norm: those by which it predicts, and those of the images on all GPUs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running means and variances of batch norm by their averages over batches, where there are any.

    In training they follow augmented images, whose statistics differ from those of the images that are predicted.
    `torch.optim.swa_utils.update_bn` does the same with all of the network in training mode; here the rest is not, so
    that dropout changes nothing and draws no random numbers.

    Args:
        network: in evaluation mode, in which it is left.
        batches: its inputs.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for k, batch in enumerate(batches if norms else (), start=1):
        for norm in norms:
            if k == 1:
                norm.reset_running_stats()
                norm.train()
            norm.momentum = 1 / k  # a plain average; None, which means that, reads a number from the device each time
        network.forward(batch)  # never compiled, see FERClassifier.forward
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


class SyncedBatchNorm(TorchSyncBatchNorm):
    """Batch norm over the images of all GPUs, for `trainer.sync_batchnorm`.

    PyTorch's conversion would lose the activations that timm's networks hold in their norms, and Lightning's way back
    gives norms of another class: here the original ones are kept, and put back.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        self._originals = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
        if not any(type(norm).__module__.startswith("timm.") for norm in self._originals.values()):
            return super().apply(model)
        from timm.layers import convert_sync_batchnorm

        converted: nn.Module = convert_sync_batchnorm(model)
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        for name, original in self._originals.items():
            synced = model.get_submodule(name)
            # Parameters are shared; buffers have been replaced when they were moved to the device.
            original._parameters.update(synced._parameters)
            original._buffers.update(synced._buffers)
            model.set_submodule(name, original.train(synced.training))
        return model
