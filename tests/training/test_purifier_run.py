"""Whole runs of the recipe `purifier`: alone, resumed, by two processes; and their copy of the recognizer."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from strategy_chain import Job, Segment, train_all

import small_onnx
from sparface.config import Config
from sparface.errors import UserError
from sparface.evaluation.purifiers import open_cleaner
from sparface.export import export
from sparface.models.purifier import Purifier
from sparface.recipes.base import AllFaces
from sparface.recipes.purifier import PurifierRecipe
from sparface.runs.checkpoint import read_weights
from sparface.runs.trained import open_run
from sparface.shards import ShardSet
from sparface.training.loop import train

pytestmark = pytest.mark.timeout(900)
SHORT = (
    *("--recipe=purifier", "--purifier.components=8", "--purifier.clones=2", "--purifier.decay=0.9"),
    *("--data.workers=0", "--schedule.images=48", "--training.checkpoint_every=1000"),
    *("--data.identities_per_batch=4", "--data.images_per_identity=2"),
)


@pytest.fixture(scope="module")
def recognizer(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("recognizer") / "run"
    options = ("--data.workers=0", "--schedule.images=8", "--validation.mirror=true")
    assert train(tiny("--recipe=recognizer", *options), run)
    return run


@pytest.fixture(scope="module")
def runs(tiny: Callable[..., Config], recognizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alone, interrupted, by two processes, and handed on from one process to two. The recognizer is gone
    before the interrupted ones go on."""
    folder = tmp_path_factory.mktemp("runs")
    ways = {
        "whole": [Segment("single", 1, 48)],
        "resumed": [Segment("single", 1, 24), Segment("single", 1, 48)],
        "two": [Segment("ddp", 2, 48)],
        "handed-on": [Segment("ddp", 1, 24), Segment("ddp", 2, 48)],
        "fsdp": [Segment("fsdp", 2, 48)],
    }
    jobs = []
    for way, segments in ways.items():
        copied = shutil.copytree(recognizer, folder / f"recognizer-of-{way}")
        config = tiny(*SHORT, f"--purifier.recognizer={copied}")
        jobs.append(Job(config, folder / way, segments))
    first = [Job(job.config, job.run, job.segments[:1]) for job in jobs]
    train_all(first)
    for job in jobs:
        shutil.rmtree(job.config.blocks["purifier"].recognizer)
    train_all([Job(job.config, job.run, job.segments[1:]) for job in jobs if len(job.segments) > 1])
    return folder


