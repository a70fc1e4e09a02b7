"""Tensors that are sharded across processes.

Recognized by their methods: importing `torch.distributed.tensor` takes as long as the rest of torch.
"""

from __future__ import annotations

from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: the whole tensor if it is not sharded."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded (collective if it is)."""
    full_tensor = getattr(tensor, "full_tensor", None)
    return tensor if full_tensor is None else full_tensor()
