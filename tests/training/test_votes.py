"""Stopping together: no rank waits for the others' answer, and all stop after the same step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from recorded_runs import assert_same, start, weights

from processes import in_processes
from sparface import settings
from sparface.config import Config
from sparface.training.strategies.base import Strategy
from sparface.training.strategies.distributed import DDP
from tiny_config import TINY

Tiny = Callable[..., Config]
ASKED = {0: 7, 1: 4}
"""The vote at which each rank is asked to stop."""


def vote(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    strategy = DDP(settings.load("smoke", [f"--{k}={v}" for k, v in TINY.items()]), torch.device("cpu"))
    steps = 0
    while not strategy.vote(steps >= ASKED[rank]):
        steps += 1
    Path(folder, f"{rank}.json").write_text(json.dumps(steps))
    dist.barrier()
    dist.destroy_process_group()


def test_all_stop_after_the_same_step_one_late(tmp_path: Path) -> None:
    in_processes(2, vote, str(tmp_path))
    steps = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert steps == [5, 5]


def first_answer(rank: int, folder: str) -> None:
    """Rank 1 votes long after rank 0, which does not wait for it."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    strategy = DDP(settings.load("smoke", [f"--{k}={v}" for k, v in TINY.items()]), torch.device("cpu"))
    dist.barrier()
    began = time.monotonic()
    if rank:
        time.sleep(2)
    strategy.vote(False)
    Path(folder, f"{rank}.json").write_text(json.dumps(time.monotonic() - began))
    dist.barrier()
    dist.destroy_process_group()


def test_a_vote_does_not_wait_for_the_others(tmp_path: Path) -> None:
    in_processes(2, first_answer, str(tmp_path))
    assert json.loads((tmp_path / "0.json").read_text()) < 1


def test_one_process_stops_at_once(tiny: Tiny) -> None:
    strategy = Strategy(tiny(), torch.device("cpu"))
    assert strategy.vote(True) and not strategy.vote(False)


def test_a_signal_to_one_of_two_processes_stops_both_and_the_run_goes_on_exactly(
    tiny: Tiny, tmp_path: Path
) -> None:
    """Under torchrun, saved where both stand, and resumed to the bits of a run that nobody stopped."""
    config = tiny("--recipe=recognizer", "--schedule.images=400", "--training.timeout=60")
    start(config, tmp_path / "whole", tmp_path / "keys-whole", processes=2).finish()
    run, file = tmp_path / "run", tmp_path / "config.yaml"
    settings.save(config, file)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*torchrun, "-m", "sparface", "train", f"--config={file}", f"--out={run}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (run / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.005)
    # the ranks are torchrun's children
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "run the same command to resume" in out
    start(config, run, tmp_path / "keys", processes=2).finish()
    assert_same(weights(run, "recognizer"), weights(tmp_path / "whole", "recognizer"))
