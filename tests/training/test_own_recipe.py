"""A recipe that the package does not know does all that ours do, without a line about it in the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from strategy_chain import Job, Segment, train_all

from sparface import settings
from sparface.cli import main
from sparface.runs.trained import open_run
from sparface.shards import ShardSet
from tiny_config import TINY

pytestmark = pytest.mark.timeout(600)
HERE = Path(__file__).parent
NAME = "toy_recipe:Toy"
OPTIONS = [
    f"--{key}={value}" for key, value in TINY.items() if not key.startswith(("recognizer", "generator"))
]
OPTIONS += ["--schedule.images=160", "--training.checkpoint_every=80", "--training.log_every=16"]
OPTIONS += ["--optimizer.learning_rate=1e-3", "--training.preview_every=80"]
OPTIONS += ["--toy.spread_low=9", "--toy.spread=log"]
TRAIN = ["train", "--config", "smoke", "--recipe", NAME, *OPTIONS]


@pytest.fixture(scope="module")
def trusted() -> Iterator[None]:
    """As a user would who keeps using a recipe of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARFACE_RECIPES", NAME)
        yield


@pytest.fixture(scope="module")
def runs(trusted: None, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    segments = {
        "single": [Segment("single", 1, 160)],
        "ddp": [Segment("ddp", 2, 160)],
        "fsdp": [Segment("fsdp", 2, 160)],
        "resumed": [Segment("single", 1, 80), Segment("ddp", 2, 160)],
    }
    more = [f"--recipe={NAME}", f"--data.shards={faces}", f"--validation.shards={faces}"]
    more += ["--validation.every=80", "--validation.pairs=100", "--tracking.enabled=true"]
    config = settings.load("smoke", [*OPTIONS, *more])
    train_all([Job(config, folder / name, parts) for name, parts in segments.items()])
    return folder


def last(run: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        found |= json.loads(line)
    return found


def test_every_strategy_and_a_resumed_run_learn_the_same(runs: Path) -> None:
    single = last(runs / "single")
    assert {"loss", "spread", "critic_loss", "critic/gradient_norm", "validation/accuracy"} <= single.keys()
    for name in ("ddp", "fsdp", "resumed"):
        found = last(runs / name)
        for metric in ("loss", "spread", "critic_loss", "validation/auc"):
            # the AUC is a count of ordered pairs: rounding swaps some of the 2,500
            tolerance = 2e-3 if metric == "validation/auc" else 1e-3 * abs(single[metric])
            assert found[metric] == pytest.approx(single[metric], abs=tolerance), (name, metric)


def test_its_own_rule_watches(runs: Path) -> None:
    events = [json.loads(line) for line in (runs / "ddp/events.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["kind"] == "toys_together"]
    assert event["message"].startswith("toys are close together: 0.") and event["policy"] == "log"


def test_it_is_previewed_tracked_and_compared(runs: Path) -> None:
    assert sorted(p.name for p in (runs / "ddp/previews").iterdir()) == [
        "000000080-negative.png",
        "000000160-negative.png",
    ]
    assert json.loads((runs / "ddp/tracking.json").read_text())["told"] == "FINISHED"
    assert main(["compare", str(runs / "single"), str(runs / "ddp"), "--out", str(runs / "report.html")]) == 0
    page = (runs / "report.html").read_text()
    assert "how far the toys are spread" in page and "a negative of the face" in page and "Toys" in page


def test_a_report_needs_none_of_its_code(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARFACE_RECIPES")
    assert main(["compare", str(runs / "single"), "--out", str(runs / "again.html")]) == 0
    assert main(["evaluate", "verification", "--checkpoint", str(runs / "single"), "--shards", "x"]) == 2


def test_it_is_evaluated_and_exported_by_role(runs: Path, faces: Path, trusted: None) -> None:
    run = runs / "fsdp"
    assert main(["evaluate", "verification", "--checkpoint", str(run), "--shards", str(faces)]) == 0
    assert main(["export", str(run), str(runs / "out")]) == 0
    assert sorted(path.name for path in (runs / "out").iterdir()) == [
        "config.yaml",
        "eye.onnx",
        "eye.safetensors",
    ]
    images = torch.from_numpy(np.stack([face.image for face in ShardSet.open(faces).faces()][:5]))
    x = images.permute(0, 3, 1, 2).float() / 255
    session = onnxruntime.InferenceSession(runs / "out/eye.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = open_run(run).network("recognizer")(x)
    np.testing.assert_allclose(session.run(None, {"faces": x.numpy()})[0], expected.numpy(), atol=1e-5)


def test_a_checkpoint_of_another_toy_is_refused(
    runs: Path, faces: Path, trusted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = runs / "single"
    assert main([*TRAIN, "--toy.width=8", f"--data.shards={faces}", f"--out={out}"]) == 2
    assert "belongs to another model (toy is 4 in the checkpoint and 8 here)" in capsys.readouterr().err


def test_it_is_submitted_by_the_name_that_was_typed(faces: Path, tmp_path: Path) -> None:
    """Without the environment's leave, and from the folder where the recipe lies."""
    environment = {key: value for key, value in os.environ.items() if key != "SPARFACE_RECIPES"}
    submit = [sys.executable, "-m", "sparface", "submit", "--cluster=debug", f"--logs={tmp_path / 'jobs'}"]
    words = [*TRAIN, "--schedule.images=32", f"--data.shards={faces}", f"--out={tmp_path / 'run'}"]
    done = subprocess.run([*submit, *words], cwd=HERE, env=environment, timeout=300)
    assert done.returncode == 0
    assert last(tmp_path / "run")["images"] == 32


def test_the_package_does_not_name_it() -> None:
    for file in (HERE.parents[1] / "src").rglob("*.py"):
        assert "toy_recipe" not in file.read_text(), file
