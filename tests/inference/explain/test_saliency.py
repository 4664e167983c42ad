"""Grad-CAM and its sanity test."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fer_lightning.errors import UserError
from fer_lightning.inference.explain.randomised import (
    ANOTHER,
    TRAINED,
    cascade,
    randomise,
    rank_correlations,
    sanity,
)
from fer_lightning.inference.explain.saliency import grad_cam, layers_of, map_sizes, saliency, scaled
from fer_lightning.inference.explain.write import networks_of
from fer_lightning.inference.predictor import LoadedModel, Member, NetworkMember
from fer_lightning.models.network import FaceNetwork
from fer_lightning.models.resnet import ResNet
from tests.inference.explain.networks import LowerLeft, NoLayers, TwoLayers, network

pytest.importorskip("captum", reason="the extra explain is not installed")


@pytest.fixture
def faces() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 48, 48), dtype=np.uint8)


CLASSES = np.array([0, 2, 1, 0, 2])


def by_hand(
    network: FaceNetwork, layer: nn.Module, faces: NDArray[np.uint8], classes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Grad-CAM with hooks, one face after another, enlarged by OpenCV."""
    result = []
    for face, label in zip(faces, classes, strict=True):
        outputs: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Tensor, into: list[Tensor] = outputs) -> Tensor:
            output.retain_grad()
            into.append(output)
            return output.clone()  # what follows may change it in place

        handle = layer.register_forward_hook(keep)
        network.zero_grad()
        network(torch.tensor(face / 255, dtype=torch.float32)[None, None])[0, label].backward()
        handle.remove()
        (output,) = outputs
        assert output.grad is not None
        weights = output.grad[0].double().mean((1, 2)).numpy()
        coarse = np.maximum(np.einsum("k,khw->hw", weights, output[0].detach().double().numpy()), 0)
        result.append(cv2.resize(coarse, (48, 48), interpolation=cv2.INTER_LINEAR))
    return np.stack(result)


@pytest.mark.parametrize("backbone", [TwoLayers(), ResNet(18, width=8, stem="small"), ResNet(50, width=8)])
def test_grad_cam_equals_that_computed_by_hand(backbone: nn.Module, faces: NDArray[np.uint8]) -> None:
    explained = network(backbone)
    for layer in layers_of(explained).values():
        expected = by_hand(explained, layer, faces, CLASSES)
        found = grad_cam(explained, layer, faces, CLASSES)
        assert found.dtype == np.float32
        assert expected.max() > 0
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def test_map_of_a_network_that_sees_one_corner_is_highest_there(faces: NDArray[np.uint8]) -> None:
    explained = network(LowerLeft())
    maps = saliency([explained], faces, np.zeros(5, dtype=np.int64))["Only"]
    for of_face in maps:
        y, x = np.unravel_index(of_face.argmax(), of_face.shape)
        assert y >= 36 and x < 12
    assert (maps[:, :33] == 0).all() and (maps[:, :, 15:] == 0).all()  # beyond what interpolation smears
    np.testing.assert_allclose(maps.max((1, 2)), 1)


def test_maps_of_an_ensemble_are_the_mean_of_those_of_its_members(faces: NDArray[np.uint8]) -> None:
    first, second = network(TwoLayers()), network(TwoLayers(), seed=1)
    with torch.no_grad():
        second.head.weight *= 100  # a member of large logits must not drown the others
    together = saliency([first, second], faces, CLASSES)
    for title, maps in together.items():
        alone = [saliency([one], faces, CLASSES)[title] for one in (first, second)]
        assert np.abs(alone[0] - alone[1]).max() > 0.1
        np.testing.assert_allclose(maps, (alone[0] + alone[1]) / 2, atol=1e-6)


def test_map_without_evidence_stays_zero() -> None:
    maps = np.zeros((2, 4, 4), np.float32)
    maps[1, 2, 3] = 4
    assert (scaled(maps) == maps / 4).all()


def test_explaining_changes_neither_weights_nor_predictions(faces: NDArray[np.uint8]) -> None:
    explained = network(ResNet(18, width=8))
    member = NetworkMember(explained, [1, 1, 1])
    before, state = member.logits(torch.from_numpy(faces)), {k: v.clone() for k, v in explained.state_dict().items()}
    sanity([explained], faces, CLASSES, saliency([explained], faces, CLASSES))
    assert all(torch.equal(state[name], value) for name, value in explained.state_dict().items())
    assert torch.equal(member.logits(torch.from_numpy(faces)), before)


