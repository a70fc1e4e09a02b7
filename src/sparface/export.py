"""A run's networks as files for others: safetensors, and ONNX for recognizers. Nothing is pickled."""

from __future__ import annotations

import hashlib
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
from sparface.recipes import Role
from sparface.runs import tracking
from sparface.runs.lineage import Checkpoint
from sparface.runs.servable import for_pictures
from sparface.runs.trained import Trained, open_run

OPSET = 18
ONNX: dict[Role, str] = {"recognizer": "embeddings", "classifier": "logits"}
"""Roles whose networks are written as ONNX, too, and what their output is called."""


class Exported(NamedTuple):
    files: list[Path]
    model: str | None
    """Address of the recognizer in MLflow; None when the run is not tracked, or MLflow can't take it now."""


def export(run: Path, out: Path, *, register: str = "") -> Exported:
    """Write the newest checkpoint of a run into the new folder `out`.

    - `NETWORK.safetensors` of each network that has a role when it is trained. A recognizer's are the
      backbone's in its own layout (facenet-pytorch's InceptionResnetV1 or timm load them); it wants
      whitened faces. A generator's are those of `sparface.models.sae.SAE`
    - `NETWORK.onnx` of a recognizer: faces float32 [N, 3, size, size] in [0, 1], RGB → `embeddings` [N, E]
      of length 1, any N; whitening is inside. Of a classifier: `logits` [N, C]
    - `config.yaml`: the run's

    Weight averages are used where the run keeps them. `out` appears whole or not at all.

    The recognizer of a tracked run becomes a model in MLflow (see `servable.write_servable`): a new version
    of the registered model `register`, if given. Where MLflow can't take it now, it waits in the run's folder
    for `sparface sync`.

    Raises UserError: not a run, no checkpoint, `out` is not empty, ONNX is not installed, MLflow can't
    register the model (`out` is there then).
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; give a new folder")
    needed = ("onnx", "onnxscript", "onnxruntime")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UserError(f"export: needs {' and '.join(missing)}; run pip install 'sparface[onnx]'")
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
    for role, made in trained.recipe.finished.items():
        network = trained.network(role)
        _save(made.exported(network), folder / f"{made.network}.safetensors", about)
        if role in ONNX:
            export_onnx(network, trained.config.size, folder / f"{made.network}.onnx", ONNX[role])
    shutil.copyfile(trained.run / "config.yaml", folder / "config.yaml")


def export_onnx(network: nn.Module, size: int, path: Path, output: str = "embeddings") -> None:
    """Write a network in eval mode that takes `faces` as one ONNX file."""
    example = torch.rand(2, 3, size, size)
    batch = {0: torch.export.Dim("batch", min=1)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own internals
        program = torch.onnx.export(
            network, (example,), input_names=["faces"], output_names=[output],
            dynamic_shapes=(batch,), opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(path, external_data=False)


def _save(state: dict[str, Tensor], path: Path, about: dict[str, str]) -> None:
    # not its save_file, which hides what the system said about a full disk
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in state.items()}, about))


def _about(trained: Trained) -> dict[str, str]:
    """What the files say about themselves in their header."""
    return {
        "sparface": sparface.__version__,
        "recipe": trained.config.recipe,
        "model": json.dumps(trained.recipe.identity(trained.config)),
        "size": str(trained.config.size),
        "images_seen": str(trained.images_seen),
        "averaged": str(trained.averaged).lower(),
        "checkpoint": trained.checkpoint.name,
        "checkpoint_digest": hashlib.sha256((trained.checkpoint / "state.json").read_bytes()).hexdigest(),
    }
