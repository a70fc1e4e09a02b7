"""Runs handed from strategy to strategy by a pair of processes."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from torch import distributed as dist

from processes import free_port, in_processes
from sparface.config import Config
from sparface.recipes import registry
from sparface.shards import Batch
from sparface.training import loop


@dataclass(frozen=True)
class Segment:
    """A part of a run: its strategy (ddp, fsdp or zero0 to zero3), its number of processes, and the
    images at which it stops and the next part takes over."""

    strategy: str
    processes: int
    until: int


@dataclass(frozen=True)
class Job:
    """A run and the segments that train it; the last one must reach the schedule's end."""

    config: Config
    run: Path
    segments: list[Segment]


def train_all(jobs: list[Job]) -> None:
    """Train every run, one segment after the other, by two processes."""
    in_processes(2, work, jobs, free_port())


def work(rank: int, jobs: list[Job], port_of_store: int) -> None:
    store = dist.TCPStore("127.0.0.1", port_of_store, 2, is_master=rank == 0)
    every = [(job, segment) for job in jobs for segment in job.segments]
    for number, (job, segment) in enumerate(every):
        if rank == 0:  # found just before its use: another process may take a free port any time
            store.set(f"port-{number}", str(free_port()))
        port = store.get(f"port-{number}").decode()
        if ":" in job.config.recipe:
            registry.trust(job.config.recipe)
        if rank < segment.processes:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"WORLD_SIZE": str(segment.processes), "MASTER_PORT": port}
            train(job.config, job.run, segment)
        store.set(f"{number}-{rank}", "done")
        store.wait([f"{number}-{peer}" for peer in range(2)])
    if rank:
        store.set("bye", "")
    else:
        store.wait(["bye"])  # the store is this process's


def train(config: Config, run: Path, segment: Segment) -> None:
    """As `sparface train`, but stopped, as by a signal, at the segment's end."""
    strategy = {"strategy": segment.strategy}
    if segment.strategy.startswith("zero"):
        strategy = {"strategy": "deepspeed", "deepspeed": segment.strategy}
        forget_numbers()
    config = replace(config, training=replace(config.training, **strategy))  # type: ignore[arg-type]

    class Stopping(loop.Trainer):
        def update(self, batches: list[Batch]) -> int:
            images = super().update(batches)
            if self.images_seen + images >= segment.until:
                self.stop.reason = "the segment's end"
            return images

    original, loop.Trainer = loop.Trainer, Stopping  # type: ignore[misc]
    try:
        assert loop.train(config, run) == (segment.until >= config.schedule.images)
    finally:
        loop.Trainer = original  # type: ignore[misc]


def forget_numbers() -> None:
    """DeepSpeed numbers parameters and modules through a process's life and compares the numbers between
    ranks; after a segment of one process they would differ."""
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init

    Init.param_id = 0
    DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
