"""Run a recognizer from an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparface.errors import UserError
from sparface.kernels.whiten import input_dtype

EXPORTED_INPUT = "faces"
"""Name of the input in files written by `sparface export`."""


def centred(x: Tensor) -> Tensor:
    """Map faces [N,3,H,W] in [0,1], or uint8, to [-1,1], which published ONNX recognizers expect."""
    x = x.to(torch.get_default_dtype()) / 255 if x.dtype == torch.uint8 else x
    return (2 * x - 1).to(input_dtype(x), memory_format=torch.channels_last)


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize faces [N,3,H,W] to [N,3,*size] if they have another size."""
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)


class OnnxRecognizer(nn.Module):
    """Maps RGB faces, float32 [N,3,h,w] in [0,1], to embeddings [N,E] of unit length, on the CPU.

    Files written by `sparface export` take faces in [0, 1]; their input is named `faces`. Any other file
    is given faces in [-1, 1], (x - 127.5) / 127.5, as the published recognizers of insightface expect.
    Faces of another size than the model's are resized, and a model with a fixed batch of 1 embeds one
    face at a time.
    """

    def __init__(self, path: Path) -> None:
        """Load a model. Raises `UserError` if onnxruntime is missing or the file is not such a recognizer."""
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"{path}: needs onnxruntime; run `pip install 'sparface[onnx]'`") from None
        if not path.is_file():
            raise UserError(f"{path}: no such file; give an ONNX file or the folder of a run")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises many exception types, depending on the defect
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: cannot be read ({reason}); give a valid ONNX file") from None
        (self._input, *more) = self._session.get_inputs()
        shape = self._input.shape
        if more or len(shape) != 4 or shape[1] != 3:
            raise UserError(
                f"{path}: has input {shape}, not faces [N, 3, height, width]; give another recognizer"
            )
        self._size = tuple(shape[2:])
        self._single = shape[0] == 1
        self._centred = self._input.name != EXPORTED_INPUT
        self._require_embeddings(path)

    @property
    def size(self) -> int | None:
        """Side of the square faces that the model takes; None if it takes any size."""
        height, width = self._size
        return height if isinstance(height, int) and height == width else None

    def _require_embeddings(self, path: Path) -> None:
        """Try batches of two sizes, so that an incompatible model fails now rather than after hours."""
        try:
            shapes = [tuple(self(torch.full((count, 3, 112, 112), 0.5)).shape) for count in (1, 2)]
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: cannot embed a batch of faces ({reason}); give another recognizer"
            ) from None
        width = shapes[0][-1:]
        if shapes != [(1, *width), (2, *width)]:
            raise UserError(
                f"{path}: returns {shapes[1]} for 2 faces, not one embedding each; give another recognizer"
            )

    def forward(self, x: Tensor) -> Tensor:
        if all(isinstance(side, int) for side in self._size):
            x = resized(x, self._size)
        faces = (centred(x) if self._centred else x).contiguous().cpu()
        parts = torch.split(faces, 1) if self._single else [faces]
        found = [self._session.run(None, {self._input.name: part.detach().numpy()})[0] for part in parts]
        return F.normalize(torch.from_numpy(np.concatenate(found)).to(x.device), dim=1)
