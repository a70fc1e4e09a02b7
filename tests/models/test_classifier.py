"""Classifiers of one backbone and of several: what they expect, weights for ImageNet, and broken files."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from sparface.errors import UserError
from sparface.models.classifier import (
    ClassifierConfig,
    build_classifier,
    imagenet_weights,
    without_last_layers,
)
from sparface.models.timm_networks import build_timm
from traps import Trap

ONE, TWO = ClassifierConfig("test_resnet"), ClassifierConfig("test_resnet+test_efficientnet")


def test_faces_are_normalised_for_each_backbone_and_features_joined() -> None:
    made = build_classifier(TWO, 32, 5).eval()
    x = torch.rand(2, 3, 32, 32)
    features = []
    for name, backbone in zip(("test_resnet", "test_efficientnet"), made.backbones, strict=True):
        alone = timm.create_model(name, num_classes=0).eval()
        alone.load_state_dict(backbone.network.state_dict())
        mean, std = (torch.tensor(alone.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        features.append(alone((x - mean) / std))
    expected = torch.cat(features, 1) @ made.head.weight.T + made.head.bias
    assert torch.allclose(made(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "parameters"),
    [(["mobilenetv2_100"], 2_223_872), (["densenet121", "mobilenetv2_100", "vgg19"], 29_202_112)],
)
def test_the_size_of_the_published_networks(names: list[str], parameters: int) -> None:
    """Without the last layer; VGG without its wide layers."""
    with torch.device("meta"):
        networks = [without_last_layers(build_timm(name, "key", 0)) for name in names]
    assert sum(p.numel() for network in networks for p in network.parameters()) == parameters


def test_loading_decides_the_number_of_classes() -> None:
    trained, other = build_classifier(ONE, 32, 7).eval(), build_classifier(ONE, 32).eval()
    other.load_state_dict(trained.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(other(x), trained(x)) and other(x).shape == (2, 7)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "folder"])
def test_weights_for_imagenet_from_files(kind: str, tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet", num_classes=10)
    file = tmp_path / ("test_resnet.pt" if kind == "pt" else "test_resnet.safetensors")
    (torch.save if kind == "pt" else save_file)(whole.state_dict(), file)
    found = imagenet_weights(ONE, str(tmp_path if kind == "folder" else file))
    made = build_classifier(ONE, 32, 7)
    made.load_state_dict(found | {f"head.{k}": v for k, v in made.head.state_dict().items()})
    own = made.backbones[0].network.state_dict()
    assert own and all(torch.equal(value, whole.state_dict()[key]) for key, value in own.items())


def test_files_that_do_not_fit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "other.safetensors")
    torch.save({"weight": Trap(Path("unpickled"))}, tmp_path / "evil.pt")
    for config, source, message in (
        (ONE, "other.safetensors", "other.safetensors: does not match"),
        (ONE, "evil.pt", "evil.pt: is not a file of plain weights"),
        (ONE, "nowhere.pt", "nowhere.pt: no such file"),
        (ONE, str(tmp_path), "test_resnet.safetensors: no such file; put the weights of each backbone"),
        (TWO, "other.safetensors", "not allowed with several backbones; give a folder"),
    ):
        with pytest.raises(UserError, match=message):
            imagenet_weights(config, source)
    assert not Path("unpickled").exists()


def test_without_a_network_the_download_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="the weights of test_resnet could not be downloaded") as error:
        imagenet_weights(ONE, "imagenet")
    assert "\n" not in str(error.value)


def test_backbones_that_cannot_be_used_are_named() -> None:
    for name, message in (
        ("mobilenet_v2_100", "classifier.backbone: timm has no model mobilenet_v2_100"),
        ("", "classifier.backbone: timm has no model"),
        (
            "vit_tiny_patch16_224",
            "vit_tiny_patch16_224 does not take faces of 32 pixels",
        ),
    ):
        with pytest.raises(UserError, match=message):
            build_classifier(ClassifierConfig(name), 32, 3)
