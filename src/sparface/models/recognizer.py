"""The recognizer: a backbone that maps whitened faces to embeddings on the unit sphere."""

from __future__ import annotations

import difflib
import pickle
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from facenet_pytorch import InceptionResnetV1
from safetensors.torch import load_file
from torch import Tensor, nn

from sparface.config import number
from sparface.errors import UserError
from sparface.kernels.whiten import input_dtype, whiten
from sparface.models.batchnorm import plain_state
from sparface.models.dropout import Dropout
from sparface.models.small import SmallResNet
from sparface.text import printable

FACENET, SMALL = "inception_resnet_v1", "small"
LEAST_SIZE = {FACENET: 75, SMALL: 32}
"""Backbone → smallest faces that it takes, in pixels."""
_RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
_PUBLISHED = {
    "vggface2": _RELEASE + "20180402-114759-vggface2.pt",
    "casia-webface": _RELEASE + "20180408-102900-casia-webface.pt",
}


@dataclass
class RecognizerConfig:
    """The network that maps faces to embeddings."""

    backbone: str = "inception_resnet_v1"
    """`inception_resnet_v1` (FaceNet), `small` (a network for few images and faces of about 64 px), or
    `timm:NAME` for a timm model."""
    embedding: int = number(512, above=0, most=65536)
    """Dimension of the embedding; FaceNet's is 512."""
    pretrained: str = ""
    """Empty (train from scratch), `vggface2`, `casia-webface`, or a weights file (.safetensors or .pt)."""
    dropout: float = number(0.0, most=0.9)
    """Share of the features before the embedding that are zeroed in training; not for `timm:NAME`."""


class Recognizer(nn.Module):
    """Maps faces [B,3,H,W] in [0,1], or uint8, to embeddings [B,E] of unit length, at least float32."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor, whitened: bool = False) -> Tensor:
        """`whitened` says that the faces are already whitened (by `synthesize_whitened`)."""
        features = self.backbone(x if whitened else whiten(x, input_dtype(x)))
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


def build_recognizer(config: RecognizerConfig) -> Recognizer:
    """Build a recognizer from a config, with its pretrained weights if any.

    Raises `UserError` for an unknown backbone, a missing package, a wrong embedding size or dropout, or
    weights that cannot be downloaded or read or do not match the backbone.
    """
    backbone: nn.Module
    if config.backbone == FACENET:
        backbone = _facenet(config)
    elif config.backbone == SMALL:
        backbone = SmallResNet(config.embedding, config.dropout)
    elif config.backbone.startswith("timm:"):
        backbone = _timm(config)
    else:
        raise UserError(
            f"recognizer.backbone: {config.backbone} is not allowed; "
            f"use {FACENET}, {SMALL} or timm:NAME, for example timm:resnet18"
        )
    if config.pretrained:
        _load(backbone, _weights(config), config.pretrained)
    return Recognizer(backbone)


def _facenet(config: RecognizerConfig) -> nn.Module:
    if config.embedding != 512:
        raise UserError(f"recognizer.embedding: {config.embedding} is not allowed; must be 512 for {FACENET}")
    network = InceptionResnetV1(pretrained=None)
    # with torch's dropout, steps would depend on the number of processes
    network.dropout = Dropout(network.last_linear.in_features, config.dropout)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True  # no backward needs the input
    backbone: nn.Module = network
    return backbone


def _timm(config: RecognizerConfig) -> nn.Module:
    name = config.backbone.removeprefix("timm:")
    if config.dropout:
        raise UserError(f"recognizer.dropout: {config.dropout} is not allowed; must be 0 for timm:{name}")
    try:
        import timm
    except ImportError:
        raise UserError(f"recognizer.backbone: timm:{name} needs timm; run `pip install timm`") from None
    if name not in (known := timm.list_models()):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean timm:{close[0]}?)" if close else ""
        raise UserError(f"recognizer.backbone: timm has no model {name}{hint}")
    backbone: nn.Module = timm.create_model(name, pretrained=False, num_classes=config.embedding)
    for module in backbone.modules():  # no dropout: steps would depend on the number of processes
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif type(module).__name__ == "DropPath":
            module.drop_prob = 0.0  # type: ignore[assignment]
    return backbone


def _weights(config: RecognizerConfig) -> dict[str, Tensor]:
    if config.pretrained not in _PUBLISHED:
        return _read(Path(config.pretrained))
    if config.backbone != FACENET:
        raise UserError(f"recognizer.pretrained: {config.pretrained} is for {FACENET}, not {config.backbone}")
    from facenet_pytorch.models.inception_resnet_v1 import get_torch_home

    url = _PUBLISHED[config.pretrained]
    folder = Path(get_torch_home()) / "checkpoints"
    try:
        return torch.hub.load_state_dict_from_url(url, str(folder), map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(
            f"recognizer.pretrained: {config.pretrained} could not be downloaded ({error}); "
            f"download {url} yourself and give the path of the file"
        ) from error


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(
            f"recognizer.pretrained: {file}: no such file; "
            f"give {', '.join(_PUBLISHED)}, or the path of a .safetensors or .pt file"
        )
    try:
        state: Any = load_file(file) if file.suffix == ".safetensors" else _read_torch(file)
    except Exception as error:  # a reader may raise anything on hostile bytes
        # torch's message would recommend unsafe unpickling
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({printable(str(error))[:200]})"
        raise UserError(
            f"recognizer.pretrained: {file} is not a file of plain weights{reason}; save model.state_dict()"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"recognizer.pretrained: {file} is not a state dict; save model.state_dict()")
    return state


def _read_torch(file: Path) -> Any:
    """Load a `torch.save` file without executing code or decompressing anything."""
    if not zipfile.is_zipfile(file):
        raise ValueError("was not written by torch.save of torch 1.6 or newer")
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("has compressed parts, which torch.save does not write")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle version
        return torch.load(file, map_location="cpu", weights_only=True)


def _load(backbone: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load weights except for FaceNet's classifier (`logits`)."""
    own = backbone.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.startswith("logits.")}
    wrong = [
        f"{key} is {_shape(state, key)}, not {_shape(own, key)}"
        for key in {**own, **state}
        if _shape(state, key) != _shape(own, key) and not key.endswith("num_batches_tracked")
    ]
    if wrong:
        raise UserError(
            f"recognizer.pretrained: {name} does not match recognizer.backbone: {wrong[0]} "
            f"({len(wrong)} tensors differ); give weights of that backbone"
        )
    backbone.load_state_dict(state, strict=False)


def _shape(state: dict[str, Tensor], key: str) -> str:
    return str(tuple(state[key].shape)) if key in state else "missing"
