"""ONNX files as torch networks, against onnxruntime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from small_onnx import drawn, model, node, recognizer, write
from sparface.errors import UserError
from sparface.models.batchnorm import split_batchnorm
from sparface.models.onnx_network import OnnxNetwork
from sparface.models.recognizer import RecognizerConfig, build_recognizer


def by_runtime(path: Path, x: Tensor) -> Tensor:
    """The outputs of onnxruntime, one face after the other."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return torch.cat([torch.from_numpy(session.run(None, {name: one[None].numpy()})[0]) for one in x])


def difference(path: Path, size: int, faces: int = 3) -> float:
    x = 2 * torch.rand(faces, 3, size, size, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        found = OnnxNetwork(path, size).eval()(x)
    return float((found - by_runtime(path, x).flatten(1)).abs().max())


def unary(operator: str, inputs: str = "input", weights: Any = None, **attributes: Any) -> Any:
    return model([node(operator, inputs, "y", **attributes)], weights or {}, size=16)


def of(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


TENSOR = numpy_helper.from_array(drawn(3, 1, 1))
OPERATORS = {
    "Add a constant": unary("Add", "input c", {"c": drawn(3, 1, 1)}),
    "Sub from a constant": unary("Sub", "c input", {"c": of(0.5)}),
    "Sub a constant": unary("Sub", "input c", {"c": of(0.5)}),
    "Mul by itself": unary("Mul", "input input"),
    "Div by a Constant": model(
        [node("Constant", "", "c", value=TENSOR), node("Div", "input c", "y")], {}, size=16
    ),
    "Add the copy of a constant": model(
        [node("Identity", "w", "c"), node("Add", "input c", "y")], {"w": drawn(3, 1, 1)}, size=16
    ),
    "AveragePool": unary("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "AveragePool counts its pads": unary(
        "AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, ceil_mode=1
    ),
    "BatchNormalization": unary(
        "BatchNormalization", "input s b m v", {"s": drawn(3), "b": drawn(3), "m": drawn(3), "v": of(1, 2, 3)}
    ),
    "BatchNormalization of rows": model(
        [node("Flatten", "input", "x"), node("BatchNormalization", "x s b m v", "y", epsilon=0.1)],
        {"s": drawn(768), "b": drawn(768), "m": drawn(768), "v": abs(drawn(768)) + 1},
        size=16,
    ),
    "Clip": unary("Clip", "input low high", {"low": of(-0.5).reshape(()), "high": of(0.25).reshape(())}),
    "Clip from below": model(
        [node("Clip", "input low", "y")], {"low": of(-0.5).reshape(())}, size=16
    ),
    "Concat": unary("Concat", "input input", axis=1),
    "Conv": unary("Conv", "input w b", {"w": drawn(4, 3, 3, 3), "b": drawn(4)}, dilations=[2, 2]),
    "Conv in groups": unary("Conv", "input w", {"w": drawn(6, 1, 3, 3)}, group=3, strides=[2, 1]),
    "Conv with other pads": unary("Conv", "input w", {"w": drawn(4, 3, 3, 3)}, pads=[0, 1, 2, 1]),
    "Dropout": unary("Dropout"),
    "Flatten": unary("Flatten", axis=1),
    "Gemm": model([node("Flatten", "input", "x"), node("Gemm", "x w", "y")], {"w": drawn(768, 5)}, size=16),
    "GlobalAveragePool": unary("GlobalAveragePool"),
    "HardSwish": unary("HardSwish"),
    "Identity": unary("Identity"),
    "LeakyRelu": unary("LeakyRelu", alpha=0.2),
    "MatMul": model(
        [node("Flatten", "input", "x"), node("MatMul", "x w", "y")], {"w": drawn(768, 5)}, size=16
    ),
    "MaxPool": unary("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    "PRelu": unary("PRelu", "input s", {"s": drawn(3, 1, 1)}),
    "Relu": unary("Relu"),
    "Reshape": unary("Reshape", "input s", {"s": np.array([0, -1, 16])}),
    "Sigmoid": unary("Sigmoid"),
    "Tanh": unary("Tanh"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_each_operator(tmp_path: Path, name: str) -> None:
    assert difference(write(tmp_path / "a.onnx", OPERATORS[name]), 16) < 1e-5


def test_a_whole_recognizer_and_every_weight_learns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx")
    assert difference(path, 32) < 1e-5
    network = build_recognizer(RecognizerConfig("onnx", 16), str(path), 32)
    network(torch.rand(4, 3, 32, 32)).square()[:, 0].sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())
    assert len(split_batchnorm(network).state_dict()) == len(list(network.named_parameters())) + 6


def test_faces_are_centred(tmp_path: Path) -> None:
    """Bytes b become (b − 127.5) / 127.5, and embeddings are normalised."""
    path = write(tmp_path / "a.onnx")
    faces = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    network = build_recognizer(RecognizerConfig("onnx", 16), str(path), 32).eval()
    expected = torch.nn.functional.normalize(by_runtime(path, (faces.float() - 127.5) / 127.5))
    with torch.no_grad():
        torch.testing.assert_close(network(faces), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(network(faces.float() / 255), expected, atol=1e-5, rtol=0)


def test_a_published_recognizer(data: Path) -> None:
    path = data / "pretrained" / "mobilefacenet.onnx"
    assert difference(path, 112) < 1e-4
    assert OnnxNetwork(path, 112).embedding == 128


def external() -> Any:
    made = recognizer()
    (weight,) = [tensor for tensor in made.graph.initializer if tensor.name == "w1"]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")
    return made


def lying() -> Any:
    made = recognizer()
    made.graph.initializer[0].dims[0] = 2**40
    return made


def deep() -> Any:
    """Convolutions that make 16 million channels of one."""
    weights = {"w0": drawn(4096, 3, 1, 1), "w1": drawn(4096, 1, 1, 1)}
    steps = [node("Conv", "input w0", "x0")]
    steps += [node("Concat", f"x{n} x{n}", f"x{n + 1}", axis=1) for n in range(12)]
    return model(steps, weights)


def two_inputs() -> Any:
    made = recognizer()
    made.graph.input.append(made.graph.input[0])
    made.graph.input[1].name = "more"
    return made


def early() -> Any:
    made = recognizer()
    made.graph.output[0].name = "g"
    return made


UNKNOWN = model([node("Relu", "elsewhere", "y")], {}, size=16)
WRONG: dict[str, tuple[Any, int, str]] = {
    "operator": (unary("Softmax"), 16, "operator Softmax is not supported"),
    "attribute": (
        unary("Conv", "input w", {"w": drawn(4, 3, 3, 3)}, auto_pad="SAME_UPPER"),
        16,
        "Conv: auto_pad=SAME_UPPER is not supported",
    ),
    "unknown attribute": (unary("Relu", alpha=1.0), 16, "Relu: attribute alpha is not supported"),
    "computed weights": (unary("PRelu", "input input"), 16, "PRelu: input 1 is not a constant"),
    "unknown value": (UNKNOWN, 16, "Relu takes elsewhere, which nothing before it computes"),
    "batch": (unary("Reshape", "input s", {"s": np.array([3, -1])}), 16, r"shape \[3, -1\] is not supported"),
    "shapes": (unary("Conv", "input w", {"w": drawn(4, 5, 3, 3)}), 16, "operator Conv"),
    "external data": (external(), 32, "its weights are in another file"),
    "a size that lies": (lying(), 32, "a tensor is too large"),
    "memory": (deep(), 32, "more than 268,435,456 values for one face"),
    "another size": (recognizer(), 64, r"size: 64 is not allowed; .*a.onnx takes faces of 32 x 32"),
    "our own export": (model([node("Relu", "faces", "y")], {}, name="faces"), 32, "start from its run"),
    "two inputs": (two_inputs(), 32, "more than one input"),
    "an early output": (early(), 32, "its first output is not its last operator's"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    made, size, message = WRONG[name]
    path = write(tmp_path / "a.onnx", made)
    with pytest.raises(UserError, match=message) as caught:
        OnnxNetwork(path, size)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_files_that_are_not_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"", b"\x08\x01", b"PK\x03\x04" + bytes(50), bytes(range(256))):
        (tmp_path / "a.onnx").write_bytes(content)
        with pytest.raises(UserError, match=r"a.onnx: (is not an ONNX file|has no network)"):
            OnnxNetwork(tmp_path / "a.onnx", 32)
    with pytest.raises(UserError, match="no such file"):
        OnnxNetwork(tmp_path / "b.onnx", 32)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'sparface\[onnx\]'"):
        OnnxNetwork(tmp_path / "a.onnx", 32)


def test_the_embedding_must_be_the_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"recognizer.embedding: 512 is not allowed; must be 16 for .*a.onnx"):
        build_recognizer(RecognizerConfig("onnx"), str(path), 32)
