"""The recognizer: a backbone that embeds whitened faces on the unit sphere."""

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
from sparface.text import printable

FACENET = "inception_resnet_v1"
_RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
_PUBLISHED = {
    "vggface2": _RELEASE + "20180402-114759-vggface2.pt",
    "casia-webface": _RELEASE + "20180408-102900-casia-webface.pt",
}


@dataclass
class RecognizerConfig:
    """The network that embeds faces."""

    backbone: str = "inception_resnet_v1"
    """`inception_resnet_v1` (FaceNet) or `timm:NAME` for a backbone of timm."""
    embedding: int = number(512, above=0, most=65536)
    """Size of the embedding."""
    pretrained: str = ""
    """Empty (from scratch), `vggface2`, `casia-webface`, or a weights file (.safetensors or .pt)."""


class Recognizer(nn.Module):
    """Faces [B,3,H,W] in [0,1] or uint8 → embeddings [B,E] of length 1, at least float32."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor, whitened: bool = False) -> Tensor:
        """`whitened`: the faces are already (`synthesize_whitened` has done it)."""
        features = self.backbone(x if whitened else whiten(x, input_dtype(x)))
        return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile` the backbone; whitening has kernels of its own."""
        self.backbone.compile(*args, **kwargs)

    def plain_state(self) -> dict[str, Tensor]:
        """The backbone's weights in its own layout (an InceptionResnetV1 loads them), BatchNorm unsplit."""
        return plain_state(self.backbone.state_dict())


class IdentityHead(nn.Module):
    """One unit direction per training identity: embeddings [B,E] → cosines [B, identities], float32."""

    def __init__(self, embedding: int, identities: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(identities, embedding))
        nn.init.normal_(self.weight, std=embedding**-0.5)

    def forward(self, embeddings: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.linear(embeddings, F.normalize(self.weight, dim=1))


def build_recognizer(config: RecognizerConfig) -> Recognizer:
    """The recognizer that a config asks for, with its pretrained weights.

    Raises `UserError` for an unknown backbone, a missing package, a wrong embedding size or weights
    that cannot be had, read or fitted.
    """
    if config.backbone == FACENET:
        backbone = _facenet(config.embedding)
    elif config.backbone.startswith("timm:"):
        backbone = _timm(config.backbone.removeprefix("timm:"), config.embedding)
    else:
        raise UserError(
            f"recognizer.backbone: {config.backbone} is not known; "
            f"use {FACENET} or timm:NAME, for example timm:resnet18"
        )
    if config.pretrained:
        _load(backbone, _weights(config), config.pretrained)
    return Recognizer(backbone)


def _facenet(embedding: int) -> nn.Module:
    if embedding != 512:
        raise UserError(f"recognizer.embedding: {embedding}, but {FACENET} has 512; set it to 512")
    # no dropout: its masks would depend on the number of processes, and a step could not be repeated
    network: nn.Module = InceptionResnetV1(pretrained=None, dropout_prob=0)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True  # no backward looks at what goes into it
    return network


def _timm(name: str, embedding: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise UserError(f"recognizer.backbone: timm:{name} needs timm; run `pip install timm`") from None
    if name not in (known := timm.list_models()):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean timm:{close[0]}?)" if close else ""
        raise UserError(f"recognizer.backbone: timm has no model {name}{hint}")
    backbone: nn.Module = timm.create_model(name, pretrained=False, num_classes=embedding)
    for module in backbone.modules():  # no dropout, as above
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
            f"recognizer.pretrained: {config.pretrained} could not be had ({error}); "
            f"download {url} elsewhere and give the file's path"
        ) from error


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(
            f"recognizer.pretrained: {file}: no such file; "
            f"give {', '.join(_PUBLISHED)}, or a .safetensors or .pt file"
        )
    try:
        state: Any = load_file(file) if file.suffix == ".safetensors" else _read_torch(file)
    except Exception as error:  # a reader may raise anything on hostile bytes
        # torch's own message advises to unpickle the file without care
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({printable(str(error))[:200]})"
        raise UserError(
            f"recognizer.pretrained: {file} is not a file of plain weights{reason}; save model.state_dict()"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"recognizer.pretrained: {file} holds no state dict; save model.state_dict()")
    return state


def _read_torch(file: Path) -> Any:
    """What torch.save wrote, without running any of it or unpacking more than the file's own size."""
    if not zipfile.is_zipfile(file):
        raise ValueError("not written by torch.save of torch 1.6 or newer")
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("has compressed parts, which torch.save does not write")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle's version, whatever is in it
        return torch.load(file, map_location="cpu", weights_only=True)


def _load(backbone: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load weights, leaving out FaceNet's own classifier (`logits`)."""
    own = backbone.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.startswith("logits.")}
    wrong = [
        f"{key} is {_shape(state, key)}, not {_shape(own, key)}"
        for key in {**own, **state}
        if _shape(state, key) != _shape(own, key) and not key.endswith("num_batches_tracked")
    ]
    if wrong:
        raise UserError(
            f"recognizer.pretrained: {name} does not fit the backbone: {wrong[0]} ({len(wrong)} such tensors)"
        )
    backbone.load_state_dict(state, strict=False)


def _shape(state: dict[str, Tensor], key: str) -> str:
    return str(tuple(state[key].shape)) if key in state else "missing"
