"""Recognizers from ONNX files of others, and what is known about a recognizer's faces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sparface.errors import UserError
from sparface.evaluation.recognizers import open_recognizer
from sparface.evaluation.verification import evaluate_verification
from sparface.faces.drawn import draw_set
from sparface.models.recognizer import RecognizerConfig, build_recognizer
from sparface.runs.trained import open_run


class Corners(nn.Module):
    """Two pixels of each face as its embedding: shows which values a model was given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :, 0, 0], x[:, :, 1, 1]], dim=1)


def write_onnx(path: Path, name: str, batch: int) -> Path:
    """An ONNX file of `Corners` for faces of 8 pixels; `batch` 0: any number."""
    helper = pytest.importorskip("onnx.helper")
    pytest.importorskip("onnxruntime")
    import onnx
    from onnx import TensorProto

    nodes, corners = [], []
    for number in (0, 1):
        for key, values in (
            ("starts", [number, number]),
            ("ends", [number + 1, number + 1]),
            ("axes", [2, 3]),
        ):
            tensor = helper.make_tensor(f"{key}{number}", TensorProto.INT64, [2], values)
            nodes.append(helper.make_node("Constant", [], [f"{key}{number}"], value=tensor))
        inputs = [name, f"starts{number}", f"ends{number}", f"axes{number}"]
        nodes.append(helper.make_node("Slice", inputs, [f"corner{number}"]))
        corners.append(f"corner{number}")
    nodes.append(helper.make_node("Concat", corners, ["both"], axis=1))
    nodes.append(helper.make_node("Flatten", ["both"], ["embedding"]))
    shape = [batch or "N", 3, 8, 8]
    graph = helper.make_graph(
        nodes,
        "corners",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch or "N", 6])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize(("name", "centred"), [("faces", False), ("input", True)])
def test_an_onnx_file_is_given_the_range_that_it_expects(
    name: str, centred: bool, batch: int, tmp_path: Path
) -> None:
    opened = open_recognizer(write_onnx(tmp_path / "corners.onnx", name, batch))
    assert (opened.size, opened.template, opened.trained) == (8, None, None)
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.normalize(Corners()(2 * x - 1 if centred else x), dim=1)
    torch.testing.assert_close(opened.network(x), expected)


def test_what_is_known_of_a_run(run: Path) -> None:
    opened = open_recognizer(run)
    assert (opened.name, opened.size, opened.template) == ("small", 64, None)
    assert opened.trained is not None and opened.trained.checkpoint == open_run(run).checkpoint


def test_facenets_weights_take_its_faces(tmp_path: Path) -> None:
    torch.save(build_recognizer(RecognizerConfig()).backbone.state_dict(), tmp_path / "facenet.pt")
    opened = open_recognizer(tmp_path / "facenet.pt")
    assert (opened.size, opened.template) == (160, "box")
    torch.save({"logits.weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="does not match"):
        open_recognizer(tmp_path / "other.pt")
    with pytest.raises(UserError, match="no such file"):
        open_recognizer(tmp_path / "none.pt")
    with pytest.raises(UserError, match="not a run"):
        open_recognizer(tmp_path)


def test_the_packaged_recognizer_tells_drawn_people_apart(tmp_path: Path) -> None:
    people = draw_set(tmp_path / "people", 12, 4, size=64, seed=12345)
    found = evaluate_verification(Path("drawn"), shards=people.folder)
    assert found["figures"]["accuracy"] > 0.85 and found["provenance"]["mirror"] is True
    assert found["provenance"]["parameters"] < 1_300_000
