"""Tensors that are spread over processes."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: of one that is not spread, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
