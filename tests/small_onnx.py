"""Small ONNX recognizers for the tests, written node by node as other programs do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Weights = dict[str, NDArray[Any]]


def drawn(*shape: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng((seed, *shape)).normal(0, 0.3, shape).astype(np.float32)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def model(
    nodes: Sequence[Any], weights: Weights, *, size: int | str = 32, batch: int | str = 1, name: str = "input"
) -> Any:
    """A model of faces [batch,3,size,size]; its output is that of its last node."""
    faces = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, size, size])
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value, key) for key, value in weights.items()]
    graph = helper.make_graph(list(nodes), "recognizer", [faces], [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def recognizer(embedding: int = 16) -> Any:
    """Convolutions, norms, a shortcut and a layer to the embedding, for one face of 32 pixels."""
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    nodes = [
        node("Conv", "input w1 b1", "a", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a ones zeros zeros ones", "b"),
        node("PRelu", "b slope", "c"),
        node("Conv", "c w2", "d", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=8),
        node("Add", "c d", "e"),
        node("AveragePool", "e", "f", kernel_shape=[4, 4], strides=[4, 4]),
        node("Reshape", "f shape", "g"),
        node("Gemm", "g w3 b3", "h", transB=1),
    ]
    weights = {
        "w1": drawn(8, 3, 3, 3), "b1": drawn(8), "ones": ones, "zeros": zeros, "slope": drawn(8, 1, 1),
        "w2": drawn(8, 1, 3, 3), "shape": np.array([1, 128]),
        "w3": drawn(embedding, 128), "b3": drawn(embedding),
    }  # fmt: skip
    return model(nodes, weights)


def write(path: Path, made: Any = None) -> Path:
    path.write_bytes((recognizer() if made is None else made).SerializeToString())
    return path
