"""Backbones of pytorch-image-models (timm), with its weights if wanted. Needs the extra `timm`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fer_lightning.errors import flat


class TimmBackbone(nn.Module):
    """A backbone: images (B, in_channels, H, W) to features (B, num_features).

    Args:
        name: of the network, as `timm.list_models()` has it.
        in_channels: 3 as in training on ImageNet, or 1.
        pretrained: True for timm's weights, or a file with weights of this network; used by `load_pretrained` only, so
            that a network which gets its weights from a checkpoint needs neither file nor download.
        drop_path: largest probability of skipping a block in training (Huang et al. 2016, arXiv:1603.09382).

    Attributes:
        num_features: of the network.
        preprocessing: size, mean and std of the images that its weights were trained on.

    Raises:
        ValueError: timm is not installed, or has no such network.
    """

    def __init__(self, name: str, in_channels: int = 3, pretrained: bool | str = False, drop_path: float = 0.0) -> None:
        super().__init__()
        timm = _timm()
        if not timm.is_model(name):  # names with a prefix, such as hf-hub:, would be downloaded
            near = ", ".join(difflib.get_close_matches(name, timm.list_models(), 4))
            but = f", but {near}" if near else ""
            raise ValueError(f"name: timm {timm.__version__} has no network {name!r}{but}")
        self.name, self.in_channels, self.pretrained = name, in_channels, pretrained
        options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        self._create = partial(timm.create_model, name, num_classes=0, in_chans=in_channels, **options)
        try:
            self.model = self._create()
        except TypeError as error:
            raise ValueError(f"drop_path={drop_path}: {name} does not take it ({error})") from error
        self.num_features = int(getattr(self.model, "head_hidden_size", self.model.num_features))
        config = self.model.pretrained_cfg
        colours = {name: list(config[name]) for name in ("mean", "std")}
        if in_channels == 1:
            colours = {name: [sum(values) / len(values)] for name, values in colours.items()}
        self.preprocessing = {"size": config["input_size"][-1], **colours}

    def check_side(self, side: int) -> None:
        """Raises ValueError if the network does not take images of so many pixels along a side, such as a transformer
        for another size."""
        try:
            with torch.device("meta"), torch.no_grad():
                self._create().eval()(torch.empty(1, self.in_channels, side, side))
        except NotImplementedError:  # an operator that cannot infer shapes without computing
            return
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(f"timm's {self.name} does not take images of {side} pixels ({flat(error)})") from error

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.model(x))

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter, from 0 at the input, as timm groups them for layer-wise learning rates.

        Raises:
            ValueError: timm does not group those of this network.
        """
        if not hasattr(self, "_layers"):
            from timm.models import group_parameters

            if not hasattr(self.model, "group_matcher"):
                raise ValueError(
                    f"timm does not group the layers of {self.name}, which finetune.layer_decay and "
                    "finetune.backbone_lr_factor need: leave them at 1"
                )
            matcher = self.model.group_matcher(coarse=False)
            self._layers = cast(dict[str, int], group_parameters(self.model, matcher, reverse=True))
        return self._layers[parameter.removeprefix("model.")]

    def load_pretrained(self) -> None:
        """Load the weights that `pretrained` names.

        Raises:
            ValueError: they are not there, or not those of this network.
        """
        if not self.pretrained:
            return
        complete = self._downloaded() if self.pretrained is True else self._read(Path(self.pretrained).expanduser())
        weights = complete.state_dict()
        self.model.load_state_dict({name: weights[name] for name in self.model.state_dict()})

    def _downloaded(self) -> nn.Module:
        config = self.model.pretrained_cfg
        source = f"https://huggingface.co/{config['hf_hub_id']}" if config.get("hf_hub_id") else config.get("url")
        if not source:
            raise ValueError(f"pretrained: timm has no weights of {self.name}; name a file with model.pretrained=PATH")
        try:
            return self._complete()
        except Exception as error:  # of whatever downloads: huggingface_hub, httpx, urllib
            raise ValueError(
                f"pretrained: downloading failed ({type(error).__name__}: {flat(error)[:80]}). Get model.safetensors "
                f"of {source} where there is a network, and name the file: model.pretrained=PATH"
            ) from error

    def _read(self, path: Path) -> nn.Module:
        from timm.models import load_state_dict

        if not path.is_file():
            raise ValueError(f"pretrained: {path}: no such file; name one with the weights of {self.name}")
        try:
            state = load_state_dict(str(path), weights_only=True)
            return self._complete(state_dict=self._named_as_here(state))
        except Exception as error:  # of pickle, zipfile, safetensors and load_state_dict
            raise ValueError(
                f"pretrained: {path}: not the weights of timm's {self.name} ({flat(error)[:120]})"
            ) from error

    def _complete(self, **overlay: Any) -> nn.Module:
        """The network with its weights, and with the classifier that these were trained with."""
        return cast(
            nn.Module,
            _timm().create_model(
                self.name, pretrained=True, in_chans=self.in_channels, pretrained_cfg_overlay=overlay or None
            ),
        )

    def _named_as_here(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of another implementation of the network, if they have the same shapes in the same order."""
        with torch.device("meta"):
            own = _timm().create_model(self.name).state_dict()
        shapes = [tuple(tensor.shape) for tensor in state.values()]
        if set(own) == set(state) or shapes != [tuple(tensor.shape) for tensor in own.values()]:
            return state
        return dict(zip(own, state.values(), strict=True))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm is not installed ({error}): pip install 'fer-lightning[timm]'") from error
    return timm