def state(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_run(run).checkpoint
    names = ("networks.purifier", "frozen.eigenfaces", "frozen.copy", "frozen.recognizer")
    return {f"{name}.{key}": value for name in names for key, value in read_weights(checkpoint, name).items()}


def test_an_interrupted_run_ends_the_same_and_does_not_compute_the_basis_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = state(runs / "whole"), state(runs / "resumed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())

    def never(recipe: PurifierRecipe, every: AllFaces) -> None:
        raise AssertionError("the basis is in the checkpoint")

    monkeypatch.setattr(PurifierRecipe, "learn", never)
    run = open_run(runs / "whole")
    assert train(run.config, runs / "whole"), "nothing to do"


@pytest.mark.parametrize("way", ["two", "handed-on", "fsdp"])
def test_two_processes_end_where_one_does(runs: Path, way: str) -> None:
    one, two = state(runs / "whole"), state(runs / way)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name.startswith("frozen.eigenfaces"):
            assert torch.equal(value, two[name]), name
        assert torch.allclose(value.double(), two[name].double(), rtol=1e-2, atol=1e-3), name
    found = [json.loads((runs / n / "metrics.jsonl").read_text().splitlines()[-1]) for n in ("whole", way)]
    for name in ("loss", "kept", "distance", "attacked_distance", "cells"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-2), name


def test_the_trained_purifier_is_ready_to_use(runs: Path, faces: Path) -> None:
    network = open_run(runs / "whole").network("purifier")
    assert isinstance(network, Purifier) and not network.training
    x = torch.stack([torch.from_numpy(face.image) for face in ShardSet.open(faces).faces()][:6])
    x = x.permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        mean = network(x)
        draws = torch.stack([network(x, network.noise(0, torch.arange(6), draw)) for draw in range(200)])
    assert mean.shape == x.shape and mean.min() >= 0 and mean.max() <= 1
    assert (draws.mean(0) - mean).abs().mean() < 0.01 < draws.std(0).mean() * 3
    assert torch.equal(draws[3], network(x, network.noise(0, torch.arange(6), 3)))


def test_pictures_and_export(runs: Path, tmp_path: Path) -> None:
    names = {path.stem.partition("-")[2] for path in (runs / "whole" / "previews").glob("*.png")}
    assert names == {"face", "purified", "attacked", "attacked_purified"}
    export(runs / "whole", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.yaml", "purifier.safetensors"}
    x, cpu = torch.rand(3, 3, 32, 32), torch.device("cpu")
    of_run = open_cleaner(str(runs / "whole"), cpu)
    for source in (tmp_path / "out", tmp_path / "out" / "purifier.safetensors"):
        exported = open_cleaner(str(source), cpu)
        assert (exported.digest, exported.size) == (of_run.digest, 32)
        assert torch.equal(exported.network(x), of_run.network(x))
    weights = load_file(tmp_path / "out" / "purifier.safetensors")
    for header in ({}, {"model": '{"purifier": [9, true]}', "size": "32"}, {"model": "[]", "size": "x"}):
        save_file(weights, tmp_path / "other.safetensors", header)
        with pytest.raises(UserError, match=r"other\.safetensors: "):
            open_cleaner(str(tmp_path / "other.safetensors"), cpu)


def test_an_onnx_recognizer_is_copied(tiny: Callable[..., Config], tmp_path: Path) -> None:
    onnx = small_onnx.write(tmp_path / "small.onnx")
    config = tiny(*SHORT, f"--purifier.recognizer={onnx}", "--schedule.images=8")
    assert train(config, tmp_path / "run")
    assert (tmp_path / "run" / "given.onnx").read_bytes() == onnx.read_bytes()
    onnx.unlink()
    assert train(tiny(*SHORT, f"--purifier.recognizer={onnx}", "--schedule.images=16"), tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--purifier.recognizer=nowhere",), "nowhere: no such file; give a run folder"),
        (("--purifier.recognizer=casia",), "casia: no such file"),
        (("--purifier.recognizer=FACES",), "faces: not a run"),
        (("--purifier.recognizer=drawn",), "size: 32 is not allowed; drawn takes faces of 64 pixels"),
        (("--purifier.recognizer=RUN", "--training.start_from=drawn"), "drawn is not the run of a purifier"),
        (("--purifier.recognizer=RUN", "--purifier.components=100"), "the set has 72 faces"),
        (("--purifier.recognizer=RUN", "--validation.shards=FACES"), "trains nothing that recognizes"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_written(
    tiny: Callable[..., Config],
    recognizer: Path,
    faces: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
) -> None:
    given = [option.replace("RUN", str(recognizer)).replace("FACES", str(faces)) for option in options]
    with pytest.raises(UserError, match=re.escape(message)) as error:
        train(tiny(*SHORT, *given), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_copy_that_was_replaced_is_refused(tiny: Callable[..., Config], runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "whole", tmp_path / "run")
    config = open_run(run).config
    copied = run / "given.safetensors"
    outside = tmp_path / "outside.safetensors"
    copied.rename(outside)
    copied.symlink_to(outside)
    with pytest.raises(UserError, match=r"given.safetensors., which is outside the folder"):
        train(config, run)
    copied.unlink()
    with pytest.raises(UserError, match=r"given.safetensors: is missing; copy it back"):
        train(config, run)
