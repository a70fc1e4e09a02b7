"""Which variants may stay, and who judges that they still show their source."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparface.errors import UserError
from sparface.generate.settings import FilterConfig
from sparface.generate.variants import Judge
from sparface.runs.trained import open_run

REASONS = ("strayed", "near_copy", "dead_mask")
"""Why a variant is rejected: too far from its source, too near to it, or its mask is dead."""


class OnnxJudge:
    """A recognizer in an ONNX file: faces float32 [N,3,h,w] in [0,1], RGB → embeddings [N,E].

    `sparface export` writes such a file. Faces of another size are resized. Runs on the CPU.
    """

    def __init__(self, path: Path) -> None:
        """Raises `UserError` for a missing package, or a file that is no such recognizer."""
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"{path}: needs onnxruntime; run `pip install 'sparface[onnx]'`") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has an exception of its own for each way to be broken
            raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None
        (self._input, *more) = self._session.get_inputs()
        shape = self._input.shape
        if more or len(shape) != 4 or shape[1] != 3:
            raise UserError(f"{path}: takes {shape}, not faces [N, 3, height, width]; give another judge")
        self._size = tuple(shape[2:])
        self._require_embeddings(path)

    def _require_embeddings(self, path: Path) -> None:
        """Try it on batches of two sizes: what does not fit must not show after hours."""
        try:
            shapes = [tuple(self(torch.full((count, 3, 112, 112), 0.5)).shape) for count in (1, 2)]
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: cannot embed a batch of faces ({reason}); give another judge") from None
        width = shapes[0][-1:]
        if shapes != [(1, *width), (2, *width)]:
            raise UserError(
                f"{path}: makes {shapes[1]} of 2 faces, not one embedding each; give another judge"
            )

    def __call__(self, x: Tensor) -> Tensor:
        if all(isinstance(side, int) for side in self._size) and x.shape[-2:] != self._size:
            x = F.interpolate(x, self._size, mode="bilinear", antialias=True)
        (embeddings, *_) = self._session.run(None, {self._input.name: x.contiguous().cpu().numpy()})
        return F.normalize(torch.from_numpy(embeddings).to(x.device), dim=1)


def open_judge(path: Path, device: torch.device) -> tuple[Judge, str]:
    """The judge in a run folder or an ONNX file, and the digest of its weights."""
    if path.suffix == ".onnx":
        if not path.is_file():
            raise UserError(f"{path}: no such file; give an ONNX file or the folder of a run")
        return OnnxJudge(path), hashlib.sha256(path.read_bytes()).hexdigest()
    recognizer = open_run(path).network("recognizer", device)
    return recognizer, weights_digest(recognizer)


def weights_digest(network: nn.Module) -> str:
    """sha256 over a network's weights and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def verdicts(rules: FilterConfig, cosine: Tensor | None, change: Tensor, mask: Tensor) -> Tensor:
    """int64 [B]: 0 may stay, else 1 + the place in `REASONS` of the first reason against it.

    All [B]: `cosine` to the source, None where it is not asked; `change` and the mask's mean of each variant.
    """
    least = -1.0 if cosine is None or rules.cosine is None else rules.cosine
    strayed = (torch.ones_like(change) if cosine is None else cosine) < least
    reasons = torch.stack([strayed, change < rules.change, mask < rules.mask])
    return torch.where(reasons.any(0), 1 + reasons.int().argmax(0), 0)
