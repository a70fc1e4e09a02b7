"""Runs that start from another run, a weights file or an ONNX file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from small_onnx import write
from sparface.config import Config
from sparface.errors import UserError
from sparface.export import export
from sparface.faces.drawn import draw_set
from sparface.models.batchnorm import plain_state
from sparface.recipes import Recipe, build_recipe
from sparface.runs.checkpoint import read_weights
from sparface.runs.onnx_copy import buildable
from sparface.runs.start import begin
from sparface.runs.trained import open_run
from sparface.shards import ShardSet
from sparface.training.data import TrainingData
from sparface.training.loop import train

Tiny = Callable[..., Config]
State = dict[str, Tensor]
SHORT = ("--data.workers=0", "--training.log_every=8", "--training.preview_every=1000")
# what a recognizer is taught, from the small ONNX file
TAUGHT = (
    *(*SHORT, "--recognizer.backbone=onnx", "--recognizer.embedding=16", "--objective.distillation=1"),
    *("--objective.triplet=0", "--objective.cross_entropy=0", "--optimizer.learning_rate=1e-3"),
)


@pytest.fixture(scope="module")
def first(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that keeps an average, far behind its weights."""
    run = tmp_path_factory.mktemp("first") / "run"
    options = (
        "--schedule.images=24",
        "--training.average_half_life=1000000",
        "--optimizer.learning_rate=1e-2",
    )
    assert train(tiny(*SHORT, *options), run)
    return run


def begun(config: Config) -> tuple[Recipe, dict[str, str]]:
    """The recipe of a new run, as it begins."""
    data = TrainingData(config)
    torch.manual_seed(7)
    recipe = build_recipe(buildable(config), len(data.classes))
    return recipe, begin(recipe, config, data.digest)


def same(state: State, other: State) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


def averages(run: Path, name: str) -> State:
    return read_weights(open_run(run).checkpoint, f"averages.{name}")


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_a_run_on_the_same_faces_gives_its_averages_and_its_head(tiny: Tiny, first: Path) -> None:
    recipe, started = begun(tiny(f"--training.start_from={first}"))
    for name in ("recognizer", "head"):
        assert same(recipe.networks[name].state_dict(), averages(first, name))
    state = open_run(first).checkpoint / "state.json"
    assert started == {"source": str(first), "sha256": hashlib.sha256(state.read_bytes()).hexdigest()}


def test_other_people_get_a_head_of_their_own(tiny: Tiny, first: Path, tmp_path: Path) -> None:
    """Even if there are as many of them."""
    draw_set(tmp_path / "others", 12, 6, size=32, seed=5)
    recipe, _ = begun(tiny(f"--training.start_from={first}", f"--data.shards={tmp_path / 'others'}"))
    assert same(recipe.networks["recognizer"].state_dict(), averages(first, "recognizer"))
    assert recipe.networks["head"].weight.shape == averages(first, "head")["weight"].shape
    assert not same(recipe.networks["head"].state_dict(), averages(first, "head"))


def test_another_recipe_takes_what_it_has_too(tiny: Tiny, first: Path) -> None:
    """Sparring splits the norms; both halves start alike, and the generator is new."""
    recipe, _ = begun(tiny("--recipe=sparring", f"--training.start_from={first}"))
    state = recipe.networks["recognizer"].state_dict()
    assert same(plain_state(state), averages(first, "recognizer"))
    assert all(torch.equal(v, state[k.replace(".auxiliary.", ".main.")]) for k, v in state.items())


