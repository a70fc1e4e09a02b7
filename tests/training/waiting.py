"""A guard that raises where a step would make the host wait for its device. Works on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("item", "cpu", "numpy", "tolist", "__bool__", "__int__", "__float__", "__index__", "__array__")
"""Methods that bring values to the host. On the CPU some of them dispatch no operator."""
UNKNOWN_TO_THE_HOST = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Operators whose result, or its shape, the host gets from the values of a tensor."""


class Waits(AssertionError):
    """The host would wait for the device."""


class Guard(TorchDispatchMode):
    """Inside, whatever brings a tensor's values to the host, or host data to a tensor, raises `Waits`."""

    allowing = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.allowing and waits(func, args):
            raise Waits(str(func))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Inside, everything is allowed again."""
        before, self.allowing = self.allowing, True
        try:
            yield
        finally:
            self.allowing = before

    def read(self, name: str, honest: Any) -> Any:
        """The method `name` of a tensor, guarded."""

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self.allowing:
                raise Waits(f"Tensor.{name}")
            return honest(tensor, *args, **kwargs)

        return method


def waits(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operator makes the host wait, or copies from memory that is not page-locked."""
    if func is torch.ops.aten.index.Tensor:  # only a mask has a result of unknown size
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if func is torch.ops.aten.lift_fresh.default:  # torch.tensor([…]), torch.as_tensor(…)
        return True
    return func is torch.ops.aten.is_nonzero.default or not UNKNOWN_TO_THE_HOST.isdisjoint(func.tags)


@contextmanager
def no_waiting() -> Iterator[Guard]:
    """Inside, no operation may make the host wait for the device."""
    with pytest.MonkeyPatch.context() as patch, Guard() as guard:
        for name in READS:
            patch.setattr(Tensor, name, guard.read(name, getattr(Tensor, name)))
        yield guard
