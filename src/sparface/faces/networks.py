"""MTCNN's three networks, with the weights that facenet-pytorch includes.

Only its weight files are used: importing facenet-pytorch, and torchvision with it, takes longer than torch.
"""

from __future__ import annotations

import platform
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

Floats = NDArray[np.float32]

BLOCKED: bool = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and platform.machine() in ("x86_64", "AMD64")
)
"""Whether tensors are in oneDNN's own layout, in which its max pooling is five times as fast as torch's."""


class Network:
    """Convolutions with a PReLU and perhaps max pooling after each, and one without for all outputs."""

    def __init__(self, name: str, pools: tuple[int, ...]) -> None:
        """Load `pnet`, `rnet` or `onet`; `pools` are the sides of the pooling windows, 0 for none."""
        weights = _weights(name)
        self._layers = [
            (
                _laid_out(_kernel(weights.pop(0), side=3)),
                _laid_out(weights.pop(0)),
                _laid_out(weights.pop(0)),
                pool,
            )
            for pool in pools
        ]
        self._kernel = _laid_out(_kernel(torch.cat(weights[::2]), side=1))
        self._bias = _laid_out(torch.cat(weights[1::2]))

    @torch.inference_mode()
    def __call__(self, crops: Floats) -> tuple[Floats, Floats]:
        """Run the network on crops [n, 3, H, W] in [-1, 1].

        Returns the scores of a face [n, rows, columns] in [0, 1], and the other outputs [n, 4 or 14, rows,
        columns]: the offsets of the box's sides, and of the last network five x and five y of landmarks.
        """
        values = _laid_out(torch.from_numpy(crops))
        for kernel, bias, slope, pool in self._layers:
            values = torch.prelu(conv2d(values, kernel, bias), slope)
            if pool:
                values = max_pool2d(values, pool, 2, ceil_mode=True)
        values = conv2d(values, self._kernel, self._bias)
        values = values.to_dense() if BLOCKED else values
        return values[:, :2].softmax(1)[:, 1].numpy(), values[:, 2:].numpy()


def _weights(name: str) -> list[Tensor]:
    """Kernel, bias and slopes of each layer in order, then kernel and bias of each of the outputs."""
    package = find_spec("facenet_pytorch")
    assert package is not None and package.origin is not None
    file = Path(package.origin).with_name("data") / f"{name}.pt"
    return list(torch.load(file, map_location="cpu", weights_only=True).values())


def _kernel(weights: Tensor, side: int) -> Tensor:
    """The kernel [out, in, rows, columns] of a convolution, which a dense layer is for the whole map."""
    if weights.ndim == 4:
        return weights
    return weights.view(len(weights), side, side, -1).permute(0, 3, 2, 1)  # from x, y, channel


def _laid_out(values: Tensor) -> Tensor:
    """Lay out a tensor for fast convolutions."""
    if BLOCKED:
        return values.to_mkldnn()
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values
