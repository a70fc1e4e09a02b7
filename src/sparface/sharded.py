"""Tensors that are sharded across processes."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: the whole tensor if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded (collective if it is)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
