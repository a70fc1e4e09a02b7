"""Peak memory and CPU time of the triplet loss, forward and backward: of a batch, and of one of 8 ranks.

A rank mines its own 4,096 anchors among all 32,768 faces. Each case runs in a separate process; its peak is
the operating system's high-water mark (VmHWM) minus what was resident before. A B×B matrix of float32 would
be 4 GiB at this batch. The last line is one JSON object.

    python benchmarks/triplet.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from measured import memory

BAR, TIME_BAR = 4.0, 0.2
"""Extra memory over the embeddings' size; CPU time of one rank over that of the whole."""
BATCH, FACES_PER_IDENTITY, RANKS = 32_768, 4, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one size and mining")
    parser.add_argument(
        "--case", nargs=3, metavar=("SIZE", "MINING", "RANKS"), help="run one in this process"
    )
    a = parser.parse_args()
    if a.case:
        size, mining, ranks = a.case
        print(json.dumps(measure(int(size), mining, int(ranks))))
        return 0
    sizes, minings = ([128], ["batch_hard"]) if a.quick else ([128, 512], ["semi_hard", "batch_hard"])
    print("| embedding | mining | anchors | extra, MiB | extra / embeddings | CPU seconds | over the whole |")
    print("|---|---|---|---|---|---|---|")
    ratios, times = {}, {}
    for name in (f"{size} {mining}" for size in sizes for mining in minings):
        whole, part = (case(name, ranks) for ranks in (1, RANKS))
        ratios[name] = round(max(c["extra"] / c["own"] for c in (whole, part)), 3)
        times[name] = round(part["seconds"] / whole["seconds"], 3)
        for c, ranks, share in ((whole, 1, 1.0), (part, RANKS, times[name])):
            print(
                f"| {' | '.join(name.split())} | {BATCH // ranks:,} | {c['extra'] / 2**20:.0f} "
                f"| {c['extra'] / c['own']:.2f} | {c['seconds']:.1f} | {share} |",
                flush=True,
            )
    worst, slowest = max(ratios.values()), max(times.values())
    passed = worst <= BAR and slowest <= TIME_BAR
    found = {"name": "triplet", "ratio": worst, "bar": BAR, "time": slowest, "time_bar": TIME_BAR}
    print(json.dumps({**found, "pass": passed, "all": ratios, "times": times}))
    return 0 if passed else 1


def case(name: str, ranks: int) -> dict[str, float]:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--case", *name.split(), str(ranks)]
    found: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return found


def measure(size: int, mining: str, ranks: int) -> dict[str, float]:
    """Bytes of all embeddings, bytes of the peak above what was resident before, and CPU seconds."""
    import torch
    import torch.nn.functional as F

    from sparface.kernels.triplet import Others, triplet

    def step(faces: int, anchors: int) -> None:
        everyone, labels = embeddings[:faces].requires_grad_(), torch.arange(faces) // FACES_PER_IDENTITY
        if anchors == faces:
            return triplet(everyone, labels, mining=mining).backward()  # type: ignore[arg-type]
        others = Others(everyone, labels, torch.arange(anchors))
        own = embeddings[:anchors].clone().requires_grad_()
        triplet(own, labels[:anchors], mining=mining, others=others).backward()  # type: ignore[arg-type]

    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(BATCH, size), dim=1)
    step(64, 64 // ranks)  # libraries load at first use
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
    before, began = memory("VmRSS"), time.process_time()
    step(BATCH, BATCH // ranks)
    seconds = time.process_time() - began
    return {"own": embeddings.nbytes, "extra": memory("VmHWM") - before, "seconds": seconds}


if __name__ == "__main__":
    raise SystemExit(main())
