"""Export a run's networks as safetensors, and recognizers and classifiers as ONNX too. Nothing is pickled."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

import sparface
from sparface.errors import UserError
from sparface.evaluation.embed import as_validated
from sparface.files import sha256
from sparface.models.onnx import EXPORTED_INPUT
from sparface.recipes import Role
from sparface.runs import tracking
from sparface.runs.lineage import Checkpoint
from sparface.runs.servable import for_pictures
from sparface.runs.trained import Trained, open_run

OPSET = 18
ONNX: dict[Role, str] = {"recognizer": "embeddings", "classifier": "logits"}
"""Roles whose networks are also written as ONNX, and the name of their output."""


class Exported(NamedTuple):
    files: list[Path]
    model: str | None
    """URI of the recognizer in MLflow; None if the run is not tracked or MLflow cannot be reached now."""


def export(run: Path, out: Path, *, register: str = "") -> Exported:
    """Export the newest checkpoint of a run to the new folder `out`.

    - `NETWORK.safetensors`: the weights of each network that has a role after training. Those of a
      recognizer are its backbone's, in the layout that facenet-pytorch's InceptionResnetV1 or timm loads;
      the backbone expects whitened faces. Those of a generator are for the classes in `sparface.models`.
    - `NETWORK.onnx`: for a recognizer, faces float32 [N, 3, size, size] in [0, 1], RGB → `embeddings` [N, E]
      of length 1, for any N, whitening and `validation.mirror` included; for a classifier, `logits` [N, C].
    - `config.yaml`: the run's configuration.

    Uses averaged weights if the run keeps them. `out` is written completely or not at all.

    The recognizer of a tracked run is also logged to MLflow as a model (see `servable.write_servable`), and
    registered as a new version of the model `register` if given. If MLflow cannot be reached, the model
    waits in the run's folder for `sparface sync`.

    Raises `UserError` if `run` is not a run or has no checkpoint, `out` is not empty, ONNX is not installed,
    or MLflow cannot register the model (`out` has been written then).
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists; give a new folder")
    needed = ("onnx", "onnxscript", "onnxruntime")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UserError(f"export: {' and '.join(missing)} not installed; run pip install 'sparface[onnx]'")
    trained = open_run(run)
    if register and not ("recognizer" in trained.recipe.finished and tracking.is_tracked(run)):
        raise UserError(f"{run}: has no recognizer in MLflow to register; leave out --register")
    part = out.with_name(f".{out.name}.writing")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _write(trained, part)
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Exported(sorted(out.iterdir()), _log(trained, out, register))


def _log(trained: Trained, out: Path, register: str) -> str | None:
    """Give MLflow the recognizer that was written to `out`, if there is one; its address there."""
    if "recognizer" not in trained.recipe.finished or not tracking.is_tracked(trained.run):
        return None
    network = (out / f"{trained.recipe.finished['recognizer'].network}.onnx").read_bytes()
    checkpoint = Checkpoint.at(trained.checkpoint)
    return tracking.log_recognizer(trained.run, checkpoint, for_pictures(network), register=register)


def _write(trained: Trained, folder: Path) -> None:
    about = _about(trained)
    for role, made in trained.recipe.roles(trained.config).items():
        network = trained.network(role)
        _save(made.exported(network), folder / f"{made.network}.safetensors", about)
        if role in ONNX:
            used = as_validated(network, role == "recognizer" and trained.config.validation.mirror)
            export_onnx(used, trained.config.size, folder / f"{made.network}.onnx", ONNX[role])
    shutil.copyfile(trained.run / "config.yaml", folder / "config.yaml")


def export_onnx(network: nn.Module, size: int, path: Path, output: str = "embeddings") -> None:
    """Write a network in eval mode as one ONNX file with the input `faces` [N, 3, size, size]."""
    example = torch.rand(2, 3, size, size)
    batch = {0: torch.export.Dim("batch", min=1)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own internals
        program = torch.onnx.export(
            network, (example,), input_names=[EXPORTED_INPUT], output_names=[output],
            dynamic_shapes=(batch,), opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(path, external_data=False)


def _save(state: dict[str, Tensor], path: Path, about: dict[str, str]) -> None:
    # safetensors' save_file hides the system's error when the disk is full
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in state.items()}, about))


def _about(trained: Trained) -> dict[str, str]:
    """Metadata for the header of the exported files."""
    return {
        "sparface": sparface.__version__,
        "recipe": trained.config.recipe,
        "model": json.dumps(trained.recipe.identity(trained.config)),
        "size": str(trained.config.size),
        "images_seen": str(trained.images_seen),
        "averaged": str(trained.averaged).lower(),
        "mirror": str(trained.config.validation.mirror).lower(),
        "checkpoint": trained.checkpoint.name,
        "checkpoint_digest": sha256(trained.checkpoint / "state.json"),
    }
