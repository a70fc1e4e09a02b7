"""The recognizer: a backbone that maps whitened faces to embeddings on the unit sphere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparface.config import number
from sparface.errors import UserError
from sparface.kernels.whiten import input_dtype, whiten
from sparface.models.batchnorm import plain_state
from sparface.models.dropout import Dropout
from sparface.models.onnx import centred
from sparface.models.onnx_network import OnnxNetwork
from sparface.models.small import SmallResNet
from sparface.models.timm_networks import build_timm

FACENET, SMALL, ONNX, TIMM = "inception_resnet_v1", "small", "onnx", "timm:"
LEAST_SIZE = {FACENET: 75, SMALL: 32}
"""Backbone → smallest faces that it takes, in pixels."""


@dataclass
class RecognizerConfig:
    """The network that maps faces to embeddings."""

    backbone: str = "inception_resnet_v1"
    """`inception_resnet_v1` (FaceNet), `small` (a network for few images and faces of about 64 px),
    `timm:NAME` for a timm model, or `onnx` for the network of the ONNX file in `training.start_from`, which
    takes faces in [-1, 1] instead of whitened ones."""
    embedding: int = number(512, above=0, most=65536)
    """Dimension of the embedding; FaceNet's is 512."""
    dropout: float = number(0.0, most=0.9)
    """Share of the features before the embedding that are zeroed in training; for FaceNet and `small`."""
    fixed_statistics: bool = False
    """BatchNorm normalises by its running statistics in training, too, and does not change them. For
    fine-tuning: the statistics of few or varied faces are worse than those of the start."""


def whitened(x: Tensor) -> Tensor:
    """Whiten faces [B,3,H,W] in [0,1], or uint8, each by its own mean and deviation."""
    return whiten(x, input_dtype(x))


class Recognizer(nn.Module):
    """Maps faces [B,3,H,W] in [0,1], or uint8, to embeddings [B,E] of unit length, at least float32.

    `prepare` maps faces to what the backbone takes: `whitened` or `centred`.
    """

    fixed_statistics = False
    """Whether BatchNorms stay in evaluation mode."""

    def __init__(self, backbone: nn.Module, prepare: Callable[[Tensor], Tensor] = whitened) -> None:
        super().__init__()
        self.backbone, self.prepare = backbone, prepare

    def train(self, mode: bool = True) -> Recognizer:
        super().train(mode)
        if self.fixed_statistics:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.training = False
        return self

    def forward(self, x: Tensor, whitened: bool = False) -> Tensor:
        """`whitened` says that the faces are already prepared (by `synthesize_whitened`, for example)."""
        features = self.backbone(x if whitened else self.prepare(x))
        return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the backbone with `torch.compile`; whitening has separate kernels."""
        self.backbone.compile(*args, **kwargs)

    def plain_state(self) -> dict[str, Tensor]:
        """The backbone's weights without split BatchNorm, loadable by the plain backbone."""
        return plain_state(self.backbone.state_dict())


class IdentityHead(nn.Module):
    """One unit vector per training identity: maps embeddings [B,E] to cosines [B, identities], float32."""

    def __init__(self, embedding: int, identities: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(identities, embedding))
        nn.init.normal_(self.weight, std=embedding**-0.5)

    def forward(self, embeddings: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.linear(embeddings, F.normalize(self.weight, dim=1))


def build_recognizer(config: RecognizerConfig, file: str = "", size: int = 112) -> Recognizer:
    """Build an untrained recognizer; with the backbone `onnx`, that of the ONNX `file`, for faces of `size`.

    Raises `UserError` for an unknown backbone, a missing package, a wrong embedding size or dropout, or a
    file that cannot be used.
    """
    check_backbone(config)
    prepare = centred if config.backbone == ONNX else whitened
    recognizer = Recognizer(_backbone(config, file, size), prepare)
    recognizer.fixed_statistics = config.fixed_statistics
    return recognizer.train()


def check_backbone(config: RecognizerConfig) -> None:
    """Raise `UserError` for a backbone that does not exist, or that does not have these settings."""
    name = config.backbone
    if name not in (FACENET, SMALL, ONNX) and not name.startswith(TIMM):
        raise UserError(
            f"recognizer.backbone: {name} is not allowed; "
            f"use {FACENET}, {SMALL}, {TIMM}NAME (for example {TIMM}resnet18) or {ONNX}"
        )
    if name == FACENET and config.embedding != 512:
        raise UserError(f"recognizer.embedding: {config.embedding} is not allowed; must be 512 for {FACENET}")
    if name.startswith(TIMM) and config.dropout:
        raise UserError(f"recognizer.dropout: {config.dropout} is not allowed; must be 0 for {name}")


def _backbone(config: RecognizerConfig, file: str, size: int) -> nn.Module:
    if config.backbone == FACENET:
        return _facenet(config)
    if config.backbone == SMALL:
        return SmallResNet(config.embedding, config.dropout)
    if config.backbone == ONNX:
        return _onnx(config, Path(file), size)
    name = config.backbone.removeprefix(TIMM)
    return build_timm(name, "recognizer.backbone", config.embedding, prefix=TIMM)


def _facenet(config: RecognizerConfig) -> nn.Module:
    from facenet_pytorch import InceptionResnetV1  # takes seconds: imports torchvision

    network = InceptionResnetV1(pretrained=None)
    # with torch's dropout, steps would depend on the number of processes
    network.dropout = Dropout(network.last_linear.in_features, config.dropout)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True  # no backward needs the input
    backbone: nn.Module = network
    return backbone


def _onnx(config: RecognizerConfig, file: Path, size: int) -> nn.Module:
    network = OnnxNetwork(file, size)
    for name, found, needed in (
        ("embedding", config.embedding, network.embedding),
        ("dropout", config.dropout, 0),
    ):
        if found != needed:
            raise UserError(f"recognizer.{name}: {found} is not allowed; must be {needed} for {file}")
    return network
