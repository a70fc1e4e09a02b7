"""The operators of ONNX face recognizers as torch layers.

`LAYERS` maps an operator to a function that builds its layer from a `Node`. Weights become parameters;
constants of arithmetic become buffers, which are not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


class Node:
    """An operator of the graph. `constants` and `shapes` have one entry per input: the constant, if it is
    one, and the shape of the input for one face."""

    def __init__(
        self,
        attributes: dict[str, Any],
        constants: Sequence[Tensor | None],
        shapes: Sequence[Shape],
    ) -> None:
        self.constants, self.shapes = constants, shapes
        self._attributes = attributes

    def take(self, name: str, default: Any = None) -> Any:
        """Return an attribute; those that are never taken make the node unsupported."""
        return self._attributes.pop(name, default)

    def require(self, **values: Any) -> None:
        """Raise `ValueError` unless each of these attributes has this value or is absent."""
        for name, value in values.items():
            if (found := self.take(name, value)) != value:
                raise ValueError(f"{name}={found} is not supported")

    def constant(self, number: int) -> Tensor:
        """Return a constant input. Raises `ValueError` if it is missing or computed."""
        if number >= len(self.constants) or (found := self.constants[number]) is None:
            raise ValueError(f"input {number} is not a constant")
        return found

    def optional(self, number: int) -> Tensor | None:
        """Return a constant input, or None if it is left out. Raises `ValueError` if it is computed."""
        left_out = number >= len(self.constants) or (
            self.constants[number] is None and not self.shapes[number]
        )
        return None if left_out else self.constant(number)

    def finish(self) -> None:
        if self._attributes:
            raise ValueError(f"attribute {sorted(self._attributes)[0]} is not supported")


class Arithmetic(nn.Module):
    """An operation on computed values and constants, in the order of the node's inputs."""

    def __init__(self, operation: Callable[..., Tensor], constants: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.operation, self.count = operation, len(constants)
        for number, constant in enumerate(constants):
            if constant is not None:
                self.register_buffer(f"constant{number}", constant)

    def forward(self, *values: Tensor) -> Tensor:
        computed = iter(values)
        constants = [getattr(self, f"constant{number}", None) for number in range(self.count)]
        return self.operation(*[next(computed) if one is None else one for one in constants])


class Reshape(nn.Module):
    """Reshapes each face's values, for any number of faces."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


class Concatenate(nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *values: Tensor) -> Tensor:
        return torch.cat(values, self.axis)


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.clone())


def _convolution(node: Node) -> nn.Module:
    weight, bias = node.constant(1), node.optional(2)
    out, per_group, height, width = weight.shape
    groups = node.take("group", 1)
    node.require(auto_pad="NOTSET", kernel_shape=[height, width])
    pads = node.take("pads", [0, 0, 0, 0])
    layer = nn.Conv2d(
        per_group * groups, out, (height, width), node.take("strides", 1), dilation=node.take("dilations", 1),
        groups=groups, bias=bias is not None, device="meta",
    )  # fmt: skip
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return _padded(pads, layer)


def _padded(pads: list[int], layer: nn.Conv2d) -> nn.Module:
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        layer.padding = (top, left)
        return layer
    return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), layer)


def _norm(node: Node) -> nn.Module:
    weight, bias, mean, variance = (node.constant(number) for number in range(1, 5))
    node.require(training_mode=0, spatial=1)
    kind = nn.BatchNorm2d if len(node.shapes[0]) == 4 else nn.BatchNorm1d
    layer = kind(len(weight), node.take("epsilon", 1e-5), 1 - node.take("momentum", 0.9))
    layer.weight, layer.bias = _parameter(weight), _parameter(bias)
    layer.running_mean, layer.running_var = mean.clone(), variance.clone()
    return layer


def _linear(node: Node) -> nn.Module:
    node.require(alpha=1.0, beta=1.0, transA=0)
    weight = node.constant(1) if node.take("transB", 0) else node.constant(1).T
    out, features = weight.shape
    bias = node.optional(2)
    layer = nn.Linear(features, out, bias is not None, device="meta")
    layer.weight = _parameter(weight.contiguous())
    if bias is not None:
        layer.bias = _parameter(bias.flatten().expand(out))
    return layer


def _prelu(node: Node) -> nn.Module:
    slope = node.constant(1).flatten()
    layer = nn.PReLU(len(slope))
    layer.weight = _parameter(slope)
    return layer


def _clip(node: Node) -> nn.Module:
    low, high = node.optional(1), node.optional(2)
    least = node.take("min", -torch.inf) if low is None else float(low)
    most = node.take("max", torch.inf) if high is None else float(high)
    return nn.Hardtanh(least, most)


def _reshape(node: Node) -> nn.Module:
    """A file's number of faces is ignored: files of one face are common, and name it in their shapes."""
    node.require(allowzero=0)
    shape = [int(side) for side in node.constant(1)]
    if len(shape) < 2 or shape[0] > 1:
        raise ValueError(f"shape {shape} is not supported")
    return Reshape(tuple(side or node.shapes[0][axis] for axis, side in enumerate(shape))[1:])


def _flatten(node: Node) -> nn.Module:
    node.require(axis=1)
    return nn.Flatten(1)


def _concatenate(node: Node) -> nn.Module:
    return Concatenate(node.take("axis"))


def _average(node: Node) -> nn.Module:
    return nn.AvgPool2d(*_pool(node), count_include_pad=bool(node.take("count_include_pad", 0)))


def _most(node: Node) -> nn.Module:
    node.require(storage_order=0, dilations=[1, 1])
    size, stride, padding, ceil = _pool(node)
    return nn.MaxPool2d(size, stride, padding, ceil_mode=ceil)


def _pool(node: Node) -> tuple[Any, Any, Any, bool]:
    node.require(auto_pad="NOTSET")
    top, left, bottom, right = node.take("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise ValueError(f"pads={[top, left, bottom, right]} is not supported")
    return (
        node.take("kernel_shape"),
        node.take("strides", [1, 1]),
        (top, left),
        bool(node.take("ceil_mode", 0)),
    )


def _arithmetic(operation: Callable[..., Tensor]) -> Callable[[Node], nn.Module]:
    return lambda node: Arithmetic(operation, node.constants)


def _dropout(node: Node) -> nn.Module:
    node.take("ratio")
    return nn.Identity()


LAYERS: dict[str, Callable[[Node], nn.Module]] = {
    "Add": _arithmetic(torch.add),
    "AveragePool": _average,
    "BatchNormalization": _norm,
    "Clip": _clip,
    "Concat": _concatenate,
    "Conv": _convolution,
    "Div": _arithmetic(torch.div),
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _linear,
    "GlobalAveragePool": lambda node: nn.AdaptiveAvgPool2d(1),
    "HardSwish": lambda node: nn.Hardswish(),
    "Identity": lambda node: nn.Identity(),
    "LeakyRelu": lambda node: nn.LeakyReLU(node.take("alpha", 0.01)),
    "MatMul": _linear,
    "MaxPool": _most,
    "Mul": _arithmetic(torch.mul),
    "PRelu": _prelu,
    "Relu": lambda node: nn.ReLU(),
    "Reshape": _reshape,
    "Sigmoid": lambda node: nn.Sigmoid(),
    "Sub": _arithmetic(torch.sub),
    "Tanh": lambda node: nn.Tanh(),
}
"""Operator → function that builds its layer. Raises `ValueError` for what is not supported."""
