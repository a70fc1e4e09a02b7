"""What is not finite: dropped with all that it touched, never saved, never hidden, and left behind.

All through the real loop, with real NaNs.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparface.config import Config
from sparface.errors import UserError
from sparface.recipes import recognizer as recipe
from sparface.runs import checkpoint_files
from sparface.runs.checkpoint import CheckpointStore, read_weights
from sparface.runs.checkpoint_files import INDEX_FILE, read_state, write_state
from sparface.runs.record import read_metrics
from sparface.shards import Batch
from sparface.training.loop import Trainer, train
from sparface.training.watch import HOPELESS

Tiny = Callable[..., Config]
KEEP = "--training.keep_checkpoints=99"
STEP = 8
"""Images of an update."""


def events(run: Path, kind: str) -> list[str]:
    records = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [record["message"] for record in records if record["kind"] == kind]


def everything(checkpoint: Path) -> dict[str, torch.Tensor]:
    groups = ("networks", "optimizers")
    return {f"{g}.{k}": t for g in groups for k, t in read_weights(checkpoint, g).items()}


def newest(run: Path) -> Path:
    found = CheckpointStore(run / "checkpoints").newest()
    assert found is not None
    return found


def saved(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


VARIED = "--data.variation=classic"
"""Without variation bytes go straight to a kernel, and a byte cannot be NaN."""


def poison_faces(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """NaN in the pictures of these steps, counted from 1."""
    honest, calls = vars(recipe)["faces"], [0]

    def poisoned(*args: Any) -> torch.Tensor:
        calls[0] += 1
        return honest(*args) * (float("nan") if calls[0] in steps else 1.0)

    monkeypatch.setattr(recipe, "faces", poisoned)


def test_a_step_that_is_not_finite_leaves_no_trace(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, BatchNorm statistics and optimizers are, to the bit, those of a run that left the step out."""
    config = tiny("--schedule.images=80", KEEP, VARIED)
    with monkeypatch.context() as patch:
        poison_faces(patch, 3)
        assert train(config, tmp_path / "poisoned")
    honest, calls = Trainer.update, [0]

    def leaving_out(trainer: Trainer, batches: list[Batch]) -> int:
        calls[0] += 1
        if calls[0] == 3:
            trainer.meter.add(
                {name: torch.tensor(torch.nan) for name in trainer.meter.names[:-1]}
                | {"skipped": torch.tensor(1.0)},
                STEP,
                [],
            )
            return STEP
        return honest(trainer, batches)

    monkeypatch.setattr(Trainer, "update", leaving_out)
    assert train(tiny("--schedule.images=80", KEEP, VARIED, "--training.log_every=80"), tmp_path / "without")
    one, other = everything(newest(tmp_path / "poisoned")), everything(newest(tmp_path / "without"))
    assert one.keys() == other.keys()
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert differing == []
    assert sum(record["skipped"] for record in read_metrics(tmp_path / "poisoned")) == 1


def break_statistics(monkeypatch: pytest.MonkeyPatch, at: int, times: int) -> None:
    """What faulty memory would do: a statistic becomes NaN when the run reaches `at` images."""
    honest, done = Trainer.update, [0]

    def breaking(trainer: Trainer, batches: list[Batch]) -> int:
        images = honest(trainer, batches)
        if trainer.images_seen + images == at and done[0] < times:
            done[0] += 1
            next(b for b in trainer.recipe.networks["recognizer"].buffers() if b.dim()).fill_(torch.nan)
        return images

    monkeypatch.setattr(Trainer, "update", breaking)