def test_weights_files_are_the_backbones(tiny: Tiny, first: Path, tmp_path: Path) -> None:
    network: Any = open_run(first).network("recognizer")
    save_file(network.plain_state(), tmp_path / "a.safetensors")
    recipe, _ = begun(tiny(f"--training.start_from={tmp_path / 'a.safetensors'}"))
    assert same(recipe.networks["recognizer"].state_dict(), network.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--training.start_from=RUN", "--recognizer.embedding=16"), r"step-000000024: does not match"),
        (("--training.start_from=RUN", "--recognizer.backbone=onnx"), r"run: has no start.onnx; set rec"),
        (("--training.start_from=nowhere",), r"nowhere: no such file; give a run folder"),
        (("--training.start_from=RUN/checkpoints",), r"checkpoints: not a run"),
    ],
)
def test_what_does_not_fit(tiny: Tiny, first: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        begun(tiny(*(option.replace("RUN", str(first)) for option in options)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--recognizer.backbone=onnx",), r"training.start_from: is empty; give the ONNX file"),
        (
            ("--training.start_from=a.onnx",),
            r"backbone: timm:test_resnet is not allowed with a.onnx; must be on",
        ),
        (("--training.start_from=drawn",), r"not allowed with drawn; must be small"),
        (("--training.start_from=vggface2",), r"not allowed with vggface2; must be inception_resnet_v1"),
    ],
)
def test_settings_that_do_not_go_together(tiny: Tiny, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(*options)


def test_a_folder_of_the_same_name_does_not_hide_the_packaged_recognizer(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "drawn").mkdir()
    monkeypatch.chdir(tmp_path)
    small = ("--recognizer.backbone=small", "--recognizer.embedding=256", "--size=64")
    recipe = build_recipe(tiny("--recipe=recognizer", *small), 4)
    assert recipe.read_weights("drawn")["recognizer"]


def test_a_run_from_an_onnx_file_needs_it_no_more(tiny: Tiny, tmp_path: Path) -> None:
    file, run = write(tmp_path / "a.onnx"), tmp_path / "run"
    options = (*TAUGHT, f"--training.start_from={file}")
    whole = tiny(*options, "--schedule.images=48")
    assert train(whole, tmp_path / "whole")
    assert train(tiny(*options, "--schedule.images=24"), run)
    (start,) = events(run)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (start["kind"], start["source"], start["sha256"]) == ("start", str(file), digest)
    assert (run / "start.onnx").read_bytes() == file.read_bytes()
    file.unlink()
    assert train(whole, run)
    (resumed, there) = (open_run(folder) for folder in (run, tmp_path / "whole"))
    assert same(resumed.weights("recognizer"), there.weights("recognizer"))
    assert same(*(read_weights(one.checkpoint, "frozen.teacher") for one in (resumed, there)))
    assert resumed.facts["started"] == {"source": str(file), "sha256": digest}
    further, _ = begun(tiny(*TAUGHT, f"--training.start_from={run}"))
    for network in (further.networks["recognizer"], further.frozen["teacher"]):
        assert same(network.state_dict(), resumed.weights("recognizer"))


def test_the_first_step_from_an_onnx_file_is_the_files(tiny: Tiny, tmp_path: Path, faces: Path) -> None:
    """Faces that are not varied are where the teacher puts them, and an export runs as the file does."""
    file, run = write(tmp_path / "a.onnx"), tmp_path / "run"
    options = (*TAUGHT, f"--training.start_from={file}", "--data.variation=none", "--schedule.images=8")
    still = ("--recognizer.fixed_statistics=true", "--optimizer.learning_rate=1e-12")
    assert train(tiny(*options, *still), run)
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert metrics["distillation"] == pytest.approx(0, abs=1e-5)
    export(run, tmp_path / "out")
    x = torch.from_numpy(next(ShardSet.open(faces).faces()).image).permute(2, 0, 1)[None].float() / 255
    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (file, tmp_path / "out" / "recognizer.onnx")
    ]
    there = torch.from_numpy(sessions[0].run(None, {"input": (2 * x - 1).numpy()})[0])
    found = torch.from_numpy(sessions[1].run(None, {"faces": x.numpy()})[0])
    torch.testing.assert_close(found, torch.nn.functional.normalize(there), atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="start from its run instead"):
        begun(tiny(*TAUGHT, f"--training.start_from={tmp_path / 'out' / 'recognizer.onnx'}"))


def test_another_file_in_the_run_is_noticed(tiny: Tiny, tmp_path: Path) -> None:
    file, run = write(tmp_path / "a.onnx"), tmp_path / "run"
    config = tiny(*TAUGHT, f"--training.start_from={file}", "--schedule.images=8")
    assert train(config, run)
    (run / "start.onnx").write_bytes(file.read_bytes() + b"\x42\x00")
    with pytest.raises(UserError, match="its onnx is"):
        open_run(run).network("recognizer")
    (run / "start.onnx").unlink()
    with pytest.raises(UserError, match=r"run: has no start.onnx"):
        open_run(run)
