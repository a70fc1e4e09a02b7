"""A recognizer as an MLflow model: its ONNX file, and a description of what goes in and comes out.

Nothing in it is a pickle or code of ours: MLflow's `onnx` flavour loads it, where sparface is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel


def write_servable(file: Path, folder: Path, model: LoggedModel, size: int, embedding: int) -> None:
    """Write the folder of a logged model, from an ONNX file that takes pictures.

    `mlflow.pyfunc.load_model(...).predict` takes faces uint8 [N, size, size, 3], RGB, aligned as in training,
    and returns {"embeddings": float32 [N, embedding]} of length 1.
    """
    import mlflow.onnx
    import onnx
    import onnxruntime
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    faces = TensorSpec(np.dtype(np.uint8), (-1, size, size, 3))
    embeddings = TensorSpec(np.dtype(np.float32), (-1, embedding), "embeddings")
    mlflow.onnx.save_model(
        onnx.load(file, load_external_data=False),
        folder,
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=model.source_run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        ),
        signature=ModelSignature(Schema([faces]), Schema([embeddings])),
        # named here, or MLflow loads the model in another process to find out
        pip_requirements=[f"{package.__name__}=={package.__version__}" for package in (onnx, onnxruntime)],
        save_as_external_data=False,
    )
