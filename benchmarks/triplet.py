"""Peak memory of the triplet loss, forward and backward, over the size of its embeddings.

Each case runs in a separate process; its peak is the operating system's high-water mark (VmHWM) minus what
was resident before. A B×B matrix of float32 would be 4 GiB at this batch. The last line is one JSON object.

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

BAR = 4.0
BATCH, FACES_PER_IDENTITY = 32_768, 4


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one case")
    parser.add_argument("--case", nargs=2, metavar=("SIZE", "MINING"), help="run one case in this process")
    a = parser.parse_args()
    if a.case:
        print(json.dumps(measure(int(a.case[0]), a.case[1])))
        return 0
    sizes, minings = ([128], ["batch_hard"]) if a.quick else ([128, 512], ["semi_hard", "batch_hard"])
    print("| embedding | mining | embeddings, MiB | extra, MiB | extra / embeddings | seconds |")
    print("|---|---|---|---|---|---|")
    ratios = {}
    for size in sizes:
        for mining in minings:
            command = [sys.executable, __file__, "--case", str(size), mining]
            case = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            ratios[f"{size} {mining}"] = ratio = round(case["extra"] / case["own"], 3)
            print(
                f"| {size} | {mining} | {case['own'] / 2**20:.0f} | {case['extra'] / 2**20:.0f} "
                f"| {ratio} | {case['seconds']:.1f} |",
                flush=True,
            )
    worst = max(ratios.values())
    print(json.dumps({"name": "triplet", "ratio": worst, "bar": BAR, "pass": worst <= BAR, "all": ratios}))
    return 0 if worst <= BAR else 1


def measure(size: int, mining: str) -> dict[str, float]:
    """Bytes of the embeddings, bytes of the peak above what was resident before, and seconds."""
    import torch
    import torch.nn.functional as F

    from sparface.kernels.triplet import triplet

    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(BATCH, size), dim=1).requires_grad_()
    labels = torch.arange(BATCH) // FACES_PER_IDENTITY
    few = embeddings.detach()[:64].clone().requires_grad_()
    triplet(few, labels[:64], mining=mining).backward()  # type: ignore[arg-type]  # libraries load at first use
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
    before, began = memory("VmRSS"), time.perf_counter()
    triplet(embeddings, labels, mining=mining).backward()  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    return {"own": embeddings.nbytes, "extra": memory("VmHWM") - before, "seconds": seconds}


if __name__ == "__main__":
    raise SystemExit(main())
