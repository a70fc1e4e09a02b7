"""Weights to start from: files in the layout that other programs write, and weights with names."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from sparface.errors import UserError
from sparface.forms import COUNT, fits, parsed
from sparface.models.batchnorm import plain_key
from sparface.text import printable

_RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
PUBLISHED = {
    "vggface2": _RELEASE + "20180402-114759-vggface2.pt",
    "casia-webface": _RELEASE + "20180408-102900-casia-webface.pt",
}
"""FaceNet's published weights by name."""
DRAWN = "drawn"
PACKAGED = {DRAWN: Path(__file__).parents[1] / "weights" / "drawn.safetensors"}
"""Weights in this package by name: of the backbone `small`, trained on drawn people alone."""


def read_weights_file(source: str) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors or .pt file, or the weights of that name (see `PUBLISHED` and
    `PACKAGED`).

    Nothing is unpickled. Raises `UserError` if the file is missing or holds anything but named tensors, or if
    the published weights cannot be downloaded.
    """
    if source in PUBLISHED:
        return _download(source)
    file = weights_path(source)
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; give a run folder, an ONNX file, a .safetensors or .pt file, "
            f"{', '.join(PUBLISHED)} or {DRAWN}"
        )
    try:
        state: Any = load_file(file) if file.suffix == ".safetensors" else _read_torch(file)
    except Exception as error:  # a reader may raise anything on hostile bytes
        # torch's message would recommend unsafe unpickling
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({printable(str(error))[:200]})"
        raise UserError(f"{file}: is not a file of plain weights{reason}; save model.state_dict()") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{file}: is not a state dict; save model.state_dict()")
    return state


def weights_path(source: str) -> Path:
    """Return the path of a weights file, or where the weights of that name are or are downloaded to."""
    if source not in PUBLISHED:
        return PACKAGED.get(source) or Path(source)
    return Path(torch.hub.get_dir()).parent / "checkpoints" / PUBLISHED[source].rpartition("/")[2]


def _download(name: str) -> dict[str, Tensor]:
    url, folder = PUBLISHED[name], weights_path(name).parent
    try:
        return torch.hub.load_state_dict_from_url(url, str(folder), map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(
            f"{name}: could not be downloaded ({error}); "
            f"download {url} yourself and give the path of the file"
        ) from error


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


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_into(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict into a network; both norms of a split BatchNorm get the weights of the plain one.

    Counters of batches may be missing. Raises `UserError` naming `source` and the first difference if names
    or shapes differ otherwise.
    """
    own = network.state_dict()
    found = {key: state.get(key, state.get(plain_key(key))) for key in own}
    unused = state.keys() - own.keys() - {plain_key(key) for key in own}
    pairs = [(key, found[key], own[key]) for key in own] + [(key, state[key], None) for key in sorted(unused)]
    wrong = [
        f"{key} is {_shape(there)}, not {_shape(here)}"
        for key, there, here in pairs
        if _shape(there) != _shape(here) and not key.endswith("num_batches_tracked")
    ]
    if wrong:
        raise UserError(
            f"{source}: does not match the networks of the config: {wrong[0]} ({len(wrong)} tensors differ); "
            "use the settings that it was trained with"
        )
    network.load_state_dict({key: value for key, value in found.items() if value is not None}, strict=False)


def weights_header(weights: Path) -> Mapping[str, str]:
    """The metadata in the header of a safetensors file; empty if there is none."""
    if weights.suffix != ".safetensors" or not weights.is_file():
        return {}
    try:
        with safe_open(weights, "pt") as file:
            return dict(file.metadata() or {})
    except Exception:  # a damaged file: loading the weights reports it
        return {}


def described(header: Mapping[str, str], role: str, form: Sequence[type]) -> tuple[list[Any], int] | None:
    """Return what `sparface export` wrote about the network of a role into a `weights_header`: values of the
    types in `form`, which determine its shapes, and the size of its faces. None if that is not there."""
    model, size = (parsed(header.get(key, "")) for key in ("model", "size"))
    values = model.get(role) if isinstance(model, dict) else None
    if isinstance(values, list) and [type(one) for one in values] == list(form) and fits(size, COUNT):
        return values, size
    return None


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))