def test_size_of_maps_is_that_of_the_layers() -> None:
    explained = network(ResNet(18, width=8, stem="small"))
    assert map_sizes([explained], 48) == {"Stage 3": "12×12", "Stage 4": "6×6"}
    assert map_sizes([explained, network(ResNet(18, width=8))], 48)["Stage 4"] == "6×6 and 2×2"


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a = rng.random((4, 6, 6)).astype(np.float32)
    b = a + rng.random((4, 6, 6)).astype(np.float32)
    a[0, :3], b[3] = 0, 7  # ties, and a constant map
    found = rank_correlations(a, b)
    expected = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a[:3], b[:3], strict=True)]
    np.testing.assert_allclose(found[:3], expected)
    assert np.isnan(found[3])
    np.testing.assert_allclose(rank_correlations(a, a), 1)


def test_parts_become_random_from_the_head_down() -> None:
    explained = network(TwoLayers())
    original, changed = dict(explained.named_parameters()), []
    for name, (copied,) in cascade([explained]):
        new = dict(copied.named_parameters())
        changed.append((name, {k for k, v in new.items() if k.endswith("weight") and not torch.equal(v, original[k])}))
    assert [name for name, _ in changed] == ["head", "later", "norm", "first"]
    assert changed[0][1] == {"head.weight"}
    assert changed[1][1] == {"head.weight", "backbone.later.0.weight"}
    assert changed[3][1] == {"head.weight", "backbone.later.0.weight", "backbone.first.weight"}  # a norm's are ones


def test_parameters_without_an_initialisation_are_shuffled() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.arange(12.0).view(3, 4))

    module = Token()
    torch.manual_seed(0)
    randomise(module)
    assert module.token.flatten().tolist() != list(range(12))
    assert sorted(module.token.flatten().tolist()) == list(range(12))


def test_random_weights_change_the_maps_the_same_way_each_time(faces: NDArray[np.uint8]) -> None:
    explained = network(ResNet(18, width=8, stem="small", zero_init_last=False))
    trained = saliency([explained], faces, CLASSES)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    table, steps = sanity([explained], faces, CLASSES, trained)
    assert torch.equal(torch.rand(1), expected)  # the caller's random numbers are left alone
    assert list(steps) == [TRAINED, "head", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1"]
    assert list(dict.fromkeys(table["randomised"])) == [ANOTHER, *list(steps)[1:]]
    last = table[table["randomised"] == "conv1"].set_index("layer")
    for title in trained:
        assert np.abs(steps["conv1"][title] - trained[title]).mean() > 0.05
        assert not last["correlation"][title] > 0.6
    again, _ = sanity([explained], faces, CLASSES, trained)
    np.testing.assert_array_equal(again.to_numpy()[:, 2:].astype(float), table.to_numpy()[:, 2:].astype(float))


def test_maps_that_do_not_follow_the_weights_are_found_out(faces: NDArray[np.uint8]) -> None:
    explained = network(LowerLeft())  # the corner is no weight
    classes = np.zeros(5, dtype=np.int64)
    table, _ = sanity([explained], faces, classes, saliency([explained], faces, classes))
    known = table[table["randomised"] != ANOTHER].dropna()
    assert len(known)
    assert (known["correlation"] > 0.8).all()


class Graph:
    tta = "none"

    def logits(self, faces: Tensor) -> Tensor:
        return torch.zeros(len(faces), 3)


def loaded(member: Member, name: str) -> LoadedModel:
    return LoadedModel(Path(name), name, (member,), (), ("a", "b", "c"))


def of_network(backbone: nn.Module, name: str) -> LoadedModel:
    return loaded(NetworkMember(network(backbone), [1, 1, 1]), name)


def test_models_that_cannot_be_explained_are_refused_in_one_line() -> None:
    fine = of_network(TwoLayers(), "fine")
    assert len(networks_of([fine, fine])) == 2
    for models, message in (
        ([loaded(Graph(), "m.onnx")], "m.onnx: an ONNX graph has no gradients; name its run or .safetensors file"),
        ([of_network(NoLayers(), "none")], r"none: its network, NoLayers, names no layers for saliency"),
        ([fine, of_network(LowerLeft(), "other")], "other: its network, LowerLeft, names no layers that those of fine"),
    ):
        with pytest.raises(UserError, match=message) as error:
            networks_of(models)
        assert "\n" not in str(error.value)
