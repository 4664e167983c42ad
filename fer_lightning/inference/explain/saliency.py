"""Grad-CAM: where in a face a network finds the evidence for a class (Selvaraju et al. 2017, arXiv:1610.02391)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from fer_lightning.errors import UserError
from fer_lightning.models.network import FaceNetwork

BATCH = 64
"""Images per pass: unlike predicting, a pass for gradients keeps what it computes."""

Maps = dict[str, NDArray[np.float32]]
"""By title of a layer the maps of N faces, float32 (N, H, W)."""


def layers_of(network: FaceNetwork) -> dict[str, nn.Module]:
    """By title the layers that the network's backbone names for saliency in `saliency_layers`; empty if it has none."""
    names: dict[str, str] = getattr(network.backbone, "saliency_layers", {})
    return {title: network.backbone.get_submodule(name) for title, name in names.items()}


def grad_cam(
    network: FaceNetwork, layer: nn.Module, faces: NDArray[np.uint8], classes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Equations 1 and 2 for the logit of a class: the layer's channels, weighted by their mean gradients, above zero.

    Args:
        network: in evaluation mode.
        layer: of the network; its output is (B, K, h, w).
        faces: uint8 (N, H, W).
        classes: int64 (N,), the class to explain in each face.

    Returns:
        float32 (N, H, W), 0 or more; maps of h × w are interpolated bilinearly.

    Raises:
        UserError: captum is not installed.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise UserError("captum is not installed: pip install 'fer-lightning[explain]'") from None
    device = next(network.parameters()).device
    method, parts = LayerGradCam(network, layer), [np.empty((0, *faces.shape[1:]), np.float32)]
    for start in range(0, len(faces), BATCH):
        inputs = torch.from_numpy(np.array(faces[start : start + BATCH]))[:, None].to(device).float().div_(255)
        targets = torch.from_numpy(classes[start : start + BATCH]).to(device)
        with torch.enable_grad():
            coarse = method.attribute(inputs.requires_grad_(), targets, relu_attributions=True)
        maps = F.interpolate(coarse.detach().float(), faces.shape[1:], mode="bilinear", align_corners=False)
        parts.append(maps[:, 0].cpu().numpy())
    return np.concatenate(parts)


def saliency(networks: Sequence[FaceNetwork], faces: NDArray[np.uint8], classes: NDArray[np.int64]) -> Maps:
    """Grad-CAM of each layer that all networks name, with a maximum of 1, on average over the networks.

    A map without any evidence for its class is 0 everywhere.

    Args:
        networks: the members of an ensemble, in evaluation mode.
        faces: uint8 (N, H, W).
        classes: int64 (N,), the class to explain in each face.
    """
    layers = [layers_of(network) for network in networks]
    result: Maps = {}
    for title in (title for title in layers[0] if all(title in own for own in layers)):
        of_members = [
            scaled(grad_cam(network, own[title], faces, classes)) for network, own in zip(networks, layers, strict=True)
        ]
        result[title] = np.mean(of_members, axis=0)
    return result


def scaled(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps (N, H, W), each divided by its maximum; maps of zeros stay as they are."""
    highest = maps.max((1, 2), keepdims=True)
    divided: NDArray[np.float32] = np.divide(maps, highest, out=np.zeros_like(maps), where=highest > 0)
    return divided


def map_sizes(networks: Sequence[FaceNetwork], side: int) -> dict[str, str]:
    """By title of a layer the height and width of its output for faces of `side` pixels, of each size that occurs."""
    sizes: dict[str, list[str]] = {}
    for network in networks:
        for title, layer in layers_of(network).items():
            found: list[str] = []
            handle = layer.register_forward_hook(
                lambda _module, _inputs, output, found=found: found.append("×".join(map(str, output.shape[2:])))
            )
            try:
                with torch.inference_mode():
                    network(torch.zeros(1, 1, side, side, device=next(network.parameters()).device))
            finally:
                handle.remove()
            sizes.setdefault(title, []).extend(found)
    return {title: " and ".join(dict.fromkeys(found)) for title, found in sizes.items()}
