"""What a training step asks of GPUs, networks, file system and tracking server, on paper.

    python benchmarks/roofline.py [--quick]

Counted on one real step of `configs/celeba.yaml` on the CPU (FaceNet and generator, 128 pixels, bf16): FLOPs
of matrix products and convolutions, bytes that all operators read and write, operators dispatched,
BatchNorms, parameters, and bytes of a checkpoint. From these come the times on 1, 8 and 1,024 H100s, at the
peaks named in `H100`: nothing of it is measured. The last line is one JSON object without a bar.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass

import torch
from stepping import Step, settings, step
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

H100 = {"flops": 989e12, "memory": 3.35e12, "nvlink": 450e9, "network": 50e9, "launch": 5e-6}
"""Dense bf16 FLOP/s, bytes/s of memory, bytes/s a GPU sends inside a node and between nodes, and seconds that
Python takes for an operator."""
LATENCY = {1: 0.0, 8: 20e-6, 1024: 60e-6}
"""Seconds of a small collective among so many GPUs."""
SHARE = 0.4
"""Share of the peak FLOP/s that convolutions of this size can reach."""
PNG, JPG = 21_000, 4_500
"""Bytes of a face of 112 pixels."""
DECODE = 10_000
"""Faces a second that one core decodes."""
COUNTED = 8
"""Faces of the step that is counted; what is per face grows with the batch, the rest stays."""


@dataclass
class Counts:
    """Of one step."""

    flops_a_face: float
    bytes_a_face: float
    operators: int
    batchnorms: int
    parameters: int
    checkpoint_bytes: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the sparring recipe only")
    a = parser.parse_args()
    found = {name: count(name) for name in (["sparring"] if a.quick else ["recognizer", "sparring"])}
    for name, counts in found.items():
        print(f"\n{name}: " + ", ".join(f"{key} {value:,.0f}" for key, value in asdict(counts).items()))
        show([paper(counts, gpus, faces) for gpus in LATENCY for faces in (32, 256, 1024)])
    print(json.dumps({"name": "roofline", **{name: asdict(counts) for name, counts in found.items()}}))
    return 0


def count(recipe: str) -> Counts:
    config = settings(recipe, COUNTED, "--size=128", "--training.precision=bf16")
    with step(config) as one:
        counted = one.counted()
        networks = one.strategy.networks.values()
        tensors = [v for v in tree_leaves(one.strategy.tensors()) if isinstance(v, Tensor)]
        return Counts(
            counted.flops / COUNTED,
            counted.bytes / COUNTED,
            counted.operators,
            batchnorms(one),
            sum(p.numel() for network in networks for p in network.parameters()),
            sum(tensor.nbytes for tensor in tensors),
        )


def batchnorms(one: Step) -> int:
    """How often a BatchNorm runs in a step."""
    calls: list[None] = []
    norms = [m for n in one.strategy.networks.values() for m in n.modules() if isinstance(m, _BatchNorm)]
    hooks = [norm.register_forward_hook(lambda *_: calls.append(None)) for norm in norms]
    one()
    for hook in hooks:
        hook.remove()
    return len(calls)


def paper(counts: Counts, gpus: int, faces: int) -> dict[str, float]:
    """Milliseconds and rates of a step of so many faces on each GPU."""
    compute = counts.flops_a_face * faces / H100["flops"] / SHARE
    memory = counts.bytes_a_face * faces / H100["memory"]
    launches = counts.operators * H100["launch"]
    wire = H100["nvlink"] if gpus <= 8 else H100["network"]
    gradients = 2 * (gpus - 1) / gpus * 4 * counts.parameters / wire
    statistics = 2 * counts.batchnorms * LATENCY[gpus]
    # computing and memory take turns in each operator, gradients travel behind the backward
    seconds = max(compute + memory, launches, gradients) + statistics
    images = gpus * faces / seconds
    return {
        "GPUs": gpus,
        "faces each": faces,
        "compute, ms": compute * 1e3,
        "memory, ms": memory * 1e3,
        "launches, ms": launches * 1e3,
        "gradients, ms": gradients * 1e3,
        "BatchNorm, ms": statistics * 1e3,
        "step, ms": seconds * 1e3,
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
