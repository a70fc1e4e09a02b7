"""Report the devices, packages and tools of this machine, and what missing ones are needed for."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil

from sparface.machine import usable_cores

NEEDED_FOR = {
    "torchvision": "training",
    "facenet-pytorch": "alignment and FaceNet",
    "webdataset": "shards",
    "simplejpeg": "decoding",
    "mlflow": "tracking",
    "triton": "fused kernels on a GPU",
    "deepspeed": "training.strategy: deepspeed",
    "submitit": "submitting SLURM jobs from Python",
    "timm": "recognizer.backbone: timm:NAME",
    "onnx": "export to ONNX",
    "onnxruntime": "checking an ONNX export",
}


def examine() -> str:
    """One line per item: `ok` with its version or state, or `--` with what it is needed for."""
    rows = [("ok", "python", platform.python_version()), *torch_rows()]
    for package, purpose in NEEDED_FOR.items():
        found = version(package)
        rows.append(
            ("ok", package, found) if found else ("--", package, f"not installed: needed for {purpose}")
        )
    for tool, purpose in {"sbatch": "SLURM jobs", "sacct": "the state of finished SLURM jobs"}.items():
        path = shutil.which(tool)
        rows.append(("ok", tool, path) if path else ("--", tool, f"not found: needed for {purpose}"))
    rows.append(("ok", "mlflow target", os.environ.get("MLFLOW_TRACKING_URI", "mlflow.db beside the runs")))
    return "\n".join(f"{state}  {name:<16} {detail}" for state, name, detail in rows)


def torch_rows() -> list[tuple[str, str, str]]:
    import torch
    import torch.distributed as dist

    rows = [("ok", "torch", torch.__version__), ("ok", "cpu", f"{usable_cores()} cores, bf16 {cpu_bf16()}")]
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        rows += [
            ("ok", "gpu", f"{d.name}, {d.total_memory >> 30} GiB, sm_{d.major}{d.minor}") for d in devices
        ]
    else:
        rows.append(("--", "gpu", "none: training runs on the CPU, slowly"))
    backends = {
        "gloo": dist.is_gloo_available(),
        "nccl": dist.is_nccl_available() and torch.cuda.is_available(),
    }
    for name, present in backends.items():
        purpose = "several GPUs" if name == "nccl" else "several processes on the CPU"
        rows.append(
            ("ok", name, "available") if present else ("--", name, f"not available: needed for {purpose}")
        )
    return rows


def cpu_bf16() -> str:
    import torch

    from sparface.training.strategies.rounding import native_bf16

    return "in hardware" if native_bf16(torch.device("cpu")) else "rounded, computed in fp32"


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
