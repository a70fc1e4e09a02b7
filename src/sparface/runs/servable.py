"""A recognizer as an MLflow model: an ONNX file that takes pictures, with the signature of its input and
output.

It contains no pickle and no code: MLflow's `onnx` flavour loads it without sparface installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparface.errors import UserError
from sparface.files import read_bounded

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

MAX_BYTES = (1 << 31) - 1
"""Maximum size of an ONNX file, protobuf's own limit."""


def for_pictures(network: bytes) -> bytes:
    """Change the input of an ONNX network from `faces`, float32 [N, 3, size, size] in [0, 1], to `pictures`,
    uint8 [N, size, size, 3], RGB, as in image files: a wrong scale or layout is then an error."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_from_string(network)
    _, _, height, width = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    nodes = [
        helper.make_node("Cast", ["pictures"], ["pictures/levels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pictures/levels"], ["pictures/planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["pictures/planes", "pictures/white"], ["faces"]),
        *model.graph.node,
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(helper.make_tensor("pictures/white", TensorProto.FLOAT, (), [255.0]))
    pictures = helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", height, width, 3])
    model.graph.input[0].CopyFrom(pictures)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write_servable(file: Path, folder: Path, model: LoggedModel) -> None:
    """Write the folder of a logged model from a file made by `for_pictures`.

    `mlflow.pyfunc.load_model(…).predict` takes faces uint8 [N, size, size, 3], RGB, aligned as in training,
    and returns {"embeddings": float32 [N, embedding]} of length 1. Raises `UserError` for any other file.
    """
    import mlflow.onnx
    import onnx
    import onnxruntime
    from google.protobuf.message import DecodeError
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec
    from onnx.external_data_helper import convert_model_from_external_data

    try:
        network = onnx.load_from_string(read_bounded(file, MAX_BYTES))
        takes, gives = (_shape(network.graph.input[0]), _shape(network.graph.output[0]))
        convert_model_from_external_data(network)  # saving it must not read or write other files
    except (DecodeError, IndexError, ValueError):
        raise UserError(f"{file}: is not a self-contained ONNX file of a recognizer; delete it") from None
    faces = TensorSpec(np.dtype(np.uint8), takes)
    embeddings = TensorSpec(np.dtype(np.float32), gives, "embeddings")
    mlflow.onnx.save_model(
        network,
        folder,
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=model.source_run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        ),
        signature=ModelSignature(Schema([faces]), Schema([embeddings])),
        # without them, MLflow loads the model in another process to infer its requirements
        pip_requirements=[f"{package.__name__}=={package.__version__}" for package in (onnx, onnxruntime)],
        save_as_external_data=False,
    )


def _shape(value: Any) -> tuple[int, ...]:
    """The shape of an input or output, with -1 for dimensions of any size."""
    return tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)
