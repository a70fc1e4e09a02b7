"""All benchmarks that need a GPU, in under 8 minutes.

    python benchmarks/gpu.py [--dry-run]

It times the fused kernels, forward and backward, against their torch references, eager and compiled, and then
runs the other benchmarks, whose figures are defined in their own files. Without a GPU it exits with an error;
`--dry-run` runs the references on the CPU, once and on small faces, and lists the rest. The last line is one
JSON object; its ratio is the share of figures that reach their targets.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measured import conclude

from sparface.kernels import dispatch, normalise, synthesize, triplet, whiten
from sparface.kernels.common import Figures, Mining

COMPILE = "step compile --quick"
SCRIPTS = ["step recipes", "step updates", COMPILE, "checkpoint", "loop --rounds=1", "generate --quick"]
LIMIT, COMPILING = 55, 130
"""Maximum seconds of a script, and of the script that compiles its networks."""
FACES, SIZE = 256, 128

Work = Callable[[], object]
Case = tuple[Work, Work, Work | None]
"""Kernel, reference, and compiled reference if there is one."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="check this script, with or without a GPU")
    a = parser.parse_args()
    if not (torch.cuda.is_available() or a.dry_run):
        print("benchmarks/gpu.py: this machine has no GPU that torch can use", file=sys.stderr)
        return 2
    kernels(torch.device("cpu" if a.dry_run else "cuda"), timed_once if a.dry_run else milliseconds)
    if a.dry_run:
        print("and then: " + ", ".join(SCRIPTS))
        return 0
    figures = [figure for words in SCRIPTS if (figure := run(words))]
    for figure in figures:
        print(json.dumps(figure))
    passed = sum(figure["pass"] for figure in figures) / len(SCRIPTS)
    return conclude("gpu", [passed], 1.0, device=torch.cuda.get_device_name(), torch=torch.__version__)


def run(words: str) -> dict[str, Any] | None:
    """The figure of another script; None if it fails or takes too long."""
    began = time.monotonic()
    limit = COMPILING if words == COMPILE else LIMIT
    name, *more = words.split()
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *more]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        print(done.stdout, f"{words}: {time.monotonic() - began:.0f} s", done.stderr[-2000:], flush=True)
        figure: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return figure
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        print(f"{words}: {type(error).__name__} after {time.monotonic() - began:.0f} s", flush=True)
        return None


def milliseconds(work: Work) -> float:
    """Median milliseconds of many calls, each with a cold cache."""
    from triton.testing import do_bench

    return float(do_bench(work, return_mode="median"))


def timed_once(work: Work) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def kernels(device: torch.device, measure: Callable[[Work], float]) -> None:
    """Print the milliseconds of each operation: kernel, reference and compiled reference."""
    print(f"{'':40} {'kernel':>9} {'reference':>9} {'compiled':>9}  ms")
    for name, make in cases(device).items():
        times = [None if work is None else measure(work) for work in make()]
        print(f"{name:40} " + " ".join("        –" if t is None else f"{t:>9.3f}" for t in times), flush=True)
        torch.compiler.reset()


def cases(device: torch.device) -> dict[str, Callable[[], Case]]:
    small = device.type == "cpu"
    faces, size = (4, 32) if small else (FACES, SIZE)
    made: dict[str, Callable[[], Case]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        made[f"synthesize {faces}×{size}² {name}"] = lambda d=dtype: synthesis(device, d, faces, size)
        made[f"whiten {faces}×{size}² {name}"] = lambda d=dtype: whitening(device, d, faces, size)
        made[f"norm and ReLU {faces}×192×16² {name}"] = lambda d=dtype: normalisation(device, d, faces)
    for batch in (64,) if small else (256, 4096, 32_768):
        for mining in ("semi_hard", "batch_hard"):
            made[f"triplet {mining} {batch}×512"] = lambda b=batch, m=mining: triplets(device, b, m)
    return made


def synthesis(device: torch.device, dtype: torch.dtype, faces: int, size: int) -> Case:
    """Forward and backward, as in a shared step."""

    def drawn(channels: int) -> torch.Tensor:
        made = torch.rand(faces, channels, size, size, device=device, dtype=dtype)
        return made.contiguous(memory_format=torch.channels_last)

    x, delta, mask = drawn(3).float(), (drawn(3) - 0.5).requires_grad_(), drawn(1).requires_grad_()
    gradient = torch.cat([drawn(3), drawn(3)])

    def both(forward: Callable[..., synthesize.Synthesized]) -> Work:
        def work() -> None:
            out = forward(x, delta, mask, 0.1, dtype)
            torch.autograd.grad(
                [out.whitened, out.norm.sum() + out.area.sum()], [delta, mask], [gradient, None]
            )

        return work

    rival = None if device.type == "cpu" else both(torch.compile(synthesize.reference))
    return both(synthesize.synthesize_whitened), both(synthesize.reference), rival


def whitening(device: torch.device, dtype: torch.dtype, faces: int, size: int) -> Case:
    """Forward from bytes."""
    x = torch.randint(0, 256, (faces, size, size, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    compiled = torch.compile(whiten.reference)
    rival = None if device.type == "cpu" else lambda: compiled(x, dtype)
    return lambda: whiten.whiten(x, dtype), lambda: whiten.reference(x, dtype), rival


def normalisation(device: torch.device, dtype: torch.dtype, faces: int) -> Case:
    """Forward and backward of a BatchNorm in training and its ReLU, on one process."""
    x = torch.randn(faces, 192, 16, 16, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    gradient, parameters = torch.randn_like(x), torch.rand(2, 192, device=device)
    weight, bias = parameters

    def kernels() -> None:
        none = torch.zeros(192, device=device)
        mean, variance = torch.batch_norm_update_stats(x, none, none, 0.0)
        by = Figures(mean[None], variance[None], weight[None], bias[None], 1e-3)
        relu = device.type == "cuda"  # the reference does not include it
        normalise.normalise(x, by, relu)
        sums = normalise.gradient_sums(gradient, x, by, relu)
        normalise.input_gradient(gradient, x, by, sums / (x.numel() // 192), relu)

    def both(forward: Callable[..., torch.Tensor]) -> Work:
        inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
        return lambda: torch.autograd.grad(forward(*inputs), inputs, gradient)

    def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.relu(F.batch_norm(x, None, None, weight, bias, True, 0.0, 1e-3), inplace=True)

    return kernels, both(reference), None if device.type == "cpu" else both(torch.compile(reference))


def triplets(device: torch.device, batch: int, mining: Mining) -> Case:
    """Loss and gradient. The reference is not compiled: its mining has data-dependent shapes."""
    embeddings = F.normalize(torch.randn(batch, 512, device=device), dim=1).requires_grad_()
    labels = torch.arange(batch, device=device) // 4

    def work(choice: Any) -> Work:
        def both() -> None:
            dispatch.use(choice)
            triplet.triplet(embeddings, labels, mining=mining).backward()
            dispatch.use("auto")

        return both

    return work("auto"), work("torch"), None


if __name__ == "__main__":
    sys.exit(main())
