"""Exported files against the trained network, in runtimes that know nothing of sparface."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from facenet_pytorch import InceptionResnetV1
from safetensors import safe_open
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent / "evaluation"))
from evaluation_runs import small_config, write_checkpoint

from sparface.errors import UserError
from sparface.export import export
from sparface.kernels.whiten import whiten
from sparface.models.recognizer import RecognizerConfig
from sparface.models.sae import GeneratorConfig, build_generator
from sparface.runs.trained import open_run

SIZE = 80
"""FaceNet needs at least 75."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained sparring run with FaceNet."""
    folder = tmp_path_factory.mktemp("export") / "run"
    config = small_config(Path("shards/none"))
    config.blocks["recognizer"] = RecognizerConfig()
    config.size = SIZE
    torch.manual_seed(0)
    write_checkpoint(folder, config, 640)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    export(run, run.parent / "out")
    return run.parent / "out"


def test_the_files(run: Path, exported: Path) -> None:
    names = sorted(path.name for path in exported.iterdir())
    assert names == ["config.yaml", "generator.safetensors", "recognizer.onnx", "recognizer.safetensors"]
    assert (exported / "config.yaml").read_text() == (run / "config.yaml").read_text()
    with safe_open(exported / "recognizer.safetensors", "pt") as file:
        about = file.metadata()
    assert about["images_seen"] == "640" and about["averaged"] == "false" and about["size"] == "80"


def test_onnx_gives_the_embeddings_of_torch_for_any_number_of_faces(run: Path, exported: Path) -> None:
    recognizer = open_run(run).network("recognizer")
    session = onnxruntime.InferenceSession(exported / "recognizer.onnx", providers=["CPUExecutionProvider"])
    for faces in (1, 5):
        x = torch.rand(faces, 3, SIZE, SIZE)
        (found,) = session.run(["embeddings"], {"faces": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, recognizer(x).numpy(), atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_safetensors_load_into_the_published_class(run: Path, exported: Path) -> None:
    published = InceptionResnetV1(pretrained=None).eval()
    published.load_state_dict(load_file(exported / "recognizer.safetensors"))
    x = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(
            published(whiten(x)), open_run(run).network("recognizer")(x), atol=1e-5, rtol=0
        )


def test_the_generator_loads_again(run: Path, exported: Path) -> None:
    generator = build_generator(open_run(run).config.block(GeneratorConfig))
    generator.load_state_dict(load_file(exported / "generator.safetensors"))


def test_nothing_is_overwritten_or_left_behind(run: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already exists"):
        export(run, exported)
    with pytest.raises(UserError, match="not a run"):
        export(tmp_path, tmp_path / "out")
    write_checkpoint(tmp_path / "other", small_config(Path("shards/none")), 320)
    config = tmp_path / "other" / "config.yaml"
    config.write_text(config.read_text().replace("embedding: 64", "embedding: 32"))
    with pytest.raises(UserError, match="its recognizer is"):
        export(tmp_path / "other", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
