"""A run whose sparring is governed: killed and resumed, it is the run that nobody stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recorded_runs import assert_same, losses, seen, start, weights

from sparface.config import Config
from sparface.runs.checkpoint import CheckpointStore, read_weights


def strength(run: Path) -> float:
    newest = CheckpointStore(run / "checkpoints").newest()
    assert newest is not None
    return float(read_weights(newest, "frozen.governor")["strength"])


def test_a_governed_run_goes_on_with_its_strength(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """Hardly any sparring face is recognized yet, so the strength falls with every batch."""
    config = tiny("--recipe=sparring", "--sparring.band_low=0.9", "--sparring.band_high=0.95")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start(config, whole, tmp_path / "whole.keys").finish()
    keys = tmp_path / "killed.keys"
    keys.touch()
    job = start(config, killed, keys)
    store = CheckpointStore(killed / "checkpoints")  # whose writing may be late on a busy machine
    job.wait_for(lambda: keys.read_text().count("\n") >= 8 and store.newest() is not None, 120)
    assert job.running(), job.finish()
    job.ranks[0].kill()
    job.ranks[0].join()
    assert "resuming at" in start(config, killed, keys).finish()
    logged = [record["strength"] for record in losses(whole)]
    assert logged == sorted(logged, reverse=True) and len(set(logged)) == len(logged)
    assert strength(killed) == strength(whole) < min(logged) < 1
    assert losses(killed) == losses(whole) and seen(keys) == seen(tmp_path / "whole.keys")
    assert_same(weights(killed), weights(whole))
