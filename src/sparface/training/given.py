"""The recognizer that a recipe uses but does not train, and the copy of it that a run keeps."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save

from sparface.errors import UserError
from sparface.evaluation.embed import Mirrored
from sparface.evaluation.recognizers import Opened, open_recognizer
from sparface.files import inside, read_bounded, write_whole
from sparface.models.onnx_network import LARGEST
from sparface.models.recognizer import ONNX
from sparface.recipes import Recipe
from sparface.recipes.base import RECOGNIZER
from sparface.recipes.recognizer import FINISHED_RECOGNIZER

NAME = "given"
"""Name of the copy in the run's folder, without its suffix."""
SUFFIXES = (".safetensors", ".onnx")


def give_recognizer(recipe: Recipe, run: Path | None) -> Opened | None:
    """Give a recipe the recognizer that it uses, if any: its copy in `run`, or for a new run (None) the one
    that is configured. Raises `UserError` if it cannot be used."""
    source = recipe.uses_recognizer(recipe.config)
    if not source:
        return None
    opened = open_recognizer(Path(source) if run is None else _copy(run), gradients=True)
    if opened.form is not None and opened.form.backbone == ONNX:
        raise UserError(f"{source}: was trained from an ONNX file; give an ONNX file or another recognizer")
    if opened.size not in (None, recipe.config.size):
        raise UserError(
            f"size: {recipe.config.size} is not allowed; {source} takes faces of {opened.size} pixels"
        )
    recipe.frozen[RECOGNIZER] = opened.network.eval().requires_grad_(False)
    return opened


def keep_recognizer(opened: Opened | None, run: Path) -> None:
    """Write the copy, unless `opened` is None or the copy itself, in a form that `open_recognizer` opens."""
    if opened is None or opened.source.resolve().parent == run.resolve():
        return
    for suffix in SUFFIXES:  # of an attempt that was given another one
        (run / f"{NAME}{suffix}").unlink(missing_ok=True)
    if opened.form is None:
        write_whole(run / f"{NAME}.onnx", read_bounded(opened.source, LARGEST))
        return
    network = opened.network.recognizer if isinstance(opened.network, Mirrored) else opened.network
    about = {
        "model": json.dumps({"recognizer": [opened.form.backbone, opened.form.embedding]}),
        "size": str(opened.size),
        "mirror": str(isinstance(opened.network, Mirrored)).lower(),
    }
    state = {
        name: tensor.contiguous().cpu() for name, tensor in FINISHED_RECOGNIZER.exported(network).items()
    }
    write_whole(run / f"{NAME}.safetensors", save(state, about))


def _copy(run: Path) -> Path:
    found = [run / f"{NAME}{suffix}" for suffix in SUFFIXES]
    for path in found:
        if path.is_file():
            return inside(run, path.name)
    raise UserError(f"{found[0]}: is missing; copy it back, or train in a new folder")
