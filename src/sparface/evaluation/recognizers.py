"""Open any recognizer for use: a run, an export, an ONNX file or a weights file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from sparface.config import check_numbers
from sparface.errors import UserError
from sparface.evaluation.embed import as_validated
from sparface.evaluation.purifiers import Cleaner, Purified, open_cleaner
from sparface.faces.templates import Template
from sparface.files import sha256
from sparface.models.onnx import OnnxRecognizer, centred, resized
from sparface.models.onnx_network import OnnxNetwork
from sparface.models.recognizer import FACENET, ONNX, Recognizer, RecognizerConfig, build_recognizer
from sparface.models.weights import (
    PACKAGED,
    described,
    load_into,
    read_weights_file,
    weights_digest,
    weights_header,
)
from sparface.recipes.recognizer import FINISHED_RECOGNIZER
from sparface.runs.trained import Trained, open_run
from sparface.shards.set import ShardSet


@dataclass(frozen=True)
class Opened:
    """A recognizer in evaluation mode, and what is known about the faces that it takes."""

    name: str
    """The name of the run's folder, or of the file."""
    network: nn.Module
    """Maps faces [N,3,H,W] in [0,1] to embeddings [N,E] of length 1."""
    digest: str
    """SHA-256 of the file, or of a run's weights."""
    size: int | None
    """Side of the faces in pixels; None if not known."""
    template: Template | None
    """Alignment template of its training faces; None if not known."""
    form: RecognizerConfig | None
    """What its network is built from; None for an ONNX file."""
    source: Path
    """The run, or the file."""
    trained: Trained | None = None
    """The run, if it is from one."""

    cleaner: Cleaner | None = None
    """What cleans the faces before the network sees them, which is then a `Purified`."""

    def require_size(self, shard_set: ShardSet) -> None:
        """Raise `UserError` unless the faces of a set have the size of a run's training faces, and of those
        of the cleaner."""
        if self.trained:
            shard_set.require_size(self.trained.config.size)
        if self.cleaner and self.cleaner.size:
            shard_set.require_size(self.cleaner.size)

    def purified(self, source: str) -> Opened:
        """The same behind what `open_cleaner` opens; `source` may be empty for nothing."""
        if not source:
            return self
        cleaner = open_cleaner(source, usable_device())
        return replace(self, network=Purified(self.network, cleaner), cleaner=cleaner)


def open_recognizer(source: Path, device: torch.device | None = None, *, gradients: bool = False) -> Opened:
    """Open a recognizer from a run folder, a folder written by `sparface export`, an ONNX file (which runs
    on the CPU), or a backbone's weights file (.safetensors, .pt).

    A file written by `sparface export` names its backbone; any other file is loaded as FaceNet
    (facenet-pytorch's InceptionResnetV1, whose faces have 160 pixels and the template `box`), as are the
    names `vggface2` and `casia-webface`. `drawn` is the small recognizer in this package. A run, and what is
    exported from it, embeds faces as the run's validations do (`validation.mirror`). With `gradients`, an
    ONNX file becomes a torch network.

    Raises `UserError` if `source` cannot be loaded.
    """
    device = device or torch.device("cpu")
    source = PACKAGED.get(str(source), source)
    if source.suffix == ".onnx":
        onnx = OnnxRecognizer(source)
        network = _as_torch(source, onnx.size).to(device) if gradients else onnx
        return Opened(source.name, network, sha256(source), onnx.size, None, None, source)
    if source.is_dir() and not (source / "recognizer.safetensors").is_file():
        return _of_run(open_run(source), device)
    path = source / "recognizer.safetensors" if source.is_dir() else source
    header = weights_header(path)
    template: Template | None = None
    if found := described(header, "recognizer", (str, int)):
        (backbone, embedding), size = found
        config = RecognizerConfig(backbone, embedding)
    else:  # not an exported file
        config, size, template = RecognizerConfig(FACENET, 512), 160, "box"
    if config.backbone == ONNX:  # its layers are only in the file beside it
        return open_recognizer(path.with_suffix(".onnx"), device, gradients=gradients)
    check_numbers(config, f"{path}: ")  # a file may claim any embedding size
    weights = read_weights_file(str(path))  # first: FaceNet takes seconds to build
    recognizer = build_recognizer(config)
    load_into(recognizer, FINISHED_RECOGNIZER.imported(weights), str(path))
    network = as_validated(recognizer.to(device).eval(), header.get("mirror") == "true")
    digest = weights_digest(network.state_dict())
    return Opened(path.name, network, digest, size, template, config, path)


def _as_torch(source: Path, size: int | None) -> nn.Module:
    if size is None:
        raise UserError(
            f"{source}: takes faces of any size, so it gives no gradients; use another recognizer"
        )
    return Recognizer(OnnxNetwork(source, size), lambda x: centred(resized(x, (size, size)))).eval()


def _of_run(trained: Trained, device: torch.device) -> Opened:
    network = as_validated(trained.network("recognizer", device), trained.config.validation.mirror)
    template = trained.facts.get("template")
    known: Template | None = template if template in ("arcface", "box") else None
    digest, config = weights_digest(network.state_dict()), trained.config
    form = config.find(RecognizerConfig)
    return Opened(trained.run.name, network, digest, config.size, known, form, trained.run, trained)


def usable_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
