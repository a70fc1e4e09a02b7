"""Registers, spills and shared memory of every Triton kernel, compiled without a GPU.

The operations are called as in training, on CPU tensors; instead of being launched, each kernel is compiled
for sm_80 (A100) and sm_90 (H100), and `ptxas`, which comes with Triton, reports its resources. --write
updates the table in docs/lab/kernels.md. The last line is one JSON object.

    python benchmarks/kernel_resources.py --write
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import torch.nn.functional as F
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from sparface.kernels import dispatch
from sparface.kernels.common import Figures
from sparface.kernels.normalise import gradient_sums, input_gradient, normalise
from sparface.kernels.synthesize import synthesize_whitened
from sparface.kernels.triplet import Others, triplet
from sparface.kernels.whiten import whiten

PAGE = Path(__file__).parents[1] / "docs" / "lab" / "kernels.md"
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
BEGIN, END = "<!-- benchmarks/kernel_resources.py writes this table -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Resources:
    """Resources of a compiled kernel: registers and spilled bytes per thread, and bytes of shared memory."""

    kernel: str
    precision: str
    capability: int
    warps: int
    registers: int
    spilled: int
    shared: int


class Nowhere:
    """A driver without a device, with what Triton needs in order to compile for `capability`."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(capability: int) -> Iterator[list[tuple[str, Any]]]:
    """Inside, kernels are compiled and listed with their names instead of being launched."""
    made: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled = run(self, *arguments, grid=grid, warmup=True, **options)
        made.append((f"{self.module.rpartition('.')[2].removesuffix('_triton')} {self.__name__}", compiled))

    triton.runtime.driver.set_active(Nowhere(capability))
    JITFunction.run = compile_only
    try:
        yield made
    finally:
        JITFunction.run = run


def exercise(dtype: torch.dtype) -> None:
    """Run every operation forward and backward, at the sizes of training."""
    x = torch.rand(2, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    delta = torch.zeros_like(x).to(dtype).requires_grad_()
    mask = torch.rand(2, 1, 128, 128).to(dtype).requires_grad_()
    made = synthesize_whitened(x, delta, mask, 0.1, dtype)
    torch.autograd.backward(list(made[:3]), [torch.ones_like(out) for out in made[:3]])
    y = whiten(x.detach().to(dtype).requires_grad_(), dtype)
    y.backward(torch.ones_like(y))
    maps = torch.randn(4, 192, 16, 16).to(dtype).contiguous(memory_format=torch.channels_last)
    by = Figures(*torch.rand(4, 2, 192), eps=1e-3)
    normalise(maps, by, relu=True)
    input_gradient(maps, maps, by, gradient_sums(maps, maps, by, relu=True), relu=True)
    embeddings = F.normalize(torch.randn(64, 512), dim=1).to(dtype).requires_grad_()
    for mining in ("semi_hard", "batch_hard"):
        for others in (None, Others(embeddings.detach() + 1, torch.arange(64) // 4)):
            triplet(embeddings, torch.arange(64) // 4, 0.2, mining, others)  # type: ignore[arg-type]


def resources(kernel: str, precision: str, capability: int, compiled: Any) -> Resources:
    """The resources of a kernel, as reported by ptxas."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        chip = f"sm_{capability}{'a' if capability == 90 else ''}"
        command = [str(PTXAS), "-v", f"--gpu-name={chip}", file.name, "-o", os.devnull]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", said))
    registers = int(re.findall(r"Used (\d+) registers", said)[0])
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    return Resources(kernel, precision, capability, warps, registers, spilled, shared)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="bf16 only")
    parser.add_argument("--write", action="store_true", help="update the table in docs/lab/kernels.md")
    a = parser.parse_args()
    dispatch.use("triton")
    found = []
    for precision in ["bf16"] if a.quick else ["fp32", "bf16"]:
        for capability in (80, 90):
            with compiling(capability) as made:
                exercise({"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
            found += [resources(name, precision, capability, compiled) for name, compiled in made]
    text = table(found)
    print(text)
    if a.write:
        page = PAGE.read_text()
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    spilled = sum(r.spilled for r in found)
    print(json.dumps({"name": "kernel_resources", "ratio": spilled, "bar": 0, "pass": spilled == 0}))
    return 0 if spilled == 0 else 1


def table(found: list[Resources]) -> str:
    """One line per kernel and precision, with both GPUs side by side."""
    lines = [
        "| kernel | precision | threads | registers sm_80 / sm_90 | spilled bytes | shared memory, bytes |",
        "|---|---|---|---|---|---|",
    ]
    by_name: dict[tuple[str, str], list[Resources]] = {}
    for r in found:
        by_name.setdefault((r.kernel, r.precision), []).append(r)
    for (kernel, precision), variants in sorted(by_name.items()):
        chips = [[r for r in variants if r.capability == c] for c in (80, 90)]  # report the costliest variant
        columns = [
            " / ".join(str(max(getattr(r, field) for r in chip)) for chip in chips)
            for field in ("registers", "spilled", "shared")
        ]
        lines.append(f"| {kernel} | {precision} | {32 * variants[0].warps} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
