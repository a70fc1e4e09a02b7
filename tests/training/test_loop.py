"""The loop: learns, resumes to the bit after SIGKILL, and does not care how many processes it has."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_runs import assert_same, losses, seen, start, weights

from sparface import settings
from sparface.config import Config
from sparface.errors import UserError
from sparface.runs.checkpoint import CheckpointStore, read_weights
from sparface.training.loop import train

Tiny = Callable[..., Config]


@pytest.mark.parametrize("recipe", ["recognizer", "sparring"])
def test_training_learns(tiny: Tiny, tmp_path: Path, recipe: str) -> None:
    config = tiny(
        "--recipe",
        recipe,
        "--schedule.images",
        "480",
        "--optimizer.learning_rate",
        "3e-3",
        "--training.log_every",
        "80",
    )
    assert train(config, tmp_path / "run")
    logged = losses(tmp_path / "run")
    assert [r["images"] for r in logged] == list(range(80, 481, 80))
    assert logged[-1]["cross_entropy"] < 0.8 * logged[0]["cross_entropy"]
    assert settings.load(tmp_path / "run" / "config.yaml") == config
    assert (tmp_path / "run" / "checkpoints" / "step-000000480").is_dir()
    assert list((tmp_path / "run" / "previews").glob("*.png"))


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    start(tiny("--recipe", "sparring", "--generator.noise", "0.1"), folder / "run", folder / "keys").finish()
    return folder


def test_five_kills_change_nothing(undisturbed: Path, tiny: Tiny, tmp_path: Path) -> None:
    """SIGKILL some random steps after the next checkpoint, every other time while one is being written."""
    config = tiny("--recipe", "sparring", "--generator.noise", "0.1")
    run, keys, moments = tmp_path / "run", tmp_path / "keys", random.Random(time.time_ns())
    writing = run / "checkpoints"
    keys.touch()
    for kill in range(5):
        job = start(config, run, keys)
        steps, left = count(keys) + moments.randint(7, 9), set(writing.glob(".writing-*"))
        if kill % 2:
            job.wait_for(lambda left=left: set(writing.glob(".writing-*")) - left, 120)  # type: ignore[misc]
        else:
            job.wait_for(lambda steps=steps: count(keys) >= steps, 120)  # type: ignore[misc]
        assert job.running(), job.finish()
        job.ranks[0].kill()
        job.ranks[0].join()
    assert "resuming at" in start(config, run, keys).finish()
    assert_same(weights(run), weights(undisturbed / "run"))
    assert losses(run) == losses(undisturbed / "run")
    assert seen(keys) == seen(undisturbed / "keys")


def count(file: Path) -> int:
    return file.read_text().count("\n")


def test_one_two_one_processes_see_the_same_faces(undisturbed: Path, tiny: Tiny, tmp_path: Path) -> None:
    """Stopped politely in the middle of an epoch and gone on with another number of processes."""
    run, keys = tmp_path / "run", tmp_path / "keys"
    common = ("--recipe", "sparring", "--generator.noise", "0.1")
    for images, processes in ((56, 1), (120, 2), (240, 1)):
        config = tiny(*common, "--schedule.images", str(images))
        start(config, run, keys, processes).finish()
    assert seen(keys) == seen(undisturbed / "keys")
    expected = {r["images"]: r["loss"] for r in losses(undisturbed / "run")}
    found = {r["images"]: r["loss"] for r in losses(run)}
    assert found.keys() == expected.keys()
    for images, loss in found.items():
        assert loss == pytest.approx(expected[images], rel=2e-3), images


def test_a_signal_saves_and_stops(tiny: Tiny, tmp_path: Path) -> None:
    """SIGTERM to every process of the job, as schedulers send it: also to the decoding workers."""
    run = tmp_path / "run"
    job = start(tiny("--schedule.images", "80000"), run, tmp_path / "keys")
    job.wait_for((run / "metrics.jsonl").exists, 60)
    job.signal_all(signal.SIGTERM)
    assert "SIGTERM" in job.finish(code=75)
    assert CheckpointStore(run / "checkpoints").newest() is not None


def test_a_failure_ends_the_decoding_workers(tiny: Tiny, tmp_path: Path) -> None:
    """A run whose checkpoint can't be written ends with its one line; nothing is left hanging."""
    run = tmp_path / "run"
    file = tmp_path / "config.yaml"
    settings.save(tiny(), file)
    run.mkdir()
    (run / "config.yaml").touch()
    (run / "checkpoints").write_text("a file where the folder should be")
    command = [sys.executable, "-m", "sparface", "train", "--config", str(file), "--out", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "was not written" in done.stderr


def test_two_jobs_cannot_share_a_run(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start(tiny("--schedule.images", "80000"), run, tmp_path / "keys")
    job.wait_for((run / "metrics.jsonl").exists, 60)
    try:
        with pytest.raises(UserError, match="another job is training there"):
            train(tiny(), run)
    finally:
        job.kill()


def test_a_folder_that_is_no_run_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty and not a run"):
        train(tiny(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_checkpoint_of_another_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny("--schedule.images", "16"), tmp_path / "run")
    with pytest.raises(UserError, match=r"belongs to another model \(recognizer is"):
        train(tiny("--recognizer.embedding", "48"), tmp_path / "run")


def test_a_batch_that_does_not_divide_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("--data.identities_per_batch", "5")
    out = start(config, tmp_path / "run", tmp_path / "keys", processes=2).finish(code=1)
    assert "identities_per_batch" in out


@pytest.mark.parametrize("update", ["shared", "alternating"])
def test_a_checkpoint_copied_as_late_as_possible_is_the_same(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: str
) -> None:
    """The copy is made beside the next step: here at the last moment, when that step wants to update."""
    config = tiny(
        *("--recipe=sparring", f"--sparring.update={update}", "--training.average_half_life=16"),
        *("--schedule.images=32", "--training.checkpoint_every=8", "--training.keep_checkpoints=9"),
    )
    assert train(config, tmp_path / "run")
    wanted = threading.Event()
    stage, copied = CheckpointStore._stage, CheckpointStore.copied

    def late(store: CheckpointStore, tensors: dict[str, Any]) -> dict[str, Any]:
        wanted.clear()
        wanted.wait(10)
        return stage(store, tensors)

    def want(store: CheckpointStore) -> None:
        while store._thread is not None and not store._copied.is_set():
            wanted.set()
            time.sleep(0.001)
        copied(store)

    monkeypatch.setattr(CheckpointStore, "_stage", late)
    monkeypatch.setattr(CheckpointStore, "copied", want)
    monkeypatch.setattr(
        CheckpointStore, "_wait", lambda store, wait=CheckpointStore._wait: (want(store), wait(store))
    )
    assert train(config, tmp_path / "late")
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert len(saved) == 4
    for name in saved:
        one, other = (everything(tmp_path / run / "checkpoints" / name) for run in ("run", "late"))
        assert_same(one, other)


def everything(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    groups = ("networks", "optimizers", "averages")
    return {f"{g}.{k}": t for g in groups for k, t in read_weights(checkpoint, g).items()}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("recipe", ["recognizer", "sparring"])
def test_mixed_precision_trains(tiny: Tiny, tmp_path: Path, recipe: str, precision: str) -> None:
    config = tiny("--recipe", recipe, "--training.precision", precision, "--schedule.images", "32")
    assert train(config, tmp_path / "run")
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run", recipe).values())


def test_accumulation_takes_the_same_images(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(
        "--training.accumulate", "2", "--optimizer.clip_norm", "1.0", "--training.average_half_life", "64"
    )
    assert train(config, tmp_path / "run")
    assert losses(tmp_path / "run")[-1]["images"] == 240


def test_a_step_that_is_not_finite_is_dropped(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One poisoned batch: counted, written to the events, and the weights stay finite."""
    import sparface.recipes.recognizer as recipe

    honest, calls = recipe.identity_loss, [0]

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        loss, metrics = honest(*args, **kwargs)
        return (loss * float("nan") if calls[0] == 3 else loss), metrics

    monkeypatch.setattr(recipe, "identity_loss", poisoned)
    assert train(tiny(), tmp_path / "run")
    assert sum(r["skipped"] for r in losses(tmp_path / "run")) == 1
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert "non_finite" in {e["kind"] for e in events}
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run", "recognizer").values())
