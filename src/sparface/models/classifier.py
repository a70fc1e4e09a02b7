"""A classifier of faces: one backbone of timm or several, joined before one last layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparface.errors import UserError
from sparface.models.timm_networks import build_timm
from sparface.models.weights import load_into, read_weights_file

IMAGENET = "imagenet"
"""In `training.start_from`: the weights that timm downloads."""
SEPARATOR = "+"
SUFFIXES = (".safetensors", ".pt", ".pth")
_LAST_LAYERS = ("classifier.", "head.", "fc.", "pre_logits.")
"""What weights for ImageNet have, and a backbone here has not."""


@dataclass
class ClassifierConfig:
    """The network that classifies faces."""

    backbone: str = "mobilenetv2_100"
    """Name of a timm model, or of several, separated by `+`, whose features are joined before one last layer:
    `densenet121+mobilenetv2_100+vgg19`."""


class Head(nn.Linear):
    """The last layer: features [B,F] → logits [B,C].

    Loading the weights of another number of classes changes its size: this number is a property of the
    training set, so a network that is built from settings alone does not know it.
    """

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        classes = len(weight) if isinstance(weight, Tensor) and weight.dim() == 2 else self.out_features
        if classes != self.out_features:  # otherwise, an optimizer may hold the tensors
            self.out_features = classes
            self.weight = nn.Parameter(self.weight.new_empty(classes, self.in_features))
            self.bias = nn.Parameter(self.weight.new_empty(classes))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Backbone(nn.Module):
    """Maps faces [B,3,H,W] in [0,1] to features [B,F], normalised as timm's weights for ImageNet expect."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = without_last_layers(build_timm(name, "classifier.backbone", outputs=0))
        expected: Any = self.network.pretrained_cfg
        for key in ("mean", "std"):
            values = torch.tensor(expected[key], dtype=torch.get_default_dtype())
            self.register_buffer(key, values.view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network((x - self.mean) / self.std)
        return features


class Classifier(nn.Module):
    """Maps faces [B,3,H,W] in [0,1] to logits [B,C], at least float32."""

    def __init__(self, names: Sequence[str], size: int, classes: int) -> None:
        """Build it, untrained, for faces of `size` pixels. Raises `UserError` for an unknown backbone, or one
        that cannot take such faces."""
        super().__init__()
        self.backbones = nn.ModuleList(Backbone(name) for name in names)
        widths = [_width(backbone, name, size) for backbone, name in zip(self.backbones, names, strict=True)]
        self.head = Head(sum(widths), classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([backbone(x) for backbone in self.backbones], 1))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def backbones(config: ClassifierConfig) -> list[str]:
    """The names of the backbones."""
    return config.backbone.split(SEPARATOR)


def build_classifier(config: ClassifierConfig, size: int, classes: int = 1) -> Classifier:
    """Build an untrained classifier, whose number of classes may also be decided by loading weights."""
    return Classifier(backbones(config), size, classes)


def imagenet_weights(config: ClassifierConfig, source: str) -> dict[str, Tensor]:
    """Read weights for ImageNet as the state dict of a `Classifier` without its head.

    `source` is `imagenet` (timm's download), the file of the only backbone, or a folder with a file
    NAME.safetensors, NAME.pt or NAME.pth for each one, in timm's layout. Nothing is unpickled. Raises
    `UserError` if something is missing or does not fit.
    """
    found: dict[str, Tensor] = {}
    names = backbones(config)
    for number, name in enumerate(names):
        if source == IMAGENET:
            state = _download(name)
        else:
            state = _of_file(name, _file(name, Path(source), alone=len(names) == 1))
        found |= {f"backbones.{number}.network.{key}": value for key, value in state.items()}
    return found


def without_last_layers(network: nn.Module) -> nn.Module:
    """Remove the wide layers before VGG's last one: made for faces of 224 pixels, they are 120 of its 140
    million parameters. Its features are then averaged over the picture, as those of newer networks are."""
    if type(network).__name__ == "VGG":
        network.pre_logits = nn.Identity()
    return network


def _width(backbone: nn.Module, name: str, size: int) -> int:
    """The number of features, as measured: timm's attributes mean different things for different networks."""
    modes = [(module, module.training) for module in backbone.modules()]
    try:
        with torch.no_grad():
            return int(backbone.eval()(torch.zeros(1, 3, size, size)).shape[1])
    except (AssertionError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"classifier.backbone: {name} does not take faces of {size} pixels ({reason}); use another"
        ) from None
    finally:
        for module, training in modes:
            module.training = training


def _file(name: str, source: Path, *, alone: bool) -> Path:
    if source.is_dir():
        files = [source / f"{name}{suffix}" for suffix in SUFFIXES]
        if not (found := [file for file in files if file.is_file()]):
            raise UserError(f"{files[0]}: no such file; put the weights of each backbone of timm there")
        return found[0]
    if not alone:
        raise UserError(
            f"training.start_from: {source} is not allowed with several backbones; give a folder with a file "
            f"NAME.safetensors for each, or {IMAGENET}"
        )
    return source


def _of_file(name: str, file: Path) -> dict[str, Tensor]:
    """Read a file of one backbone's weights for ImageNet, and check it."""
    given = read_weights_file(str(file))
    state = {key: value for key, value in given.items() if not key.startswith(_LAST_LAYERS)}
    network = Backbone(name).network
    load_into(network, state, str(file))
    return dict(network.state_dict())


def _download(name: str) -> dict[str, Tensor]:
    """Let timm download weights, or find them in its cache. It reads them without unpickling."""
    try:
        network = build_timm(name, "classifier.backbone", outputs=0, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # whatever the network, the hub or a damaged file raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"training.start_from: the weights of {name} could not be downloaded ({reason}); download them "
            "elsewhere, and give the file, or its folder"
        ) from None
    return dict(without_last_layers(network).state_dict())
