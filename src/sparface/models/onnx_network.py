"""An ONNX recognizer as a torch network, to be trained further.

The file is not trusted: it is read as data, of bounded size, without files beside it, and only the operators
of `onnx_layers` are built. Layers are named by their number, so no name from the file is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparface.errors import UserError
from sparface.files import read_bounded
from sparface.models.onnx import EXPORTED_INPUT
from sparface.models.onnx_layers import LAYERS, Node
from sparface.text import printable

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

LARGEST = 2**31 - 1
"""Largest file in bytes, which is protobuf's own limit."""
MOST_NODES = 10_000
MOST_VALUES = 2**28
"""Most intermediate values for one face (about 2^26 for the largest published recognizers)."""


class Step(NamedTuple):
    """What a layer takes and gives, and which values no later layer takes."""

    takes: tuple[int, ...]
    gives: int
    frees: tuple[int, ...]


class OnnxNetwork(nn.Module):
    """Maps faces [N,3,size,size] in [-1,1] to features [N,E], as the graph of an ONNX file does for one face.

    `state_dict` has the file's weights; values are numbered in the order of their steps, 0 being the faces.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Raises `UserError` if the file cannot be read, is not a recognizer of faces of this size, or has
        an operator that is not supported."""
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps: list[Step] = []
        graph = _read(path)
        _require_size(graph, path, size)
        try:
            self.embedding = self._build(graph, size)
        except (ValueError, TypeError, IndexError, KeyError, RuntimeError, OverflowError) as error:
            reason = printable(" ".join(str(error).split()))[:200]
            raise UserError(f"{path}: cannot be trained further ({reason}); give another ONNX file") from None

    def forward(self, x: Tensor) -> Tensor:
        values: dict[int, Tensor] = {0: x}
        for layer, step in zip(self.layers, self.steps, strict=True):
            values[step.gives] = layer(*[values[number] for number in step.takes])
            for number in step.frees:
                del values[number]
        return values[self.steps[-1].gives].flatten(1)

    def _build(self, graph: GraphProto, size: int) -> int:
        """Build the layers, following the shapes of the values for one face; returns the embedding's size."""
        constants = {tensor.name: _tensor(tensor) for tensor in graph.initializer}
        numbers = {_faces(graph).name: 0}
        values = [torch.empty(1, 3, size, size, device="meta")]
        left = MOST_VALUES
        for node in graph.node:
            if not _constant(node, constants):
                value = self._add(node, constants, numbers, values)
                if (left := left - value.numel()) < 0:
                    raise ValueError(f"more than {MOST_VALUES:,} values for one face")
                if value.ndim < 2 or len(value) != 1:
                    raise ValueError(f"operator {node.op_type} gives {tuple(value.shape)} for one face")
                numbers[node.output[0]] = len(values)
                values.append(value)
        output = numbers[graph.output[0].name]
        if output != len(values) - 1:
            raise ValueError("its first output is not its last operator's")
        self._free()
        return values[-1].numel()

    def _add(
        self, node: NodeProto, constants: dict[str, Tensor], numbers: dict[str, int], values: list[Tensor]
    ) -> Tensor:
        """Add the layer of a node; returns its output for one face, without data."""
        if node.op_type not in LAYERS or node.domain not in ("", "ai.onnx"):
            raise ValueError(f"operator {node.op_type} is not supported")
        names = [name for name in node.input if name not in constants and name]
        if unknown := [name for name in names if name not in numbers]:
            raise ValueError(f"{node.op_type} takes {unknown[0]}, which nothing before it computes")
        takes = tuple(numbers[name] for name in names)
        shapes = [tuple(values[numbers[name]].shape) if name in numbers else () for name in node.input]
        given = Node(dict(_attributes(node)), [constants.get(name) for name in node.input], shapes)
        try:
            layer = LAYERS[node.op_type](given)
            given.finish()
            with torch.no_grad():
                value = _without_data(layer, [values[number] for number in takes])
        except Exception as error:
            raise ValueError(f"operator {node.op_type}: {error}") from None
        self.layers.append(layer.train())
        self.steps.append(Step(takes, len(values), ()))
        return value

    def _free(self) -> None:
        """Let each step free the values that no later step takes."""
        needed = {self.steps[-1].gives}
        for place in reversed(range(len(self.steps))):
            step = self.steps[place]
            self.steps[place] = step._replace(frees=tuple({*step.takes, step.gives} - needed))
            needed |= {*step.takes}


def _without_data(layer: nn.Module, inputs: list[Tensor]) -> Tensor:
    state = {name: tensor.to("meta") for name, tensor in layer.state_dict().items()}
    found = functional_call(layer.eval(), state, tuple(inputs))
    assert isinstance(found, Tensor)
    return found


def _read(path: Path) -> GraphProto:
    """Read the graph of an ONNX file."""
    try:
        import onnx
    except ImportError:
        raise UserError(f"{path}: needs onnx; run `pip install 'sparface[onnx]'`") from None
    if not path.is_file():
        raise UserError(f"{path}: no such file; give an ONNX file")
    data = read_bounded(path, LARGEST)
    try:
        graph = onnx.load_model_from_string(data).graph
    except Exception:  # protobuf's errors have no common class
        raise UserError(f"{path}: is not an ONNX file; give a valid one") from None
    if len(graph.output) == 0 or not 0 < len(graph.node) <= MOST_NODES:
        raise UserError(f"{path}: has no network, or too large a one; give another ONNX file")
    return graph


def _require_size(graph: GraphProto, path: Path, size: int) -> None:
    faces = _faces(graph)
    if faces is None:
        raise UserError(f"{path}: has more than one input; give a recognizer")
    if faces.name == EXPORTED_INPUT:
        raise UserError(f"{path}: was written by `sparface export`; start from its run instead")
    shape = [side.dim_value for side in faces.type.tensor_type.shape.dim]
    if len(shape) != 4 or shape[1] not in (0, 3):
        raise UserError(f"{path}: has input {shape}, not faces [N, 3, height, width]; give a recognizer")
    if any(side not in (0, size) for side in shape[2:]):
        raise UserError(f"size: {size} is not allowed; {path} takes faces of {shape[2]} x {shape[3]} pixels")


def _faces(graph: GraphProto) -> Any:
    """The graph's only input; None if it has several. Old files list their weights as inputs, too."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [one for one in graph.input if one.name not in weights]
    return inputs[0] if len(inputs) == 1 else None


def _constant(node: NodeProto, constants: dict[str, Tensor]) -> bool:
    """Add the value of a node to `constants` if it is a constant or the copy of one."""
    if node.op_type == "Identity" and node.input[0] in constants:
        constants[node.output[0]] = constants[node.input[0]]
    elif node.op_type == "Constant":
        ((_, value),) = _attributes(node)
        constants[node.output[0]] = value if isinstance(value, Tensor) else torch.tensor(value)
    else:
        return False
    return True


def _attributes(node: NodeProto) -> Iterator[tuple[str, Any]]:
    from onnx import TensorProto, helper

    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, TensorProto):
            value = _tensor(value)
        yield attribute.name, value.decode() if isinstance(value, bytes) else value


def _tensor(tensor: TensorProto) -> Tensor:
    """A tensor of the file, as float32 or int64. Raises `ValueError` for data in another file."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise ValueError("its weights are in another file")
    if math.prod(tensor.dims) > LARGEST:
        raise ValueError("a tensor is too large")
    array = numpy_helper.to_array(tensor)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"tensors of {array.dtype} are not supported")
    return torch.from_numpy(array.astype("float32" if array.dtype.kind == "f" else "int64"))