@pytest.mark.parametrize("log_every", [16, 240], ids=["seen by the report", "seen by the checkpoint"])
def test_a_state_that_is_not_finite_is_never_saved(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    break_statistics(monkeypatch, at=72, times=1)
    run = tmp_path / "run"
    assert train(tiny(f"--training.log_every={log_every}", KEEP), run)
    assert events(run, "rollback") == ["to 40 images"]
    assert [path.name for path in saved(run)] == [f"step-{n:09d}" for n in (40, 80, 120, 160, 200, 240)]
    for path in saved(run):
        assert all(torch.isfinite(tensor).all() for tensor in everything(path).values()), path


def test_the_last_step_is_not_saved_either(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_statistics(monkeypatch, at=80, times=1)
    run = tmp_path / "run"
    assert train(tiny("--schedule.images=80", "--training.log_every=1000"), run)
    assert events(run, "rollback") == ["to 40 images"]
    assert all(torch.isfinite(tensor).all() for tensor in everything(newest(run)).values())


def test_a_run_stopped_in_such_a_state_comes_back(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = tmp_path / "run", tiny("--training.log_every=1000")
    with monkeypatch.context() as patch:
        break_statistics(patch, at=64, times=1)
        breaking = Trainer.update

        def stopping(trainer: Trainer, batches: list[Batch]) -> int:
            images = breaking(trainer, batches)
            if trainer.images_seen + images == 64:
                trainer.stop.reason = "SIGTERM"
            return images

        patch.setattr(Trainer, "update", stopping)
        assert not train(config, run)
    assert newest(run).name == "step-000000040"
    assert train(config, run)
    assert newest(run).name == "step-000000240"


def test_the_second_rollback_from_a_place_goes_further_back(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_statistics(monkeypatch, at=104, times=2)
    run = tmp_path / "run"
    assert train(tiny(), run)
    assert events(run, "rollback") == ["to 80 images", "to 40 images"]
    assert newest(run).name == "step-000000240"


def test_what_diverges_from_everywhere_ends_in_one_line(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_statistics(monkeypatch, at=104, times=99)
    with pytest.raises(UserError, match=r"diverged at 112 images after 3 rollbacks"):
        train(tiny(), tmp_path / "run")
    assert events(tmp_path / "run", "rollback") == ["to 80 images", "to 40 images", "to 80 images"]


def spoil(path: Path) -> None:
    """Put a NaN into a checkpoint's statistics, with digests that hold."""
    tensors = json.loads((path / INDEX_FILE).read_text())["tensors"]
    name = next(name for name in tensors if name.endswith("running_var"))
    ((file, offset, _),) = tensors[name]["parts"]
    data = bytearray((path / file).read_bytes())
    struct.pack_into("<f", data, offset, float("nan"))
    (path / file).write_bytes(data)
    state = read_state(path)
    write_state(path / "state.json", state | {"files": checkpoint_files.digests(path, 0)})


def test_a_restart_passes_over_a_checkpoint_that_is_not_finite(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(tiny("--schedule.images=80"), run)
    spoil(run / "checkpoints" / "step-000000080")
    assert train(tiny("--schedule.images=160"), run)
    (event,) = events(run, "damaged_checkpoint")
    assert "step-000000080: has non-finite values" in event
    assert events(run, "resume") == ["from step-000000040"]
    spoil(run / "checkpoints" / "step-000000120")
    spoil(run / "checkpoints" / "step-000000160")
    with pytest.raises(UserError, match=r"step-000000160: has non-finite values, and no other"):
        train(tiny("--schedule.images=200"), run)


def test_a_metric_that_is_not_finite_is_left_out_of_its_mean(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logged one by one, the poisoned losses have no value; together they are the mean of the others."""
    logged = {}
    for log_every in (8, 16):
        with monkeypatch.context() as patch:
            poison_faces(patch, 3, 5, 6)
            config = tiny(VARIED, "--schedule.images=64", f"--training.log_every={log_every}")
            assert train(config, tmp_path / str(log_every))
        logged[log_every] = [record["loss"] for record in read_metrics(tmp_path / str(log_every))]
    single = logged[8]
    assert [number for number, loss in enumerate(single, 1) if loss is None] == [3, 5, 6]
    expected = [(single[0] + single[1]) / 2, single[3], None, (single[6] + single[7]) / 2]
    assert logged[16] == [None if value is None else pytest.approx(value) for value in expected]
    assert "NaN" not in (tmp_path / "16" / "metrics.jsonl").read_text()


def test_losses_that_are_not_finite_leave_the_watch_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its running mean is that of the finite losses, and each interval is reported."""
    poison_faces(monkeypatch, *range(8, 18))
    run = tmp_path / "run"
    assert train(tiny(VARIED, "--schedule.images=144", "--training.log_every=8"), run)
    finite = [record["loss"] for record in read_metrics(run) if record["loss"] is not None]
    assert len(finite) == 8
    mean = read_state(newest(run))["facts"]["watch"]["mean"]
    assert mean == pytest.approx(sum(finite) / len(finite), rel=1e-6)
    assert "loss is nan" in events(run, "non_finite")


def test_a_run_without_a_single_update_stops(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_faces(monkeypatch, *range(4, 1000))
    run = tmp_path / "run"
    for _ in range(2):  # started again, it must not go on either
        with pytest.raises(UserError, match=f"all updates of the last {HOPELESS} intervals"):
            train(tiny(VARIED, "--training.log_every=8", "--schedule.images=800"), run)
    assert len(read_metrics(run)) < 3 + 2 * HOPELESS


def test_some_skipped_updates_are_no_reason_to_stop(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_faces(monkeypatch, *range(1, 1000, 2))
    run = tmp_path / "run"
    config = tiny(VARIED, "--training.log_every=16", f"--schedule.images={16 * (HOPELESS + 2)}")
    assert train(config, run)
    assert {record["skipped"] for record in read_metrics(run)} == {1.0}
