"""Calculate what a training step demands of GPUs, networks and file system.

    python benchmarks/roofline.py

It counts, on real steps of `configs/celeba.yaml` on the CPU (sparring recipe, FaceNet and generator, 128
pixels): FLOPs of matrix products and convolutions, bytes that all operators read and write (in fp32, and
halved for bf16), dispatched operators, exchanges between processes, parameters, and bytes of a checkpoint.
From these it calculates the times on 1, 8 and 1,024 H100s at the peak rates in `H100`; none of them is
measured. The last line is one JSON object without a target.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from stepping import in_a_pair, settings, step
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sparface.config import Config

H100 = {"flops": 989e12, "memory": 3.35e12, "nvlink": 450e9, "network": 50e9, "launch": 5e-6}
"""Dense bf16 FLOP/s, bytes/s of memory, bytes/s that a GPU sends within a node and between nodes, and seconds
that Python takes per operator."""
LATENCY = {1: 0.0, 8: 20e-6, 1024: 60e-6}
"""Number of GPUs → seconds of a small collective."""
SHARE = 0.4
"""Share of the peak FLOP/s that convolutions of this size can reach."""
PNG, JPG = 21_000, 4_500
"""Bytes of a face of 112 pixels."""
DECODE = 10_000
"""Faces per second decoded by one core."""
COUNTED = (8, 16)
"""Faces of the two counted steps; the difference shows what grows with the batch."""


@dataclass
class Counts:
    """Counts of one step."""

    flops_a_face: float
    bytes_a_face: float
    bytes_a_step: float
    """Independent of the batch: mostly weights, gradients and optimizer states."""
    operators: int
    exchanges_synced: int
    """Exchanges between GPUs with `batchnorm: synced`: of statistics, embeddings and gradients."""
    exchanges_ghost: int
    """The same with `batchnorm: ghost`."""
    parameters: int
    checkpoint_bytes: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args()
    counts = count()
    for name, value in asdict(counts).items():
        print(f"{name.replace('_', ' '):20} {value:>20,.0f}")
    show([paper(counts, gpus, faces) for gpus in LATENCY for faces in (32, 256, 1024)])
    print(json.dumps({"name": "roofline", **asdict(counts)}))
    return 0


def count() -> Counts:
    taken = []
    for faces in COUNTED:
        with step(settings("sparring", faces, "--size=128")) as one:
            one()
            taken.append(one.counted())
    few, more = taken
    networks = one.strategy.recipe.networks.values()
    tensors = [value for value in tree_leaves(one.strategy.tensors()) if isinstance(value, Tensor)]
    bytes_a_face = (more.bytes - few.bytes) / 2 / (COUNTED[1] - COUNTED[0])
    return Counts(
        more.flops / COUNTED[1],
        bytes_a_face,
        more.bytes / 2 - bytes_a_face * COUNTED[1],
        more.operators,
        exchanges("synced"),
        exchanges("ghost"),
        sum(p.numel() for network in networks for p in network.parameters()),
        sum(tensor.nbytes for tensor in tensors),
    )


def exchanges(batchnorm: str) -> int:
    """Count the exchanges of a step, with two processes."""
    groups = ("--training.batchnorm_group=4",)  # of which each process has one
    config = settings("sparring", COUNTED[0], "--size=128", f"--training.batchnorm={batchnorm}", *groups)
    return int(in_a_pair(count_exchanges, config))


def count_exchanges(config: Config, file: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    with step(config) as one:
        for _ in range(2):  # DDP broadcasts the order of its buckets after the first step
            one()
        with torch.profiler.profile() as profile:
            one()
        if one.strategy.rank == 0:
            events = profile.key_averages()
            file.write_text(json.dumps(sum(e.count for e in events if e.key.startswith("gloo:"))))


def paper(counts: Counts, gpus: int, faces: int) -> dict[str, float]:
    """Calculated milliseconds and rates of a step with `faces` faces on each GPU."""
    compute = counts.flops_a_face * faces / H100["flops"] / SHARE
    memory = (counts.bytes_a_step + counts.bytes_a_face * faces) / H100["memory"]
    launches = counts.operators * H100["launch"]
    wire = H100["nvlink"] if gpus <= 8 else H100["network"]
    gradients = 2 * (gpus - 1) / gpus * 4 * counts.parameters / wire
    # compute and memory alternate in each operator; gradients are exchanged during the backward
    alone = max(compute + memory, launches, gradients)
    synced, ghost = (n * LATENCY[gpus] for n in (counts.exchanges_synced, counts.exchanges_ghost))
    images = gpus * faces / (alone + synced)
    return {
        "GPUs": gpus,
        "faces each": faces,
        "compute, ms": compute * 1e3,
        "memory, ms": memory * 1e3,
        "launches, ms": launches * 1e3,
        "gradients, ms": gradients * 1e3,
        "exchanges, ms": synced * 1e3,
        "step, ms": (alone + synced) * 1e3,
        "ghost, ms": (alone + ghost) * 1e3,
        "images/s": images,
        "PNG, MB/s": images * PNG / 1e6,
        "JPEG, MB/s": images * JPG / 1e6,
        "cores a GPU": images / gpus / DECODE,
    }


def show(rows: list[dict[str, float]]) -> None:
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print(
            "| "
            + " | ".join(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in row.values())
            + " |"
        )


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
