"""The ONNX file in a run's folder that its recognizer is built from (`recognizer.backbone: onnx`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sparface.config import Config
from sparface.errors import UserError
from sparface.files import inside, read_bounded, write_whole
from sparface.models.onnx_network import LARGEST
from sparface.models.recognizer import ONNX, RecognizerConfig

NAME = "start.onnx"


def buildable(config: Config, run: Path | None = None) -> Config:
    """Return the config to build networks from: with an ONNX backbone, `training.start_from` is the file.

    That is the copy in `run`, as the original may be gone; without `run`, the file that is configured, or the
    copy in the run that is. Raises `UserError` if there is no copy.
    """
    if not _needed(config):
        return config
    start = Path(config.training.start_from)
    if (folder := run or (start if start.is_dir() else None)) is None:
        return config
    if not (folder / NAME).is_file():
        raise UserError(
            f"{folder}: has no {NAME}; set recognizer.backbone to the one that it was trained with"
        )
    return replace(config, training=replace(config.training, start_from=str(inside(folder, NAME))))


def keep(config: Config, run: Path) -> None:
    """Copy the ONNX file of a `buildable` config, if any, to the run's folder, unless it is the copy."""
    file = Path(config.training.start_from)
    if _needed(config) and file.resolve() != (run / NAME).resolve():
        write_whole(run / NAME, read_bounded(file, LARGEST))


def _needed(config: Config) -> bool:
    recognizer = config.find(RecognizerConfig)  # a recipe of others may have none
    return recognizer is not None and recognizer.backbone == ONNX
