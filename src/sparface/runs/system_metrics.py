"""System metrics under MLflow's names, so MLflow shows them as such."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil
import torch

PERIOD = 10.0
"""Minimum seconds between two readings."""


class SystemMetrics:
    """Reads the use of the machine and of the disk that holds a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._next = str(folder), time.monotonic()
        psutil.cpu_percent()  # the first reading has no interval to refer to

    def reading(self) -> dict[str, float]:
        """Mean CPU use since the last reading, memory, disk, network and GPU; {} within `PERIOD` of it."""
        if time.monotonic() < self._next:
            return {}
        self._next = time.monotonic() + PERIOD
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(self._folder)
        network = psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_percentage": memory.percent,
            "system_memory_usage_megabytes": memory.used / 1e6,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / 1e6,
        }
        if network is not None:
            found["network_receive_megabytes"] = network.bytes_recv / 1e6
            found["network_transmit_megabytes"] = network.bytes_sent / 1e6
        found |= _gpu_reading() if torch.cuda.is_available() else {}
        return {f"system/{name}": float(value) for name, value in found.items()}


def _gpu_reading() -> dict[str, float]:
    (free, total), gpu = torch.cuda.mem_get_info(), f"gpu_{torch.cuda.current_device()}"
    found = {
        f"{gpu}_memory_usage_megabytes": (total - free) / 1e6,
        f"{gpu}_memory_usage_percentage": 100 * (1 - free / total),
    }
    with contextlib.suppress(ImportError, RuntimeError):  # needs NVIDIA's management library
        found[f"{gpu}_utilization_percentage"] = float(torch.cuda.utilization())
        found[f"{gpu}_power_usage_watts"] = torch.cuda.power_draw() / 1000
    return found
