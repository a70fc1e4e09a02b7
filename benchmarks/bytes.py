"""Bytes that the kernels over faces and maps move, counted from their own loads and stores, over the minimum.

The minimum reads every input and writes every output once. The kernels run under Triton's interpreter, where
each load, store and atomic is counted by its unmasked elements. `eager` is what torch's operators move: their
inputs and outputs. Caches are ignored for both. The last line is one JSON object.

    python benchmarks/bytes.py
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from stepping import Counted
from triton.runtime.interpreter import InterpreterBuilder

from sparface.kernels import (
    dispatch,
    normalise,
    synthesize,
    synthesize_triton,
    tiles_triton,
    whiten,
    whiten_triton,
)
from sparface.kernels.common import Figures

BAR = 1.1
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

COUNTED = {"create_masked_load": (0, 1, 1), "create_masked_store": (0, 2, 1), "create_atomic_rmw": (1, 3, 2)}
"""The interpreter's operations: indices of the pointers and the mask, and transfers per element."""


class Counter:
    """Bytes that kernels load and store."""

    def __init__(self) -> None:
        self.bytes = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count bytes inside. One launch as on a GPU, but without waiting: only the traffic is right."""
        plain = {name: getattr(InterpreterBuilder, name) for name in COUNTED}
        for name, method in plain.items():
            setattr(InterpreterBuilder, name, self._counted(name, method))
        modules = (synthesize_triton, whiten_triton)
        waits = [vars(module)["wait"] for module in modules]
        tiles = vars(tiles_triton)
        interpreted, tiles["interpreted"] = tiles["interpreted"], lambda: False
        for module in modules:
            vars(module)["wait"] = go_on
        try:
            yield
        finally:
            for name, method in plain.items():
                setattr(InterpreterBuilder, name, method)
            for module, wait in zip(modules, waits, strict=True):
                vars(module)["wait"] = wait
            tiles["interpreted"] = interpreted

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        pointers, mask, times = COUNTED[name]

        def counted(builder: Any, *arguments: Any) -> Any:
            size = arguments[pointers].get_element_ty().primitive_bitwidth // 8
            self.bytes += times * size * int(arguments[mask].data.sum())
            return method(builder, *arguments)

        return counted


@triton.jit
def go_on(counters: tl.tensor, face: tl.tensor, TILES: tl.constexpr) -> None:
    """Replaces `wait`: counts the face's tile in the same way, but does not wait."""
    tl.atomic_add(counters + 1 + face, 1)


def synthesis(size: int, dtype: torch.dtype) -> tuple[Callable[[bool], None], int]:
    """Forward and backward of two faces, and the minimum bytes that they move."""
    x = torch.rand(2, 3, size, size).contiguous(memory_format=torch.channels_last)
    delta = (torch.randn(2, 3, size, size) / 10).to(dtype).requires_grad_()
    mask = torch.rand(2, 1, size, size).to(dtype).requires_grad_()
    ones = [torch.ones(4, 3, size, size, dtype=dtype), torch.ones(2), torch.ones(2)]
    planes = 4 * 3 + dtype.itemsize * (3 + 1 + 6) + 4 * 3 + dtype.itemsize * (3 + 3 + 1 + 3 + 1)

    def run(fused: bool) -> None:
        operation = synthesize.synthesize_whitened if fused else synthesize.reference
        made = operation(x, delta, mask, 0.1, dtype)
        torch.autograd.backward(list(made[:3]), ones)

    return run, 2 * size * size * planes


def whitening(size: int, dtype: torch.dtype) -> tuple[Callable[[bool], None], int]:
    """Bytes to whitened faces, without a gradient."""
    x = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)

    def run(fused: bool) -> None:
        (whiten.whiten if fused else whiten.reference)(x, dtype)

    return run, 2 * size * size * 3 * (1 + dtype.itemsize)


def normalisation(size: int, dtype: torch.dtype) -> tuple[Callable[[bool], None], int]:
    """BatchNorm with given statistics and ReLU, both halves of a batch, and the minimum of three passes."""
    maps = torch.randn(2, 192, size // 8, size // 8).to(dtype).contiguous(memory_format=torch.channels_last)
    by = Figures(*torch.rand(4, 2, 192), eps=1e-3)

    def run(fused: bool) -> None:
        if fused:
            normalise.normalise(maps, by, relu=True)
            sums = normalise.gradient_sums(maps, maps, by, relu=True)
            normalise.input_gradient(maps, maps, by, sums, relu=True)
            return
        x, mean, variance, weight, bias = maps.detach().requires_grad_(), *(f[0] for f in by[:4])
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
        F.relu(F.batch_norm(x, mean, variance, weight, bias, eps=by.eps), inplace=True).backward(maps)

    return run, maps.nbytes * (2 + 2 + 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one size")
    sizes = [128] if parser.parse_args().quick else [112, 128, 160]
    dispatch.use("triton")
    ratios = {}
    cases = {"synthesize": synthesis, "whiten": whitening, "normalise": normalisation}
    print("| operation | size | precision | minimum, KiB per face | kernels / minimum | eager / minimum |")
    print("|---|---|---|---|---|---|")
    for name, case in cases.items():
        for size in sizes:
            for precision, dtype in PRECISIONS.items():
                run, least = case(size, dtype)
                counter, eager = Counter(), Counted()
                with counter.counting():
                    run(True)
                with eager:
                    run(False)
                ratios[f"{name} {size} {precision}"] = ratio = counter.bytes / least
                print(
                    f"| {name} | {size} | {precision} | {least / 2048:,.0f} | {ratio:.3f} "
                    f"| {eager.bytes / least:.2f} |",
                    flush=True,
                )
    worst = max(ratio for name, ratio in ratios.items() if name.startswith("synthesize"))
    print(
        json.dumps(
            {"name": "bytes", "ratio": round(worst, 4), "bar": BAR, "pass": worst <= BAR, "all": ratios}
        )
    )
    return 0 if worst <= BAR else 1


if __name__ == "__main__":
    raise SystemExit(main())
