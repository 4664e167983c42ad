"""Preprocessing, backbone and head together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fer_lightning.config import instantiate
from fer_lightning.errors import UserError
from fer_lightning.models.heads import CosineHead
from fer_lightning.models.network import FaceNetwork
from fer_lightning.models.preprocessing import Preprocessing

RESNET = {"_target_": "fer_lightning.models.resnet.ResNet", "depth": 18, "width": 8}


class Mean(nn.Module):
    """Features are the means of the channels."""

    num_features = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_preprocessing_normalises_resizes_and_repeats_channels() -> None:
    images = torch.rand(2, 1, 48, 48)
    out = Preprocessing(channels=3, size=64, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))(images)
    assert out.shape == (2, 3, 64, 64)
    resized = nn.functional.interpolate(images, (64, 64), mode="bilinear", align_corners=False)[:, 0]
    for channel, (mean, std) in enumerate(((0.5, 0.1), (0.4, 0.2), (0.3, 0.4))):
        torch.testing.assert_close(out[:, channel], (resized - mean) / std)


def test_windows_are_resized_by_the_same_factor_as_whole_faces() -> None:
    preprocessing = Preprocessing(size=96, mean=(0.0,), std=(1.0,))
    images = torch.rand(2, 1, 48, 48)
    window = preprocessing(images[:, :, 4:44, 2:42])
    assert window.shape == (2, 1, 80, 80)
    torch.testing.assert_close(window[:, :, 1:-1, 1:-1], preprocessing(images)[:, :, 9:87, 5:83])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"size": 0}, "size must be null"),
        ({"mean": [0.1, 0.2]}, "mean must hold 1 or 1 numbers"),
        ({"std": [0.0]}, "std must be positive"),
        ({"colour": True}, "colour"),
    ],
)
def test_bad_preprocessing_is_refused_with_its_key(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        instantiate.network(RESNET | {"preprocessing": settings}, 7)


def test_backbone_gets_the_channels_of_its_preprocessing() -> None:
    network = instantiate.network(RESNET | {"preprocessing": {"channels": 3}}, 7)
    assert network.backbone.conv1.in_channels == 3  # type: ignore[union-attr]
    assert network(torch.rand(2, 1, 48, 48)).shape == (2, 7)


def test_cosine_head_replaces_the_linear_one() -> None:
    network = instantiate.network(RESNET, 7, cosine_scale=20.0)
    assert isinstance(network.head, CosineHead)
    images = torch.rand(4, 1, 48, 48)
    features = network.eval().backbone(network.preprocessing(images))
    cosines = nn.functional.cosine_similarity(features[:, None], network.head.weight, dim=-1)
    torch.testing.assert_close(network(images), 20 * cosines)


@pytest.mark.parametrize("scale", [None, 20.0])
def test_logits_are_not_rounded_in_mixed_precision(scale: float | None) -> None:
    network = instantiate.network(RESNET, 7, cosine_scale=scale).eval()
    images = torch.rand(16, 1, 48, 48)
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = network.backbone(network.preprocessing(images)), network(images)
    assert features.dtype == torch.bfloat16 and logits.dtype == torch.float32
    torch.testing.assert_close(logits, network.head(features.float()))


def test_a_backbone_without_a_number_of_features_is_refused() -> None:
    with pytest.raises(ValueError, match="num_features"):
        FaceNetwork(nn.Flatten(), 7)


def test_dropout_acts_before_the_head_in_training_only() -> None:
    torch.manual_seed(0)  # two draws may be the same by chance
    network = FaceNetwork(Mean(), 5, Preprocessing(channels=3), dropout=0.5)
    images = torch.rand(8, 1, 4, 4)
    network.eval()
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


def test_a_network_that_cannot_be_imported_is_named_with_a_remedy() -> None:
    message = r"model: no_such\.Net cannot be imported \(.*No module named 'no_such'.*PYTHONPATH"
    with pytest.raises(UserError, match=message):
        instantiate.network({"_target_": "no_such.Net"}, 7)
